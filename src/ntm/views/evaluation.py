"""A trained run at any points and memory size: its table and its pictures.

In the precision of its weights: a run of ``trainer.precision=64-true`` is evaluated in double.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ntm import accelerators
from ntm.commands.command import DONE, FAILED
from ntm.commands.configuration import (
    ConfigurationError,
    build,
    check_evaluation,
    names,
    one_line,
    plain,
    quiet_lightning,
)
from ntm.commands.streams import show
from ntm.commands.trust import check_trusted
from ntm.folders.runs import RunFolder, check_writable, load_checkpoint, write_rows, write_whole
from ntm.machine import NTM
from ntm.tasks import Point, Task
from ntm.tasks.kinds import DRAWN
from ntm.views import figures
from ntm.views.asked import evaluation_kinds, evaluation_points
from ntm.views.probing import Answer, evaluate, inside, point_inside, point_name

PRECISIONS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What a run's weights can be of: those of the Trainer's ``-true``."""


def load(run: str | Path, checkpoint: str = "best", allow: Collection[str] = ()) -> nn.Module:
    """A trained network from its run folder, ready to be used, in the precision of its weights.

    Args:
        run: The folder, ``outputs/<name>/<model>/seed_<seed>``, or a checkpoint inside it.
        checkpoint: ``best`` or ``last``, or another that the folder holds; of a folder.
        allow: Names of classes that its configuration may build beside those of this project and
            a few of torch's (`ntm.commands.trust`), for folders that you trust.

    Raises:
        ConfigurationError: There is no such run or checkpoint, it is damaged, or it names what
            is not allowed.

    """
    if Path(run).suffix == ".ckpt":
        run, checkpoint = Path(run).parent.parent, Path(run).stem
    folder = RunFolder.existing(run, "run")
    _, network = restore(folder, checkpoint, allow)
    return network


def restore(
    folder: RunFolder, checkpoint: str, allow: Collection[str] = ()
) -> tuple[Task, nn.Module]:
    """The task of a run and its network at a checkpoint, in evaluation mode on the CPU.

    Of what its configuration names only what is trusted, or in ``allow``, is built.
    """
    weights = load_checkpoint(folder.checkpoint(checkpoint))
    config = folder.read_config()
    check_trusted(config.get("task"), "task", allow)
    check_trusted(config.model.get("network"), "model.network", allow)
    task: Task = build(config.task, "task")
    if "engine" in config.model.network:  # that of the training machine may not run on this one
        config.model.network.engine = "auto"
    network: nn.Module = build(
        config.model.network,
        "model.network",
        input_size=task.input_size,
        output_size=task.output_size,
    )
    network.to(_precision_of(weights))
    load_weights(network, weights, folder.checkpoint(checkpoint))
    return task, network.eval()


def _precision_of(checkpoint: dict[str, Any]) -> torch.dtype:
    """That of a network's weights, all of which are of one."""
    found = [getattr(value, "dtype", None) for value in _weights(checkpoint).values()]
    return next((dtype for dtype in found if dtype in PRECISIONS), torch.float32)


def load_weights(network: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into a network, in the network's own precision.

    Raises:
        ConfigurationError: The weights are those of another network.

    """
    try:
        network.load_state_dict(_weights(checkpoint))
    except RuntimeError as error:
        reason = " ".join(one_line(error).split()[:40])
        raise ConfigurationError(
            f"checkpoint {path} is of another network than {type(network).__name__}: {reason}"
        ) from error


def _weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Those of the network, by the names that it has for them."""
    prefix = "network."
    return {
        name.removeprefix(prefix): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }


def evaluate_run(config: DictConfig) -> list[dict[str, Any]]:
    """Evaluate a run as `configs/eval.yaml` says; writes its table and pictures.

    Raises:
        ConfigurationError: The run, its checkpoint or a value cannot be used; nothing is written.
        Unwritten: The results could not be written; it has them.

    """
    check_evaluation(config)
    torch.set_num_threads(config.threads)
    folder = RunFolder.existing(config.run, "run")
    check_writable(_results_of(config).evaluations.parent)
    task, network = restore(folder, config.checkpoint, names(config.allow, "allow"))
    points = _asked(task, config, folder)
    kinds = evaluation_kinds(task, config.kinds, "kinds")
    resize_memory(network, config.memory_size)
    network.to(_device(network, config.accelerator))
    return write_evaluation(
        _results_of(config), network, task, points, kinds, config.sequences, config.checkpoint,
        _setting(folder, network, config.checkpoint),
    )  # fmt: skip


def _results_of(config: DictConfig) -> RunFolder:
    """Where the results of an evaluation go."""
    return RunFolder(config.run if config.folder is None else config.folder)


def _asked(task: Task, config: DictConfig, folder: RunFolder) -> list[Point]:
    """The points that a command asks for; else those of the run's own evaluation."""
    if config.lengths is not None and list(task.numbers) != ["length"]:
        raise ConfigurationError(
            f"lengths is for tasks whose one number is length, got {task.name}, which has "
            f"{', '.join(task.numbers)}: set at"
        )
    key = "at" if config.lengths is None else "lengths"
    given = config[key]
    if given is None:
        before = folder.read_config().evaluation  # runs of before have lengths
        given = before.get("at", before.get("lengths"))
    return [task.point(plain(value)) for value in evaluation_points(task, given, key)]


def evaluate_job(config: DictConfig) -> int:
    """Evaluate a run, print its table, and return the exit status of the command.

    Raises:
        ConfigurationError: The run, its checkpoint or a value cannot be used; nothing is written.

    """
    unwritten = None
    try:
        rows = evaluate_run(config)
    except Unwritten as error:
        unwritten, rows = error, error.rows
    console = Console(markup=False)
    for shown in tables(rows):
        show(shown)
    if unwritten is not None:
        print(unwritten, file=sys.stderr)
        return FAILED
    folder = _results_of(config)
    console.print(f"Table and pictures: {folder.evaluations}, {folder.figures}", soft_wrap=True)
    return DONE


def _device(network: nn.Module, accelerator: str) -> torch.device:
    """The device that Lightning takes for the name of an accelerator; of auto, the fastest."""
    dtype = next(network.parameters()).dtype
    accelerator, why = accelerators.choose(network, accelerator, dtype, "accelerator")
    if why is not None:
        print(why, file=sys.stderr)
    from pytorch_lightning import Trainer

    quiet_lightning()
    try:
        trainer = Trainer(accelerator=accelerator, devices=1, logger=False)
    except Exception as error:
        raise ConfigurationError(f"accelerator: {one_line(error)}") from error
    return trainer.strategy.root_device


class Unwritten(Exception):
    """Results that could not be written: the message says why, ``rows`` has them."""

    def __init__(self, error: OSError, rows: list[dict[str, Any]]) -> None:
        super().__init__(f"the results could not be written: {one_line(error)}")
        self.rows = rows


def write_evaluation(
    folder: RunFolder,
    network: nn.Module,
    task: Task,
    points: Sequence[Point],
    kinds: Sequence[str],
    sequences: int,
    checkpoint: str,
    setting: str | None = None,
    draw: bool = True,
) -> list[dict[str, Any]]:
    """Evaluate a network, and put rows into eval/results.csv and, asked to, pictures into figures/.

    Answers, and the machine's inside, are drawn for the first of the kinds.

    Raises:
        Unwritten: The disk is full, say; it has the rows.

    """
    found = {kind: evaluate(network, task, points, sequences, kind) for kind in kinds}
    rows = [_with_checkpoint(row, checkpoint) for results, _ in found.values() for row in results]
    setting = _setting(folder, network, checkpoint) if setting is None else setting
    try:
        merge_evaluations(folder, rows)
        if draw:
            _draw(folder, network, task, points, found, setting)
    except OSError as error:
        raise Unwritten(error, rows) from error
    return rows


def _draw(
    folder: RunFolder,
    network: nn.Module,
    task: Task,
    points: Sequence[Point],
    found: Mapping[str, tuple[list[dict[str, Any]], dict[Point, Answer]]],
    setting: str,
) -> None:
    kinds = list(found)
    first = kinds[0]
    named = task.name if first == DRAWN else f"{task.name}, {first}"
    ending = setting if first == DRAWN else f"_{first}{setting}"
    for point, answer in found[first][1].items():
        figure = figures.draw_answer(answer, f"{named}, {task.label(point)}")
        name = f"{point_name(task, point)}{ending}.png"
        write_whole(folder.figures / name, figures.png(figure))
    point = point_inside(task, points)
    seen = inside(network, task, point, first)
    if seen is not None:
        title = f"Inside the machine: {named}, {task.label(point)}"
        name = f"inside_{point_name(task, point)}{ending}.png"
        write_whole(folder.figures / name, figures.png(figures.draw_inside(seen, title)))
    if len(kinds) > 1:
        exact = [[row["exact"] for row in results] for results, _ in found.values()]
        labels = [task.label(point) for point in points]
        figure = figures.draw_shares(exact, kinds, labels, f"{task.name}, share of exact sequences")
        write_whole(folder.figures / f"kinds{setting}.png", figures.png(figure))


def resize_memory(network: nn.Module, memory_size: int | None) -> None:
    """Change the memory of a network, if asked to.

    Raises:
        ConfigurationError: The network has no memory, or one that cannot have this size.

    """
    if memory_size is None:
        return
    if not isinstance(network, NTM):
        raise ConfigurationError(
            f"memory_size must be null for {type(network).__name__}, which has no memory, "
            f"got {memory_size}"
        )
    try:
        network.resize_memory(memory_size)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def merge_evaluations(folder: RunFolder, rows: list[dict[str, Any]]) -> None:
    """Put rows into eval/results.csv; a row takes the place of one with the same setting."""
    names = numbers_of(rows[0])
    identity = [*names, "kind", "memory_size", "checkpoint"]

    def setting(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[column]) for column in identity)

    def order(row: dict[str, Any]) -> tuple[Any, ...]:
        point = [int(row[name]) for name in names]
        kind = str(row["kind"])
        return str(row["checkpoint"]), kind != DRAWN, kind, int(row["memory_size"] or 0), *point

    kept = {setting(row): row for row in folder.read_evaluations()}
    kept |= {setting(row): row for row in rows}
    write_rows(folder.evaluations, sorted(kept.values(), key=order), header=rows[0])


def numbers_of(row: dict[str, Any]) -> list[str]:
    """The task's numbers in a row of eval/results.csv: what stands before its kind."""
    columns = list(row)
    return columns[: columns.index("kind")]


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Rows of eval/results.csv for a terminal: the first kind in full, and all in short."""
    kinds = list(dict.fromkeys(str(row["kind"]) for row in rows))
    first = kinds[0] if DRAWN not in kinds else DRAWN
    shown = [table([row for row in rows if row["kind"] == first])]
    return shown if len(kinds) == 1 else [*shown, kinds_table(rows)]


def kinds_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Share of exact sequences of each kind at each point."""
    names = numbers_of(rows[0])
    drawn = Table(title=f"Exact sequences of each kind, by {', '.join(names)}")
    drawn.add_column("kind", no_wrap=True)
    columns: dict[tuple[str, ...], None] = {}
    shares: dict[str, dict[tuple[str, ...], str]] = {}
    for row in rows:
        setting = tuple(str(row[name]) for name in (*names, "memory_size"))
        columns[setting] = None
        shares.setdefault(str(row["kind"]), {})[setting] = (
            f"{figures.per_cent(float(row['exact']))}%"
        )
    sizes = {size for *_, size in columns}
    for *point, size in columns:
        heading = ", ".join(point) + (f" (N {size})" if len(sizes) > 1 else "")
        drawn.add_column(heading, justify="right")
    for kind, found in shares.items():
        drawn.add_row(kind, *(found.get(setting, "") for setting in columns))
    return drawn


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of eval/results.csv as a table for a terminal of 80 columns."""
    checkpoints = sorted({str(row["checkpoint"]) for row in rows})
    kinds = [kind for kind in dict.fromkeys(str(row["kind"]) for row in rows) if kind != DRAWN]
    title = ", ".join(["Fresh sequences", *kinds, f"{' and '.join(checkpoints)}.ckpt"])
    drawn = Table(title=title)
    names = numbers_of(rows[0])
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        *((name, partial(_cell, name, "")) for name in names),
        ("memory", partial(_cell, "memory_size", "")),
        ("sequences", partial(_cell, "sequences", "")),
        ("wrong bits", partial(_cell, "wrong_bits_per_sequence", ".2f")),
        ("bits", partial(_cell, "bits_per_sequence", ".2f")),
        ("exact", lambda row: f"{figures.per_cent(float(row['exact']))}%"),
    ]
    if any(row.get("bits_above_optimum") not in (None, "") for row in rows):
        columns[-1] = ("above optimum", partial(_cell, "bits_above_optimum", ".2f"))
    elif len(names) == 1:  # more does not fit
        columns.insert(-2, ("± sd", partial(_cell, "wrong_bits_sd", ".2f")))
        columns.insert(-1, ("right", lambda row: f"{figures.per_cent(float(row['accuracy']), 2)}%"))
    for heading, _ in columns:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(cell(row) for _, cell in columns))
    return drawn


def _cell(name: str, style: str, row: dict[str, Any]) -> str:
    return format(float(row[name]), style) if style else str(row[name])


def _with_checkpoint(row: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """The row with its checkpoint after the memory size."""
    columns = list(row.items())
    after = list(row).index("memory_size") + 1
    return dict([*columns[:after], ("checkpoint", checkpoint), *columns[after:]])


def _setting(folder: RunFolder, network: nn.Module, checkpoint: str) -> str:
    """What a picture's name says of a setting other than best.ckpt with memory as trained."""
    resized = ""
    if isinstance(network, NTM):
        trained = folder.read_config().model.network.get("memory_size", network.memory_size)
        resized = f"_memory_{network.memory_size}" if network.memory_size != trained else ""
    return resized + ("" if checkpoint == "best" else f"_{checkpoint}")
