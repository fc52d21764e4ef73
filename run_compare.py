"""Compare groups of runs over their seeds: curves, tables, a report, TensorBoard's summaries.

python run_compare.py runs=outputs/copy
python run_compare.py 'runs=[outputs/copy,outputs/associative_recall]' 'by=[model,optimizer.lr]'
python run_compare.py runs=outputs/copy statistic=median
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from ntm.commands import command
from ntm.commands.configuration import check_comparison


def check(config: DictConfig) -> None:
    """Refuse a comparison that cannot be, before anything is drawn or written."""
    check_comparison(config)
    from ntm.comparison.reading import find_runs

    for root in config.runs if isinstance(config.runs, ListConfig) else [config.runs]:
        find_runs(root)


def job(config: DictConfig, _started: float) -> int:
    """Compare, write, and print the table."""
    from ntm.comparison.report import compare_job

    return compare_job(config)


if __name__ == "__main__":
    sys.exit(command.main(Path(__file__).resolve().parent / "configs", "compare", check, job))
