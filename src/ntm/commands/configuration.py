"""The keys of a command, their types, and objects built from them. Knows Hydra, not torch."""

from __future__ import annotations

import inspect
import logging
import re
import shlex
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf


class ConfigurationError(ValueError):
    """The command or its configuration is wrong; the message is one line that names the key."""


@dataclass
class OptimizerSchema:
    """Keys of the group ``optimizer``."""

    algorithm: Any = MISSING
    lr: float = MISSING
    decay: str = MISSING
    clip_value: float | None = MISSING
    clip_norm: float | None = MISSING
    clip_factor: float | None = MISSING
    give_up_after: int = MISSING


@dataclass
class CallbacksSchema:
    """Keys of the group ``callbacks``."""

    keep_every: int | None = MISSING
    keep_last: int = MISSING
    pictures_every: int | None = MISSING
    figures: bool = MISSING


@dataclass
class EvaluationSchema:
    """Keys under ``evaluation``."""

    at: Any = MISSING
    kinds: Any = MISSING
    sequences: int = MISSING


@dataclass
class TrainSchema:
    """Keys of `run_train.py`, beside its groups; see configs/train.yaml for what they mean."""

    seed: int = MISSING
    name: str = MISSING
    folder: str = MISSING
    sequences: int = MISSING
    batch_size: int = MISSING
    validate_every: int = MISSING
    init_from: str | None = MISSING
    overwrite: bool = MISSING
    replay: str | None = MISSING
    allow: Any = MISSING
    engine: str = MISSING
    threads: int = MISSING
    num_workers: int = MISSING
    deterministic: bool = MISSING
    task: Any = MISSING
    model: Any = MISSING
    curriculum: Any = MISSING
    optimizer: OptimizerSchema = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    callbacks: CallbacksSchema = MISSING
    evaluation: EvaluationSchema = MISSING


@dataclass
class EvaluateSchema:
    """Keys of `run_eval.py`; see configs/eval.yaml for what they mean."""

    run: str = MISSING
    at: Any = MISSING
    lengths: list[int] | None = MISSING
    kinds: Any = MISSING
    memory_size: int | None = MISSING
    sequences: int = MISSING
    checkpoint: str = MISSING
    folder: str | None = MISSING
    allow: Any = MISSING
    accelerator: str = MISSING
    threads: int = MISSING


@dataclass
class CompareSchema:
    """Keys of `run_compare.py`; see configs/compare.yaml for what they mean."""

    runs: Any = MISSING
    by: Any = MISSING
    folder: str | None = MISSING
    statistic: str = MISSING


DRAWINGS = ("page", "animation", "learned")
"""What `run_inside.py` draws."""


@dataclass
class InsideSchema:
    """Keys of `run_inside.py`; see configs/inside.yaml for what they mean."""

    run: Any = MISSING
    at: Any = MISSING
    kind: str = MISSING
    checkpoint: Any = MISSING
    memory_size: int | None = MISSING
    draw: Any = MISSING
    folder: str | None = MISSING
    allow: Any = MISSING


ConfigStore.instance().store("train_schema", TrainSchema)
ConfigStore.instance().store("eval_schema", EvaluateSchema)
ConfigStore.instance().store("compare_schema", CompareSchema)
ConfigStore.instance().store("inside_schema", InsideSchema)


def rate_for_batch(rate: float, batch_size: int) -> float:
    """A learning rate that was found with batches of 8, for batches of another size.

    Larger batches, of which a budget of sequences holds fewer, take larger steps: by the power of
    two thirds, between the root that keeps the noise of a step and the proportion that keeps the
    way of an epoch (docs/recipe.md has the trials). Smaller ones keep the rate.
    """
    return float(f"{rate * max(1.0, batch_size / 8) ** (2 / 3):.6g}")


OmegaConf.register_new_resolver("rate_for_batch", rate_for_batch, replace=True)


GOVERNED = {
    "max_epochs": "sequences",
    "min_epochs": "sequences",
    "max_steps": "sequences",
    "max_time": "sequences, or end the command after so long, as by timeout 1h; it goes on later",
    "min_steps": "sequences",
    "limit_train_batches": "sequences",
    "overfit_batches": "sequences",
    "limit_val_batches": "validate_every; what is validated is every point of the task",
    "limit_test_batches": "evaluation.sequences; the test set is every point of the task",
    "val_check_interval": "validate_every",
    "check_val_every_n_epoch": "validate_every",
    "reload_dataloaders_every_n_epochs": "validate_every",
    "gradient_clip_val": "optimizer.clip_norm or optimizer.clip_value",
    "gradient_clip_algorithm": "optimizer.clip_norm or optimizer.clip_value",
    "use_distributed_sampler": "batch_size, the total over all devices",
    "deterministic": "deterministic",
}
"""Trainer arguments that another key decides."""

MOVED = {
    "ntm.callbacks.EventLog": "ntm.training.EventLog",
    "ntm.curriculum.Curriculum": "ntm.training.Curriculum",
    "ntm.optimizers.GravesRMSprop": "ntm.training.GravesRMSprop",
}
"""Where a ``_target_`` of earlier configurations is now."""
RENAMED = {"evaluation.lengths": "evaluation.at"}
ADDED = {
    "optimizer.give_up_after": 10,
    "curriculum.grow": None,
    "task.mix": 0.0,
    "task.start_flag": False,
    "model.network.controller.forget_bias": 0.0,
    "model.penalty.free": 0.0,
    "model.penalty": None,
    "model.network.segment": None,
    "trainer.limit_val_batches": None,
    "trainer.limit_test_batches": None,
    "trainer.max_time": None,
}
"""Keys that not all configurations have, earlier ones or those of today, as they are where not."""
UNASKED = ("evaluation.kinds",)
"""Keys that earlier configurations did not have, and that are nothing to them."""

LARGEST_SEED = 2**64 - 1
"""What generators of random numbers take."""

FREE = ("name", "folder", "logger", "callbacks", "overwrite", "replay", "allow")
"""Keys that may differ when a run goes on."""
FREE_TRAINER = ("enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler")


def check_values(config: DictConfig) -> None:
    """Refuse values of `TrainSchema` that have the right type and cannot be.

    Raises:
        ConfigurationError: Names the first such key.

    """
    for key, least in (
        ("seed", 0),
        ("sequences", 1),
        ("batch_size", 1),
        ("validate_every", 1),
        ("threads", 1),
        ("num_workers", 0),
        ("evaluation.sequences", 1),
        ("optimizer.give_up_after", 1),
        ("callbacks.keep_every", 1),
        ("callbacks.keep_last", 1),
        ("callbacks.pictures_every", 1),
    ):
        value = OmegaConf.select(config, key)
        if value is not None and value < least:
            raise ConfigurationError(f"{key} must be at least {least}, got {value}")
    if config.seed > LARGEST_SEED:
        raise ConfigurationError(f"seed must be at most {LARGEST_SEED}, got {config.seed}")
    if config.optimizer.lr <= 0:
        raise ConfigurationError(f"optimizer.lr must be above 0, got {config.optimizer.lr}")
    for key in config.trainer:
        check_governed(str(key))
    given = config.trainer.get("logger")
    if given not in (None, False):
        raise ConfigurationError(
            f"trainer.logger must be null or false, got {given!r}; logger= chooses the loggers"
        )
    if not config.name or "/" in config.name or config.name.startswith("."):
        raise ConfigurationError(f"name must be the name of one folder, got {config.name!r}")


def check_evaluation(config: DictConfig) -> None:
    """Refuse values of `EvaluateSchema` that have the right type and cannot be.

    Raises:
        ConfigurationError: Names the first such key.

    """
    if OmegaConf.is_missing(config, "run"):
        raise ConfigurationError("run must be a run folder, such as outputs/copy/ntm/seed_0")
    if config.checkpoint not in ("best", "last"):
        raise ConfigurationError(f"checkpoint must be best or last, got {config.checkpoint!r}")
    if config.threads < 1:
        raise ConfigurationError(f"threads must be at least 1, got {config.threads}")
    if config.sequences < 1:
        raise ConfigurationError(f"sequences must be at least 1, got {config.sequences}")
    if config.lengths is None:
        return
    if config.at is not None:
        raise ConfigurationError("lengths must not be given beside at, for which it is a word")
    if len(config.lengths) == 0 or min(config.lengths) < 1:
        raise ConfigurationError(
            "lengths must be a list of one length or more, each at least 1, "
            f"got {list(config.lengths)}"
        )


def check_comparison(config: DictConfig) -> None:
    """Refuse values of `CompareSchema` that have the right type and cannot be.

    Raises:
        ConfigurationError: Names the first such key.

    """
    if OmegaConf.is_missing(config, "runs"):
        raise ConfigurationError("runs must be a folder of run folders, such as outputs/copy")
    for key, what in (("runs", "folders of run folders"), ("by", "keys of run_train.py")):
        if config[key] is not None:
            names(config[key], key, what)
    if not plain(config.runs):
        raise ConfigurationError("runs must name one folder of run folders or more")
    if config.statistic not in ("mean", "median"):
        raise ConfigurationError(f"statistic must be mean or median, got {config.statistic!r}")


def check_inside(config: DictConfig) -> None:
    """Refuse values of `InsideSchema` that have the right type and cannot be.

    Raises:
        ConfigurationError: Names the first such key.

    """
    if OmegaConf.is_missing(config, "run"):
        raise ConfigurationError("run must be a run folder, such as outputs/copy/ntm/seed_0")
    for key, what in (("run", "run folders"), ("checkpoint", "checkpoints"), ("draw", "drawings")):
        if not names(config[key], key, what):
            raise ConfigurationError(f"{key} must name one of the {what} or more, got []")
    for drawing in names(config.draw, "draw"):
        if drawing not in DRAWINGS:
            known = ", ".join(DRAWINGS)
            raise ConfigurationError(f"draw must be one or a list of {known}, got {drawing!r}")


def check_governed(key: str) -> None:
    """Refuse a Trainer argument that another key decides."""
    if key in GOVERNED:
        raise ConfigurationError(f"trainer.{key} is governed by another key: set {GOVERNED[key]}")


def build(node: Any, key: str, **arguments: Any) -> Any:
    """Build the object that a ``_target_`` node describes.

    Args:
        node: The node.
        key: Where it stands in the configuration.
        arguments: Given in code; they take the place of the node's.

    Raises:
        ConfigurationError: An argument is unknown, of a wrong type, or refused by the object.

    """
    check_types(node, key)
    if isinstance(node, DictConfig) and node.get("_target_") in MOVED:
        arguments["_target_"] = MOVED[node._target_]
    if isinstance(node, DictConfig) and "_convert_" not in node:
        arguments["_convert_"] = "all"  # who takes a dict or a list does not take Hydra's own
    try:
        return hydra.utils.instantiate(node, **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        refused = _refused_key(error, key)
        if not isinstance(cause, (ValueError, TypeError)):
            told = f"{refused} cannot be built: {type(cause).__name__}: {one_line(cause)}"
            raise ConfigurationError(told) from error
        raise ConfigurationError(f"{refused}.{one_line(cause)}") from error


def check_types(node: Any, key: str) -> None:
    """Hold every argument of a ``_target_`` node, and of those inside, against its signature.

    Raises:
        ConfigurationError: Names the first argument that is unknown or of a wrong type.

    """
    if not isinstance(node, DictConfig):
        return
    if "_target_" in node:
        target = _target(node._target_, key)
        signature = inspect.signature(target)
        hints = _hints(target)
        open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        for name in map(str, node):
            if name.startswith("_"):
                continue
            if name not in signature.parameters:
                if open_ended:
                    continue
                known = ", ".join(n for n in signature.parameters if n not in ("self", "params"))
                raise ConfigurationError(f"{key}.{name} is unknown; known are {known}")
            check_type(f"{key}.{name}", node[name], hints.get(name, Any))
    for name in map(str, node):
        check_types(node[name], f"{key}.{name}")


def check_type(key: str, value: Any, hint: Any) -> None:
    """Refuse a value that is not of the annotated type; types not made of plain ones pass.

    Raises:
        ConfigurationError: Names the key, the expected type and the value.

    """
    if isinstance(value, DictConfig) and "_target_" in value:
        return
    value = plain(value)
    if _fits(value, hint) is not False:
        return
    raise ConfigurationError(f"{key} must be {_in_words(hint)}, got {_shown(value)}")


def one_line(error: BaseException | str) -> str:
    """An exception's message without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def quoted(path: str | Path) -> str:
    """A path as a shell takes it for one word."""
    return shlex.quote(str(path))


def as_override(key: str, value: str | Path) -> str:
    """An override as a shell hands it to Hydra, whatever is in the value."""
    if re.fullmatch(r"[\w./:+-]+", str(value)):
        return f"{key}={value}"
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return shlex.quote(f"{key}='{text}'")


def quiet_lightning() -> None:
    """Keep Lightning to warnings; call it after Lightning is loaded, which sets its own level."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def plain(config: Any) -> Any:
    """A configuration as plain values, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def flatten(values: Any, key: str = "") -> dict[str, Any]:
    """Nested plain dictionaries as one, keys joined by dots."""
    if not isinstance(values, dict) or not values:
        return {key: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{key}.{name}" if key else str(name))
    return flat


def settings(config: Any) -> dict[str, Any]:
    """A run's configuration, flat and as it would be written now, but for what may change in it."""
    values = _as_now(flatten(plain(config)))
    return {
        key: value
        for key, value in values.items()
        if key.split(".")[0] not in FREE
        and not (key.startswith("trainer.") and key.split(".")[1] in FREE_TRAINER)
    }


def differences(old: Any, new: Any) -> list[str]:
    """Keys in which two configurations of a run differ, but for those that may."""
    missing = object()
    before, after = settings(old), settings(new)
    compared = sorted((before | after).keys() - (set(UNASKED) - before.keys()))
    return [key for key in compared if before.get(key, missing) != after.get(key, missing)]


def telling_apart(configs: Sequence[dict[str, Any]], keys: Iterable[str]) -> list[str]:
    """The fewest of the keys that tell flat configurations apart as well as all of them do.

    The model comes first, then what all have, and of those the shorter, so that a key that says
    what another says is left out: ``optimizer.algorithm.lr`` beside ``optimizer.lr``.
    """
    values = {key: [repr(config.get(key)) for config in configs] for key in keys}

    def order(key: str) -> tuple[bool, bool, int, int]:
        of_all = all(key in config for config in configs)
        return key != "model.name", not of_all, key.count("."), len(key)

    def groups(chosen: Sequence[str]) -> int:
        return len(set(zip(*(values[key] for key in chosen), strict=True))) if chosen else 1

    chosen: list[str] = []
    for key in sorted(values, key=order):
        if groups(chosen) < groups([*chosen, key]):
            chosen.append(key)
    return chosen


def _as_now(values: dict[str, Any]) -> dict[str, Any]:
    """The flat configuration of a run of before, as it would be written now."""
    return ADDED | {
        RENAMED.get(key, key): MOVED.get(value, value) if key.endswith("_target_") else value
        for key, value in values.items()
    }


def _refused_key(error: InstantiationException, key: str) -> str:
    """The key of the node that was refused, which may be one inside the node at ``key``."""
    named = re.search(r"full_key: (\S+)", str(error))
    if named is None:
        return key
    return named[1] if named[1].startswith(key) else f"{key}.{named[1]}"


def _target(path: str, key: str) -> Callable[..., Any]:
    try:
        return hydra.utils.get_object(MOVED.get(path, path))
    except Exception as error:
        raise ConfigurationError(f"{key}._target_ names nothing: {one_line(error)}") from error


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = inspect.getattr_static(target, "__init__") if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(inspect.unwrap(function))
    except Exception:  # an annotation of a library's own that cannot be resolved here
        return {}


def _fits(value: Any, hint: Any) -> bool | None:
    """Whether a plain value is of the hinted type; None where that cannot be told."""
    if hint is Any:
        return None
    if hint is type(None):
        return value is None
    if hint in (int, str, bool):
        return type(value) is hint
    if hint is float:
        return type(value) in (int, float)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        fits = [_fits(value, argument) for argument in arguments]
        return True if True in fits else None if None in fits else False
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(value, (list, tuple, ListConfig)):
            return False
        return not any(_fits(item, arguments[0]) is False for item in value)
    # Anything else is an object: a plain value cannot stand for it, nothing else can be told.
    return False if isinstance(value, (int, float, str, bool, type(None))) else None


def _in_words(hint: Any) -> str:
    """What is accepted: ``of type int or null``, ``one of 16, 32 or null``."""
    named: dict[str, None] = {}
    chosen = False
    waiting = [hint]
    while waiting:
        part = waiting.pop(0)
        origin, arguments = typing.get_origin(part), typing.get_args(part)
        if origin in (typing.Union, types.UnionType):
            waiting[:0] = arguments
        elif origin is typing.Literal:
            chosen = True
            named |= {str(argument): None for argument in arguments}
        elif part is type(None):
            named["null"] = None
        else:
            plainly = isinstance(part, type) and origin is None
            named[part.__name__ if plainly else str(part).replace("typing.", "")] = None
    *others, last = named
    words = f"{', '.join(others)} or {last}" if others else last
    return f"{'one of' if chosen else 'of type'} {words}"


def names(given: Any, key: str, what: str = "names") -> list[str]:
    """One name or a list of them, as a list.

    Raises:
        ConfigurationError: It is neither.

    """
    value = plain(given)
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in found):
        raise ConfigurationError(f"{key} must be one or a list of {what}, got {value!r}")
    return found


def _shown(value: Any) -> str:
    return repr(plain(value)) + ("" if value is None else f" ({type(value).__name__})")
