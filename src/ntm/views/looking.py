"""run_inside.py: a page that plays a sequence, a machine at work, and how its answers came."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from ntm.commands.command import DONE
from ntm.commands.configuration import ConfigurationError, check_inside, names, plain
from ntm.folders.runs import RunFolder, check_writable, kept_at, write_whole
from ntm.machine import NTM
from ntm.tasks import Point, Task
from ntm.tasks.kinds import DRAWN
from ntm.tasks.sampling import EVALUATION, places_at, sample_at
from ntm.views import animations, figures
from ntm.views.asked import evaluation_kinds, evaluation_points
from ntm.views.evaluation import resize_memory, restore
from ntm.views.player import player
from ntm.views.probing import evaluate, inside, point_inside, point_name

ELEMENTS = 10_000_000
"""Elements of memory over all steps that a page keeps, at most: 80 MB in a browser."""


class Seen:
    """Networks to look at, by their names, and the task that they all do."""

    def __init__(self, config: DictConfig) -> None:
        allow = names(config.allow, "allow")
        self.folders = [RunFolder.existing(run, "run") for run in names(config.run, "run")]
        self.networks: dict[str, nn.Module] = {}
        self.memory_size = config.memory_size
        tasks: list[Task] = []
        for folder in self.folders:
            for checkpoint in names(config.checkpoint, "checkpoint"):
                task, network = restore(folder, checkpoint, allow)
                if self.memory_size is not None:
                    resize_memory(network, self.memory_size)
                tasks.append(task)
                self.networks[f"{folder.path}, {checkpoint}.ckpt"] = network
        self.task = tasks[0]
        for task in tasks[1:]:
            widths = [(t.name, t.input_size, t.output_size) for t in (self.task, task)]
            if widths[0] != widths[1]:
                told = " and ".join(f"{n} with {i} inputs, {o} outputs" for n, i, o in widths)
                raise ConfigurationError(f"run must name runs of one task, got {told}")
        (self.kind,) = evaluation_kinds(self.task, [config.kind], "kind")

    @property
    def ending(self) -> str:
        """What the name of a file says of a setting other than the usual."""
        kind = "" if self.kind == DRAWN else f"_{self.kind}"
        size = "" if self.memory_size is None else f"_memory_{self.memory_size}"
        several = f"_of_{len(self.networks)}" if len(self.networks) > 1 else ""
        return f"{kind}{size}{several}"

    def title(self, point: Point) -> str:
        """Of a drawing at a point."""
        kind = "" if self.kind == DRAWN else f", {self.kind}"
        return f"{self.task.name}{kind}, {self.task.label(point)}"


def look_inside(config: DictConfig) -> list[Path]:
    """Draw what `configs/inside.yaml` asks for; the files that were written.

    Raises:
        ConfigurationError: A run, checkpoint or value cannot be used; nothing is written.

    """
    check_inside(config)
    place = RunFolder(names(config.run, "run")[0] if config.folder is None else config.folder)
    check_writable(place.figures)
    seen = Seen(config)
    points = _points(seen.task, config.at)
    drawn: dict[str, bytes] = {}
    for drawing in names(config.draw, "draw"):
        if drawing == "learned":
            drawn |= _learned(seen, points, names(config.allow, "allow"))
            continue
        draw = _page if drawing == "page" else _animation
        for point in points:
            drawn |= draw(seen, point)
    for name, content in drawn.items():
        write_whole(place.figures / name, content)
    return [place.figures / name for name in drawn]


def inside_job(config: DictConfig) -> int:
    """Draw, say where the files are, and return the exit status of the command."""
    console = Console(markup=False, highlight=False)
    for path in look_inside(config):
        console.print(str(path), soft_wrap=True)
    return DONE


def _points(task: Task, given: object) -> list[Point]:
    at = plain(given)
    if at is None:
        return [point_inside(task, [tuple(point) for point in task.shown])]
    wanted = at if isinstance(at, list) else [at]
    return [task.point(point) for point in evaluation_points(task, wanted, "at")]


def _page(seen: Seen, point: Point) -> dict[str, bytes]:
    batch = sample_at(seen.task, EVALUATION, 1, point, seen.kind)
    for network in seen.networks.values():
        if isinstance(network, NTM):
            elements = len(batch.inputs) * network.memory_size * network.layout.word_size
            if elements > ELEMENTS:
                raise ConfigurationError(
                    f"at must be a point whose steps times memory come to at most {ELEMENTS:,} "
                    f"elements, which a browser can hold, got {elements:,}; choose another, or a "
                    "smaller memory_size"
                )
    text = player(
        f"Inside the machine: {seen.title(point)}",
        "One sequence, step by step. The network runs in this page, in double precision, from its "
        "trained weights.",
        batch,
        places_at(seen.task, EVALUATION, point, seen.kind),
        seen.networks,
    )
    return {f"inside_{point_name(seen.task, point)}{seen.ending}.html": text.encode()}


def _animation(seen: Seen, point: Point) -> dict[str, bytes]:
    if len(seen.networks) > 1:
        raise ConfigurationError("run and checkpoint must each be one for draw=animation")
    (network,) = seen.networks.values()
    trace = inside(network, seen.task, point, seen.kind)
    if trace is None:
        raise ConfigurationError(
            f"draw must be page or learned for {type(network).__name__}, which has no memory, "
            "got animation"
        )
    batch = sample_at(seen.task, EVALUATION, 1, point, seen.kind)
    content = animations.at_work(trace, batch, seen.title(point))
    return {f"inside_{point_name(seen.task, point)}{seen.ending}.gif": content}


def _learned(seen: Seen, points: Sequence[Point], allow: Sequence[str]) -> dict[str, bytes]:
    """The answers to the same sequences by every checkpoint that was kept."""
    if len(seen.folders) > 1:
        raise ConfigurationError("run must be one run folder for draw=learned")
    (folder,) = seen.folders
    if len(folder.kept()) < 2:
        raise ConfigurationError(
            f"draw=learned needs two checkpoints or more that were kept in {folder.path}: train "
            "with callbacks.keep_every=1000 callbacks.keep_last=100"
        )
    moments = []
    for path in folder.kept():
        task, network = restore(folder, path.stem, allow)
        if seen.memory_size is not None:
            resize_memory(network, seen.memory_size)
        _, answers = evaluate(network, task, points, 1, seen.kind)
        moments.append(animations.Moment(kept_at(path), [answers[point] for point in points]))
    labels = [seen.task.label(point) for point in points]
    at = "_".join(point_name(seen.task, point) for point in points)
    return {
        f"learned_{at}{seen.ending}.png": figures.png(
            animations.draw_learned(moments, labels, f"{seen.task.name}: how it learned")
        ),
        f"learned_{at}{seen.ending}.gif": animations.learning(moments, labels, seen.task.name),
    }
