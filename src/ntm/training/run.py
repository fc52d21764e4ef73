"""One run, from its beginning to a complete run folder."""

from __future__ import annotations

import logging
import math
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import EarlyStopping, Timer
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from ntm.commands import launchers
from ntm.commands.command import FAILED
from ntm.commands.configuration import ConfigurationError, as_override, flatten, one_line, plain
from ntm.folders import runs
from ntm.folders.locks import Held, Lock
from ntm.folders.runs import RunFolder, load_checkpoint, writing
from ntm.machine import NTM
from ntm.tasks import Task
from ntm.tasks.kinds import DRAWN
from ntm.training.assembly import Run, precision_of, prepare, where_it_stands
from ntm.training.learner import Diverged
from ntm.training.loggers import Service
from ntm.training.record import AtomicCheckpointIO, solved_at
from ntm.training.signals import Interrupted, terminable, undisturbed
from ntm.views.evaluation import load_weights, write_evaluation
from ntm.views.probing import point_name

logger = logging.getLogger("ntm")


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
        try:
            with Lock(run.folder.path, waits) as run.record.lock:
                # Another process may have trained here since.
                run.resume_from, run.finished = where_it_stands(run.folder, run.config)
                if not run.finished:
                    return _execute(run, started)
        except ConfigurationError:
            with suppress(OSError):  # it goes again where the lock alone has made it
                os.removedirs(run.folder.path)
            raise
    logger.info("%s is finished and left alone; overwrite=true starts over", run.folder.path)
    return run.folder.read_result()


def _execute(run: Run, started: float) -> dict[str, Any]:
    folder, resumes = run.folder, run.resume_from is not None
    earlier = folder.read_result().get("seconds", 0.0) if resumes else 0.0
    with _services(run) as services:
        folder.begin(run.config, resume=resumes)
        run.record.begin(started, earlier)
        return _train(run, services)


def _train(run: Run, services: Sequence[Service]) -> dict[str, Any]:
    folder = run.folder
    with _train_log(folder), terminable():
        _write_beginning(run)
        for service in services:
            service.keep()
        if run.accelerator is not None:
            logger.info(run.accelerator)
        _advise(run.config)
        try:
            stopped = _told_to_stop(run)
            if stopped is None:
                _go_back(run)
                stopped = _fit(run)
            _finish(run, stopped)
        except (Interrupted, SystemExit, KeyboardInterrupt) as stop:
            reason = str(stop) if isinstance(stop, Interrupted) else "stopped at once"
            with undisturbed():
                _tell_of_the_stop(run, reason)
            raise Interrupted(reason) from stop
        except Held:
            raise  # another process writes here now
        except BaseException as error:
            if not folder.config.is_file():  # nothing is written where nothing is left
                raise RuntimeError(
                    f"{folder.path} was removed while this run was at it; the same command starts "
                    "it again"
                ) from error
            if run.learner.snapshot is not None:
                _keep_snapshot(run)
            told = reason = _reason(error)
            with suppress(OSError):  # a full disk must not hide the reason
                told = folder.write_failure(reason, seconds=round(run.record.seconds, 1))
                with open(folder.log, "a") as file:
                    traceback.print_exc(file=file)
            if told != reason:
                raise RuntimeError(f"in another process of the run: {told}") from error
            raise
    return folder.read_result()


def _tell_of_the_stop(run: Run, reason: str) -> None:
    folder = run.folder
    seconds = round(run.record.seconds, 1)
    folder.write_result(status=runs.INTERRUPTED, reason=reason, seconds=seconds)
    goes_on = folder.last if folder.last.is_file() else "the beginning"
    logger.info("interrupted (%s); the same command goes on from %s", reason, goes_on)


@contextmanager
def _services(run: Run) -> Iterator[list[Service]]:
    """Reach what a run is logged by before anything is written; say there how it ended."""
    services = [log for log in run.trainer.loggers if isinstance(log, Service)]
    config = flatten(plain(run.config))
    try:
        for service in services:
            service.open(config, afresh=run.config.overwrite)
        yield services
    finally:
        finished = run.folder.read_result().get("status") == runs.FINISHED
        for service in services:
            if service.known:
                service.close(finished)


def _keep_snapshot(run: Run) -> None:
    """Keep the step at which training diverged, beside the last good checkpoint."""
    with suppress(OSError):  # a full disk must not hide the reason
        AtomicCheckpointIO().save_checkpoint(run.learner.snapshot or {}, run.folder.diverged)
        again = as_override("replay", run.folder.path)
        logger.info("run_train.py %s computes the step again, in double precision too", again)


def _advise(config: DictConfig) -> None:
    """Say before it is tried what is known not to be learned."""
    start = OmegaConf.select(config, "model.network.initial_weighting")
    if start == "uniform":
        logger.info(
            "model.network.initial_weighting=uniform is often not learned: heads that start spread "
            "over all locations have to find one; first_location and learned begin with one"
        )
    usual = config.model.get("sequences", 0)
    if 3 * config.sequences < usual:
        logger.info(
            "sequences=%s is less than a third of the budget that %s has for %s (%s): it is "
            "rarely learned in so few; sequences=%s or more%s",
            config.sequences,
            config.model.name,
            config.task.name,
            usual,
            math.ceil(usual / 3),
            ", or more steps by batch_size=2" if config.batch_size > 2 else "",
        )


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _mute() -> None:
    """One process of a run speaks for all; what Lightning itself says follows the same rule."""
    logger.setLevel(logging.WARNING)


def _go_back(run: Run) -> None:
    """Drop from the records what will be trained again."""
    if run.resume_from is not None:
        checkpoint = load_checkpoint(run.resume_from)
        if run.resume_from != run.folder.last:
            what = "is damaged" if run.folder.last.is_file() else "is missing"
            logger.warning("%s %s: an older checkpoint takes its place", run.folder.last, what)
        _have_a_best(run.folder, run.resume_from)
        sequences = run.data.sequences_after(checkpoint["epoch"])
        run.folder.forget_after(sequences)
        logger.info("going on after %s sequences from %s", f"{sequences:,}", run.resume_from)


def _have_a_best(folder: RunFolder, stands_for_it: Path) -> None:
    """What is evaluated at the end must be there, also where no validation is better any more."""
    try:
        load_checkpoint(folder.best)
    except ConfigurationError:
        what = "is damaged" if folder.best.is_file() else "is missing"
        logger.warning("%s %s: %s stands for it", folder.best, what, stands_for_it)
        with writing(folder.best) as part:
            shutil.copyfile(stands_for_it, part)


def _follow(run: Run) -> dict[str, Any]:
    """The part of a process that is not the first of its run: it computes, and writes nothing.

    The first process tells how the run went; this one leaves nothing to tell.
    """
    parent = os.getppid()
    try:
        _fit(run)
        _test(run)
    except (Interrupted, Held, Diverged):
        pass  # in all processes after the same step
    except Exception as error:
        # Without a parent the run was killed, and its folder may be another's by now. Where the
        # first process failed it has told why, and what broke here is the connection to it.
        told = reason = _reason(error)
        if run.folder.read_result().get("status") != runs.RUNNING or os.getppid() != parent:
            sys.exit(FAILED)
        with suppress(OSError):
            told = run.folder.write_failure(reason)
        if told != reason:
            sys.exit(FAILED)
        raise  # all that the first process sees of it is a broken connection
    return {}


def _told_to_stop(run: Run) -> str | None:
    """Why an earlier process ended the training of a run that goes on; None where it did not.

    What is left is to evaluate it.
    """
    stopped = run.folder.read_result().get("stopped")
    if run.resume_from is None or stopped is None:
        return None
    checkpoint = load_checkpoint(run.resume_from)
    for part in (run.stages, run.record):
        part.load_state_dict(checkpoint["callbacks"][part.state_key])
    run.learner.on_load_checkpoint(checkpoint)
    logger.info("was stopped by %s; evaluating", stopped)
    return stopped


def _fit(run: Run) -> str | None:
    """Train; what ended it before the budget was spent, if a callback did."""
    network = run.learner.network
    if isinstance(network, NTM):  # before training is timed
        network.load_engine(run.trainer.strategy.root_device, precision_of(run.trainer))
    run.trainer.fit(
        run.learner,
        datamodule=run.data,
        ckpt_path=run.resume_from,
        weights_only=True,
    )
    if run.trainer.current_epoch >= run.data.epochs:
        return None
    if not run.trainer.should_stop:
        raise Interrupted(f"the Trainer stopped after epoch {run.trainer.current_epoch}")
    stopped = _stopped_by(run.trainer)
    logger.info("stopped by %s", stopped)
    if not run.record.history:
        raise RuntimeError(f"there is nothing to evaluate: before the first step, {stopped}")
    if run.trainer.is_global_zero:
        run.folder.write_result(stopped=stopped)
    return stopped


def _stopped_by(trainer: pl.Trainer) -> str:
    """The callback that set ``trainer.should_stop``, and why, where it says so."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message is not None:
            return f"{type(callback).__name__}: {one_line(callback.stopping_reason_message)}"
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0:
            return f"{type(callback).__name__}: its time is over"
    return "a callback that set trainer.should_stop"


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


def _finish(run: Run, stopped: str | None) -> None:
    """Evaluate best.ckpt and write what the run came to, and what stopped it if it was."""
    device = run.trainer.strategy.root_device
    history = run.record.history
    stages = run.stages.curriculum.report(history[-1][0], run.stages.score)
    test = _test(run)
    network = run.learner.network.to(device)
    asked = run.config.evaluation
    points = [run.task.point(plain(point)) for point in asked.at]
    kinds = list(asked.kinds)
    draw = run.config.callbacks.figures
    rows = write_evaluation(
        run.folder, network, run.task, points, kinds, asked.sequences, "best", draw=draw
    )
    goal = run.task.solved
    first, solved = solved_at(history, goal.below)
    by_point = _by_point(run.task, rows, goal.metric)
    final = {name: test[name] for name in {f"test/{goal.metric}", "test/loss"}}
    final["test/sequences_to_solve"] = math.nan if solved is None else float(solved)
    for log in run.trainer.loggers:
        if isinstance(log, Service):
            log.end(by_point | final)
            continue
        log.log_metrics(by_point, step=history[-1][0])
        _log_end(log, flatten(plain(run.config)), final, history[-1][0])
        log.save()
    run.folder.write_result(
        status=runs.FINISHED,
        stopped=stopped,
        sequences=history[-1][0],
        sequences_to_solve=solved,
        sequences_to_first_solve=first,
        solved_when=goal._asdict(),
        stages=stages,
        skipped_steps=run.learner.skipped_steps,
        **{
            name: test[f"test/{name}"]
            for name in ("wrong_bits_per_sequence", "bits_per_sequence", "bits_above_optimum")
            if f"test/{name}" in test
        },
        seconds=round(run.record.seconds, 1),
        sequences_per_second=round(history[-1][0] / run.record.training_seconds, 1),
    )


def _log_end(log: Logger, config: dict[str, Any], final: dict[str, float], step: int) -> None:
    """The configuration and what it came to; TensorBoard shows the two side by side."""
    if isinstance(log, TensorBoardLogger):
        log.log_hyperparams(config, final, step=step)
        return
    log.log_hyperparams(config)
    log.log_metrics(final, step=step)


def _by_point(task: Task, rows: Sequence[dict[str, Any]], metric: str) -> dict[str, float]:
    """What the closing evaluation found, for TensorBoard: a tag a point and kind."""
    found = {}
    for row in rows:
        at = point_name(task, tuple(row[number] for number in task.numbers))
        of_kind = "" if row["kind"] == DRAWN else f"/{row['kind']}"
        for name in ("exact", metric):
            found[f"evaluation/{name}/{at}{of_kind}"] = row[name]
    return found


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
