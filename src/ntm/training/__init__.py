"""Training: the data of a run, the learner, what goes on beside it, one run, and sweeps.

A concern a file; what `ntm.training.assembly` puts together, `ntm.training.run` runs. Nothing here
draws or compares.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Curriculum": "curriculum",
    "EventLog": "loggers",
    "GravesRMSprop": "optimizers",
    "MLflowLog": "loggers",
    "WandbLog": "loggers",
}
"""What configurations name, and the files that have it."""


def __getattr__(name: str) -> Any:
    """Import on first use: what a sweep would do is told before torch is loaded."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ntm.training' has no attribute {name!r}")
    return getattr(import_module(f"ntm.training.{_HOMES[name]}"), name)
