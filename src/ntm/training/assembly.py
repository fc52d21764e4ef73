"""A run built and checked, from its configuration; nothing is written."""

from __future__ import annotations

import os
import typing
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger, Logger
from torch import nn

from ntm import accelerators
from ntm.commands.configuration import (
    ConfigurationError,
    build,
    check_type,
    one_line,
    plain,
    quiet_lightning,
)
from ntm.folders import runs
from ntm.folders.runs import RunFolder, load_checkpoint
from ntm.machine.ntm import NTM
from ntm.tasks import Task
from ntm.training.data import SequenceData
from ntm.training.devices import TimeToTell, check_devices
from ntm.training.learner import Learner
from ntm.training.parts import build_parts
from ntm.training.pictures import Pictures
from ntm.training.progress import Bar, Summary
from ntm.training.record import AtomicCheckpointIO, Record
from ntm.training.signals import StopOnSignal
from ntm.training.stages import Stages
from ntm.views.evaluation import load_weights


@dataclass
class Run:
    """A run that can begin: everything is built and checked, nothing is written."""

    config: DictConfig
    folder: RunFolder
    task: Task
    data: SequenceData
    learner: Learner
    trainer: pl.Trainer
    accelerator: str | None
    """What there is to say of its choice."""
    stages: Stages
    record: Record
    resume_from: Path | None
    finished: bool


def prepare(config: DictConfig) -> Run:
    """Build a run from the configuration of `configs/train.yaml`.

    Raises:
        ConfigurationError: A value cannot be; the message names its key.

    """
    parts = build_parts(config)
    _set_up_libraries(config)
    task, network = parts.task, parts.network
    optimizer = config.optimizer
    learner = Learner(
        network,
        parts.algorithm,
        optimizer.decay,
        optimizer.clip_value,
        optimizer.clip_norm,
        optimizer.clip_factor,
        parts.penalty,
        optimizer.give_up_after,
    )
    folder = RunFolder(config.folder)
    data = SequenceData(
        task,
        config.seed,
        config.batch_size,
        config.sequences,
        config.validate_every,
        config.num_workers,
    )
    stages = Stages(parts.curriculum)
    record = Record(folder, config.callbacks.keep_every, config.callbacks.keep_last)
    accelerator, why = _accelerator(network, config)
    trainer = _trainer(config, accelerator, data, stages, record)
    check_devices(trainer, config)
    if precision_of(trainer) is torch.float64:
        learner.double()  # Lightning does it after it has loaded a checkpoint, which rounds it
    if config.init_from is not None:
        other = RunFolder.existing(config.init_from, "init_from")
        best = other.checkpoint("best")
        load_weights(network, load_checkpoint(best), best)
    config = config.copy()
    # As found out: what another default would mean tomorrow changes no run of today.
    config.evaluation.at, config.evaluation.kinds = parts.points, parts.kinds
    config.engine = _engine(network, trainer, config.engine)
    resume_from, finished = where_it_stands(folder, config)
    return Run(
        config, folder, task, data, learner, trainer, why, stages, record, resume_from, finished
    )


def _set_up_libraries(config: DictConfig) -> None:
    quiet_lightning()
    # Batches are drawn in microseconds: workers would only cost.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*log_every_n_steps.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # the metrics are of all devices
    torch.set_num_threads(config.threads)
    os.environ["OMP_NUM_THREADS"] = str(config.threads)  # else Lightning shares out all cores
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _engine(network: nn.Module, trainer: pl.Trainer, asked: str) -> str:
    """The engine that will train; what was asked for where the network has none."""
    if not isinstance(network, NTM):
        return asked
    try:
        return network.engine_for(trainer.strategy.root_device, precision_of(trainer))
    except ValueError as error:
        raise ConfigurationError(one_line(error)) from error


def _accelerator(network: nn.Module, config: DictConfig) -> tuple[str, str | None]:
    """Where to train, and what there is to say of it; several devices are Lightning's to find."""
    asked, one = config.trainer.accelerator, str(config.trainer.devices) == "1"
    if not one or config.trainer.strategy != "auto":
        return asked, None
    dtype = _dtype(config.trainer.precision or 32)
    return accelerators.choose(network, asked, dtype, "trainer.accelerator")


def precision_of(trainer: pl.Trainer) -> torch.dtype:
    """That of the weights, or something lower than single where it is mixed."""
    return _dtype(trainer.precision)


def _dtype(precision: Any) -> torch.dtype:
    bits = str(precision).removesuffix("-true")
    return {"32": torch.float32, "64": torch.float64}.get(bits, torch.bfloat16)


def where_it_stands(folder: RunFolder, config: DictConfig) -> tuple[Path | None, bool]:
    """The checkpoint to go on from, and whether the run is finished."""
    if config.trainer.fast_dev_run:
        return None, False
    standing = folder.standing(config)
    if standing != runs.RESUME:
        return None, standing == runs.SKIP
    try:
        load_checkpoint(folder.last)
    except ConfigurationError as error:
        older = _newest(folder)
        if older is None:
            raise ConfigurationError(f"{error}; overwrite=true starts the run over") from error
        return older, False
    return folder.last, False


def _newest(folder: RunFolder) -> Path | None:
    """The newest of the other checkpoints that can be loaded."""
    found = {}
    for path in (folder.best, *folder.kept()):
        with suppress(ConfigurationError):
            found[path] = load_checkpoint(path).get("epoch", -1)
    return max(found, key=lambda path: found[path], default=None)


def _trainer(
    config: DictConfig, accelerator: str, data: SequenceData, stages: Stages, record: Record
) -> pl.Trainer:
    arguments = {name: value for name, value in config.trainer.items() if value is not None}
    arguments["accelerator"] = accelerator
    for name, hint in typing.get_type_hints(pl.Trainer.__init__).items():
        if name in arguments and name not in ("callbacks", "logger", "plugins", "profiler"):
            check_type(f"trainer.{name}", arguments[name], hint)
    fast = bool(arguments.get("fast_dev_run"))
    bar = arguments.pop("enable_progress_bar", True)
    summary = arguments.pop("enable_model_summary", True)
    callbacks: list[Any] = [stages, StopOnSignal(), TimeToTell()]
    if config.callbacks.pictures_every is not None and not fast:
        callbacks.append(Pictures(config.callbacks.pictures_every))
    if bar:
        callbacks.append(Bar(f"{config.model.name} seed {config.seed}"))
    if summary:
        callbacks.append(Summary())
    if not fast:
        callbacks.append(record)
    loggers = [build(node, f"logger.{name}") for name, node in config.logger.items()]
    for name, logger in zip(config.logger, loggers, strict=True):
        _check_logger(str(name), logger, Path(config.folder))
    if arguments.pop("logger", None) is False or fast:
        loggers = []
    callbacks += _extra(arguments, "callbacks")
    plugins = [AtomicCheckpointIO(), *_extra(arguments, "plugins")]
    try:
        return pl.Trainer(
            **{"default_root_dir": config.folder, **plain_values(arguments)},
            max_epochs=data.epochs,
            logger=loggers,
            callbacks=callbacks,
            plugins=plugins,
            deterministic=config.deterministic,
            enable_progress_bar=bar,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
        )
    except Exception as error:
        raise ConfigurationError(f"trainer: {one_line(error)}") from error


def _check_logger(name: str, logger: Any, folder: Path) -> None:
    """Refuse what is no logger, and one whose metrics.csv would take the place of the run's."""
    if not isinstance(logger, Logger):
        raise ConfigurationError(
            f"logger.{name} must be one of Lightning's loggers, got {type(logger).__name__}"
        )
    if isinstance(logger, CSVLogger) and Path(logger.log_dir).resolve() == folder.resolve():
        raise ConfigurationError(
            f"logger.{name} must write elsewhere: {folder}/metrics.csv is the run's own"
        )


def plain_values(arguments: dict[Any, Any]) -> dict[str, Any]:
    """Arguments as plain values; nodes that describe an object are built."""
    return {
        str(name): build(value, f"trainer.{name}")
        if isinstance(value, DictConfig) and "_target_" in value
        else plain(value)
        for name, value in arguments.items()
    }


def _extra(arguments: dict[Any, Any], name: str) -> list[Any]:
    """The user's own callbacks or plugins, one ``_target_`` node or a list of them."""
    given = arguments.pop(name, None)
    if given is None:
        return []
    nodes = [given] if isinstance(given, DictConfig) else list(given)
    return [build(node, f"trainer.{name}") for node in nodes]
