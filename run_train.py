"""Train one run, or a sweep of them.

python run_train.py model=ntm
python run_train.py model=lstm seed=3 sequences=50000
python run_train.py -m model=ntm,lstm 'seed=range(10)'
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from ntm import command, sweeps
from ntm.configuration import check_values

planned: list[sweeps.Job] = []
"""What each job was to do, when the command began."""


def check(config: DictConfig) -> None:
    """Refuse a job before anything starts or is written."""
    check_values(config)  # at once; what follows loads torch
    from ntm.training import prepare

    planned.append(sweeps.job(prepare(config).config))


def job(config: DictConfig, started: float) -> int:
    """Train one run and return its exit status."""
    from ntm.training import run_job

    return run_job(config, started)


def after() -> None:
    """Print what every job of a sweep came to."""
    sweeps.table([sweeps.outcome(one) for one in planned])


if __name__ == "__main__":
    sweeps.end_with_script()
    sys.exit(command.main(Path(__file__).parent / "configs", "train", check, job, after))
