"""One run, from its configuration to a complete run folder."""

from __future__ import annotations

import logging
import math
import os
import platform
import signal
import sys
import threading
import time
import traceback
import typing
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from omegaconf import DictConfig
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from rich.console import Console
from rich.table import Table
from torch import nn

from ntm import launchers, runs
from ntm.callbacks import (
    AtomicCheckpointIO,
    Bar,
    Interrupted,
    Pictures,
    Record,
    Stages,
    StopOnSignal,
    Summary,
    logger,
    solved_at,
)
from ntm.command import DONE, FAILED, HELD, INTERRUPTED
from ntm.configuration import (
    ConfigurationError,
    build,
    check_type,
    check_values,
    flatten,
    one_line,
    plain,
    quiet_lightning,
)
from ntm.curriculum import Curriculum
from ntm.data import SequenceData
from ntm.evaluation import load_weights, table, write_evaluation
from ntm.learner import Learner
from ntm.locks import Held, Lock
from ntm.machine.ntm import ENGINES, NTM
from ntm.runs import RunFolder, load_checkpoint, read_rows
from ntm.tasks import Task


@dataclass
class Run:
    """A run that can begin: everything is built and checked, nothing is written."""

    config: DictConfig
    folder: RunFolder
    task: Task
    data: SequenceData
    learner: Learner
    trainer: pl.Trainer
    stages: Stages
    record: Record
    resume_from: Path | None
    finished: bool


def prepare(config: DictConfig) -> Run:
    """Build a run from the configuration of `configs/train.yaml`.

    Raises:
        ConfigurationError: A value cannot be; the message names its key.

    """
    check_values(config)
    if config.engine not in ENGINES:
        raise ConfigurationError(
            f"engine must be one of {', '.join(ENGINES)}, got {config.engine!r}"
        )
    _set_up_libraries(config)
    task: Task = build(config.task, "task")
    torch.manual_seed(config.seed)
    network: nn.Module = build(
        config.model.network,
        "model.network",
        input_size=task.input_size,
        output_size=task.output_size,
    )
    if config.init_from is not None:
        other = RunFolder.existing(config.init_from, "init_from")
        best = other.checkpoint("best")
        load_weights(network, load_checkpoint(best), best)
    learner = _learner(network, config)
    folder = RunFolder(config.folder)
    data = SequenceData(
        task,
        config.seed,
        config.batch_size,
        config.sequences,
        config.validate_every,
        config.num_workers,
    )
    curriculum: Curriculum = build(
        config.curriculum,
        "curriculum",
        difficulties=task.difficulties,
        sequences=data.batches * data.batch_size,
    )
    stages = Stages(curriculum)
    record = Record(folder, config.callbacks.keep_every, config.callbacks.keep_last)
    trainer = _trainer(config, data, stages, record)
    _check_devices(trainer, config)
    config = config.copy()
    config.engine = _engine(network, trainer, config.engine)
    resume_from, finished = _where_it_stands(folder, config)
    return Run(config, folder, task, data, learner, trainer, stages, record, resume_from, finished)


def train(config: DictConfig, started: float | None = None) -> dict[str, Any]:
    """Train a run to its end, or go on where it stopped.

    Args:
        config: As `configs/train.yaml` composes it.
        started: When the command began, by the monotonic clock; absent, now.

    Returns:
        The contents of result.json; empty for a ``fast_dev_run``, which leaves no folder.

    Raises:
        ConfigurationError: The configuration cannot be; nothing is written.
        Interrupted: Asked to stop; the same call goes on from the last validation.
        Held: Another process trains in this folder; nothing is written.
        Exception: The run failed; result.json has the reason.

    """
    started = time.monotonic() if started is None else started
    run = prepare(config)
    if not run.trainer.is_global_zero:
        _mute()
    if run.trainer.fast_dev_run:  # type: ignore[attr-defined]
        run.trainer.fit(run.learner, datamodule=run.data)
        run.trainer.test(run.learner, datamodule=run.data, verbose=False)
        logger.info("one batch of each kind ran; nothing is written")
        return {}
    if not run.trainer.is_global_zero:
        return _follow(run)  # its first process holds the lock
    if not run.finished:
        # A launcher may have moved the run here from a machine that is lost.
        waits = logger.info if launchers.is_job() else None
        with Lock(run.folder.path, waits) as run.record.lock:
            # Another process may have trained here since.
            run.resume_from, run.finished = _where_it_stands(run.folder, run.config)
            if not run.finished:
                return _execute(run, started)
    logger.info("%s is finished and left alone; overwrite=true starts over", run.folder.path)
    return run.folder.read_result()


def run_job(config: DictConfig, started: float | None = None) -> int:
    """Train a run, say how it went, and return the exit status of the command.

    Raises:
        ConfigurationError: The configuration cannot be; nothing is written.

    """
    with console_log():
        try:
            result = train(config, started)
        except ConfigurationError:
            raise
        except Interrupted:
            return INTERRUPTED
        except Held as held:
            print(f"held: {held}", file=sys.stderr)
            return HELD
        except Exception as error:
            print(f"failed: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
            return FAILED
    if result:
        report(config, result)
    return DONE


def report(config: DictConfig, result: dict[str, Any]) -> None:
    """Print what a run came to, and how to look at it."""
    folder = RunFolder(config.folder)
    console = Console()
    facts = Table(
        show_header=False, title=f"{result['task']}, {result['model']}, seed {result['seed']}"
    )
    facts.add_column(style="dim")
    facts.add_column()
    solve = result["sequences_to_solve"]
    facts.add_row("solved at", f"{solve:,} sequences" if solve else "not solved")
    facts.add_row(
        "test set, best.ckpt",
        f"{result['wrong_bits_per_sequence']:.3f} wrong bits, "
        f"{result['bits_per_sequence']:.3f} bits per sequence",
    )
    facts.add_row(
        "trained",
        f"{result['sequences']:,} sequences in {result['seconds']:.0f} s, "
        f"{result['sequences_per_second']:,.0f}/s in training",
    )
    facts.add_row("parameters", f"{result['parameters']:,}")
    facts.add_row("folder", str(folder.path))
    console.print(facts)
    if folder.lengths.is_file():
        rows = [row for row in read_rows(folder.lengths) if row["checkpoint"] == "best"]
        console.print(table(rows))
    console.print(
        f"Curves and pictures: tensorboard --logdir {folder.path.parent.parent}", soft_wrap=True
    )


@contextmanager
def console_log() -> Iterator[None]:
    """Show what the project says on stderr."""
    handler = _StderrHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _StderrHandler(logging.Handler):
    """Writes to whatever stderr is now, so that lines go above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


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
        return network.engine_for(trainer.strategy.root_device, _precision(trainer))
    except ValueError as error:
        raise ConfigurationError(one_line(error)) from error


def _precision(trainer: pl.Trainer) -> torch.dtype:
    """That of the weights, or something lower than single where it is mixed."""
    dtypes = {"32-true": torch.float32, "64-true": torch.float64}
    return dtypes.get(str(trainer.precision), torch.bfloat16)


def _where_it_stands(folder: RunFolder, config: DictConfig) -> tuple[Path | None, bool]:
    """The checkpoint to go on from, and whether the run is finished."""
    if config.trainer.fast_dev_run:
        return None, False
    standing = folder.standing(config)
    if standing != runs.RESUME:
        return None, standing == runs.SKIP
    try:
        load_checkpoint(folder.last)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; overwrite=true starts the run over") from error
    return folder.last, False


def _learner(network: nn.Module, config: DictConfig) -> Learner:
    optimizer = config.optimizer
    algorithm = build(optimizer.algorithm, "optimizer.algorithm")
    penalty = build(config.model.get("penalty"), "model.penalty")
    try:
        learner = Learner(
            network,
            algorithm,
            optimizer.decay,
            optimizer.clip_value,
            optimizer.clip_norm,
            optimizer.clip_factor,
            penalty,
        )
    except ValueError as error:
        raise ConfigurationError(f"optimizer.{one_line(error)}") from error
    try:
        algorithm([nn.Parameter(torch.zeros(1))])
    except Exception as error:  # whatever it does not take
        raise ConfigurationError(f"optimizer.algorithm: {one_line(error)}") from error
    return learner


def _trainer(config: DictConfig, data: SequenceData, stages: Stages, record: Record) -> pl.Trainer:
    arguments = {name: value for name, value in config.trainer.items() if value is not None}
    for name, hint in typing.get_type_hints(pl.Trainer.__init__).items():
        if name in arguments and name not in ("callbacks", "logger", "plugins", "profiler"):
            check_type(f"trainer.{name}", arguments[name], hint)
    fast = bool(arguments.get("fast_dev_run"))
    bar = arguments.pop("enable_progress_bar", True)
    summary = arguments.pop("enable_model_summary", True)
    callbacks: list[Any] = [stages, StopOnSignal()]
    if config.callbacks.pictures_every is not None and not fast:
        callbacks.append(Pictures(config.callbacks.pictures_every))
    if bar:
        callbacks.append(Bar(f"{config.model.name} seed {config.seed}"))
    if summary:
        callbacks.append(Summary())
    if not fast:
        callbacks.append(record)
    loggers = [build(node, f"logger.{name}") for name, node in config.logger.items()]
    given = arguments.pop("logger", None)
    if given not in (None, False):
        raise ConfigurationError(
            f"trainer.logger must be null or false, got {given!r}; logger= chooses the loggers"
        )
    if given is False or fast:
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


SECONDS_TO_TELL = 15
"""What the first process of a run is given to notice, write and say that another has died."""
_kill_all = _ChildProcessObserver._terminate_all


def _kill_late(observer: _ChildProcessObserver) -> None:
    """Kill a run whose other processes have died, once the first has had time to tell.

    Lightning does it up to five seconds after, which may be before the first has noticed.
    """
    time.sleep(SECONDS_TO_TELL)
    _kill_all(observer)


_ChildProcessObserver._terminate_all = _kill_late  # type: ignore[method-assign,assignment]


def _check_devices(trainer: pl.Trainer, config: DictConfig) -> None:
    """Refuse ways of using several devices that would change what is trained."""
    strategy = trainer.strategy
    scripts = isinstance(strategy.launcher, _SubprocessScriptLauncher | None)
    ddp = isinstance(strategy, DDPStrategy) and scripts
    if not ddp and not isinstance(strategy, SingleDeviceStrategy):
        raise ConfigurationError(
            f"trainer.strategy must be auto or ddp, got {config.trainer.strategy!r}"
        )
    if config.batch_size < trainer.world_size:
        raise ConfigurationError(
            f"batch_size must be at least the number of devices, {trainer.world_size}, over which "
            f"it is shared out, got {config.batch_size}"
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


def _execute(run: Run, started: float) -> dict[str, Any]:
    folder, resumes = run.folder, run.resume_from is not None
    earlier = folder.read_result().get("seconds", 0.0) if resumes else 0.0
    folder.begin(run.config, resume=resumes)
    run.record.begin(started, earlier)
    with _train_log(folder), _terminable():
        _write_beginning(run)
        try:
            _go_back(run)
            _fit(run)
            _finish(run)
        except (Interrupted, SystemExit, KeyboardInterrupt) as stop:
            reason = str(stop) if isinstance(stop, Interrupted) else "stopped at once"
            seconds = round(run.record.seconds, 1)
            folder.write_result(status=runs.INTERRUPTED, reason=reason, seconds=seconds)
            goes_on = folder.last if folder.last.is_file() else "the beginning"
            logger.info("interrupted (%s); the same command goes on from %s", reason, goes_on)
            raise Interrupted(reason) from stop
        except Held:
            raise  # another process writes here now
        except BaseException as error:
            told, reason = folder.read_result(), _reason(error)
            elsewhere = told["status"] == runs.FAILED and told["reason"] != reason
            with suppress(OSError):  # a full disk must not hide the reason
                if not elsewhere:
                    seconds = round(run.record.seconds, 1)
                    folder.write_result(status=runs.FAILED, reason=reason, seconds=seconds)
                with open(folder.log, "a") as file:
                    traceback.print_exc(file=file)
            if elsewhere:
                raise RuntimeError(f"in another process of the run: {told['reason']}") from error
            raise
    return folder.read_result()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM leave as Ctrl-C does, also where `StopOnSignal` does not listen."""
    unheard = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not unheard or threading.current_thread() is not threading.main_thread():
        yield
        return
    # As Ctrl-C: Lightning then also ends the other processes of the run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _mute() -> None:
    """One process of a run speaks for all; what Lightning itself says follows the same rule."""
    logger.setLevel(logging.WARNING)


def _go_back(run: Run) -> None:
    """Drop from the records what will be trained again."""
    if run.resume_from is not None:
        checkpoint = load_checkpoint(run.resume_from)
        sequences = run.data.sequences_after(checkpoint["epoch"])
        run.folder.forget_after(sequences)
        logger.info("going on after %s sequences from %s", f"{sequences:,}", run.resume_from)


def _follow(run: Run) -> dict[str, Any]:
    """The part of a process that is not the first of its run: it computes, and writes nothing.

    The first process tells how the run went; this one leaves nothing to tell.
    """
    parent = os.getppid()
    try:
        _fit(run)
        _test(run)
    except (Interrupted, Held):
        pass  # in all processes after the same step
    except Exception as error:
        # Without a parent the run was killed, and its folder may be another's by now. Where the
        # first process failed it has told why, and what broke here is the connection to it.
        told = run.folder.read_result().get("status") != runs.RUNNING
        if told or os.getppid() != parent:
            sys.exit(FAILED)
        with suppress(OSError):
            run.folder.write_result(status=runs.FAILED, reason=_reason(error))
        raise  # all that the first process sees of it is a broken connection
    return {}


def _fit(run: Run) -> None:
    network = run.learner.network
    if isinstance(network, NTM):  # before training is timed
        network.load_engine(run.trainer.strategy.root_device, _precision(run.trainer))
    run.trainer.fit(
        run.learner,
        datamodule=run.data,
        ckpt_path=run.resume_from,
        weights_only=True,
    )
    if run.trainer.current_epoch < run.data.epochs:
        raise Interrupted(f"the Trainer stopped after epoch {run.trainer.current_epoch}")


def _write_beginning(run: Run) -> None:
    config = run.config
    run.folder.write_result(
        status=runs.RUNNING,
        reason=None,
        task=run.task.name,
        model=config.model.name,
        name=config.name,
        seed=config.seed,
        engine=config.engine,
        accelerator=run.trainer.strategy.root_device.type,
        threads=config.threads,
        parameters=sum(p.numel() for p in run.learner.parameters()),
        batch_size=config.batch_size,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("ntm", "torch", "pytorch-lightning", "numpy")},
        },
    )


def _finish(run: Run) -> None:
    """Evaluate best.ckpt and write what the run came to."""
    device = run.trainer.strategy.root_device
    history = run.record.history
    stages = run.stages.curriculum.report(history[-1][0], run.stages.wrong_bits)
    test = _test(run)
    network = run.learner.network.to(device)
    lengths = run.config.evaluation.lengths
    write_evaluation(
        run.folder, network, run.task, lengths, run.config.evaluation.sequences, "best"
    )
    first, solved = solved_at(history)
    for log in run.trainer.loggers:
        numbers = {name: test[f"test/{name}"] for name in ("wrong_bits_per_sequence", "loss")}
        final = {f"test/{name}": value for name, value in numbers.items()}
        final["test/sequences_to_solve"] = math.nan if solved is None else float(solved)
        log.log_hyperparams(flatten(plain(run.config)), final, step=history[-1][0])  # type: ignore[call-arg]
        log.save()
    run.folder.write_result(
        status=runs.FINISHED,
        sequences=history[-1][0],
        sequences_to_solve=solved,
        sequences_to_first_solve=first,
        stages=stages,
        wrong_bits_per_sequence=test["test/wrong_bits_per_sequence"],
        bits_per_sequence=test["test/bits_per_sequence"],
        seconds=round(run.record.seconds, 1),
        sequences_per_second=round(history[-1][0] / run.record.training_seconds, 1),
    )


def _test(run: Run) -> dict[str, float]:
    """Metrics of best.ckpt on the test set, by name; leaves its weights in the network."""
    load_weights(run.learner.network, load_checkpoint(run.folder.best), run.folder.best)
    run.trainer.test(run.learner, datamodule=run.data, verbose=False)
    return {name: float(value) for name, value in run.trainer.callback_metrics.items()}


@contextmanager
def _train_log(folder: RunFolder) -> Iterator[None]:
    """Also write what the run says to train.log."""
    handler = logging.FileHandler(folder.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
