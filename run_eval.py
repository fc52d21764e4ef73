"""Evaluate a trained run at other points, or with another memory.

python run_eval.py run=outputs/copy/ntm/seed_0 'at=[10,20,30,50,80,120]'
python run_eval.py run=outputs/copy/ntm/seed_0 'at=[500]' memory_size=600
python run_eval.py run=outputs/repeat_copy/ntm/seed_0 'at=[{length: 20, repeats: 10}]'
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from ntm.commands import command
from ntm.commands.configuration import check_evaluation


def check(config: DictConfig) -> None:
    """Refuse an evaluation that cannot be, before torch is loaded."""
    check_evaluation(config)


def job(config: DictConfig, _started: float) -> int:
    """Evaluate, and print the table."""
    from ntm.views.evaluation import evaluate_job

    return evaluate_job(config)


if __name__ == "__main__":
    sys.exit(command.main(Path(__file__).resolve().parent / "configs", "eval", check, job))
