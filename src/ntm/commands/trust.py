"""What a run folder may have built: it may have come from somebody else.

A configuration names Python objects, and whoever builds what it names runs it. On one's own command
line that is meant; of a folder only what is known to do no harm is built, each by its exact name:
through a known module any other would be reached (``torch.utils.cpp_extension`` compiles and runs
what it is given).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import hydra.utils
from omegaconf import DictConfig

from ntm.commands.configuration import MOVED, ConfigurationError, plain

OURS = (
    "ntm.LSTM",
    "ntm.NTM",
    "ntm.FeedforwardController",
    "ntm.LSTMController",
    "ntm.machine.EffortPenalty",
    "ntm.training.Curriculum",
    "ntm.training.GravesRMSprop",
)
TORCHS = (
    *(f"torch.nn.{name}" for name in ("GRUCell", "Identity", "LSTMCell", "Linear", "RNNCell")),
    *(f"torch.nn.{name}" for name in ("ELU", "GELU", "LeakyReLU", "ReLU", "SiLU", "Sigmoid")),
    *(f"torch.nn.{name}" for name in ("Softplus", "Softsign", "Tanh")),
    *(f"torch.optim.{name}" for name in ("Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD")),
)
TRUSTED = frozenset((*OURS, *TORCHS, *MOVED))
"""What is built from any run folder, beside the tasks in `ntm.tasks`."""
HYDRAS = ("_target_", "_partial_", "_convert_")
"""Keys of Hydra's own that a description may have."""


def check_trusted(node: Any, key: str, allow: Collection[str] = ()) -> None:
    """Refuse descriptions of objects that a stranger's run folder must not have built.

    Args:
        node: Of a run folder's configuration.
        key: Where it stands there.
        allow: What else its reader allows, by the exact names of ``_target_``.

    Raises:
        ConfigurationError: Names the first such key, and how to allow it.

    """
    _check(plain(node) if isinstance(node, DictConfig) else node, key, frozenset(allow))


def _check(value: Any, key: str, allow: frozenset[str]) -> None:
    if isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            _check(item, f"{key}[{place}]", allow)
    if not isinstance(value, dict):
        return
    for name, item in value.items():
        if str(name).startswith("_") and name not in HYDRAS:
            raise ConfigurationError(f"{key}.{name} of a run folder is not followed")
        _check(item, f"{key}.{name}", allow)
    if "_target_" in value and not _is_trusted(value["_target_"], allow):
        target = value["_target_"]
        raise ConfigurationError(
            f"{key}._target_ of a run folder names {target!r}, which is not built unless its "
            f"reader allows it by name: 'allow=[{target}]' if you know what it does and trust it"
        )


def _is_trusted(target: Any, allow: frozenset[str]) -> bool:
    if not isinstance(target, str):
        return False
    return target in TRUSTED or target in allow or _is_task(target)


def _is_task(target: str) -> bool:
    """Whether it is a class of `ntm.tasks`, which whoever installed this has put there."""
    if re.fullmatch(r"ntm\.tasks(\.[a-z_0-9]+)?\.[A-Z]\w*", target) is None:
        return False
    try:
        found = hydra.utils.get_object(target)
    except Exception:  # it is not there
        return False
    return isinstance(found, type) and found.__module__.startswith("ntm.tasks.")
