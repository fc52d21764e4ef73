"""Compare models over their seeds: curves, tables, a report and TensorBoard's summaries.

python run_compare.py runs=outputs/copy
python run_compare.py runs=outputs/copy statistic=median
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from ntm.commands import command
from ntm.commands.configuration import check_comparison


def check(config: DictConfig) -> None:
    """Refuse a comparison that cannot be, before anything is drawn or written."""
    check_comparison(config)
    from ntm.comparison.numbers import find_runs

    find_runs(config.runs)


def job(config: DictConfig, _started: float) -> int:
    """Compare, write, and print the table."""
    from ntm.comparison.report import compare_job

    return compare_job(config)


if __name__ == "__main__":
    sys.exit(command.main(Path(__file__).parent / "configs", "compare", check, job))
