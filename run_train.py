"""Train one run, or a sweep of them.

python run_train.py model=ntm
python run_train.py model=lstm seed=3 sequences=50000
python run_train.py -m model=ntm,lstm 'seed=range(10)'
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from ntm import command
from ntm.configuration import check_values


def check(config: DictConfig) -> None:
    """Refuse a job before anything starts or is written."""
    check_values(config)  # at once; what follows loads torch
    from ntm.training import prepare

    prepare(config)


def job(config: DictConfig, started: float) -> int:
    """Train one run and return its exit status."""
    from ntm.training import run_job

    return run_job(config, started)


if __name__ == "__main__":
    sys.exit(command.main(Path(__file__).parent / "configs", "train", check, job))
