"""Train one run, or a sweep of them.

python run_train.py model=ntm
python run_train.py model=lstm seed=3 sequences=50000
python run_train.py -m model=ntm,lstm 'seed=range(10)'
python run_train.py replay=outputs/copy/ntm/seed_3      # the step at which its numbers went wrong
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from ntm.commands import command
from ntm.folders.runs import RunFolder
from ntm.training import sweeps

plan = sweeps.Plan()


def check(config: DictConfig) -> None:
    """Refuse a job before anything starts or is written."""
    if config.replay is None:
        plan.add(config)
    else:
        RunFolder.existing(config.replay, "replay")


def job(config: DictConfig, started: float) -> int:
    """Train one run and return its exit status."""
    if config.replay is not None:
        from ntm.commands.configuration import names
        from ntm.training.replay import replay_job

        return replay_job(config.replay, names(config.allow, "allow"))
    if plan.skips(config.folder):
        print(f"{config.folder} is finished and left alone", file=sys.stderr)
        return command.DONE
    from ntm.training.job import run_job

    return run_job(config, started)


def after() -> None:
    """Print what every job of a sweep came to."""
    sweeps.table([sweeps.outcome(job) for job in plan.jobs])


if __name__ == "__main__":
    sweeps.end_with_script()
    sys.exit(
        command.main(
            Path(__file__).resolve().parent / "configs",
            "train",
            check,
            job,
            after,
            plan.settle,
        )
    )
