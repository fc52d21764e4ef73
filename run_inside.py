"""Look inside a trained network: a page that plays one sequence step by step, and animations.

python run_inside.py run=outputs/copy/ntm/seed_0 'at=20'
python run_inside.py 'run=[outputs/copy/ntm/seed_0,outputs/copy/lstm/seed_0]' 'at=20'
python run_inside.py run=outputs/copy/ntm/seed_0 'at=[20,60]' draw=learned
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from ntm.commands import command
from ntm.commands.configuration import check_inside


def check(config: DictConfig) -> None:
    """Refuse what cannot be drawn, before torch is loaded."""
    check_inside(config)


def job(config: DictConfig, _started: float) -> int:
    """Draw, and say where it is."""
    from ntm.views.looking import inside_job

    return inside_job(config)


if __name__ == "__main__":
    sys.exit(command.main(Path(__file__).resolve().parent / "configs", "inside", check, job))
