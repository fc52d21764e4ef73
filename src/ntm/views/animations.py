"""Moving pictures for slides, from arrays alone: a machine at work, how answers were learned."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ntm.tasks import Batch
from ntm.views.figures import COLOURS, image_array, locations_used
from ntm.views.probing import Answer, Inside

DOTS = 90
"""Per inch, of a frame."""
FRAMES = 240
"""At most, of an animation; of longer sequences every second step is shown, or every third."""
SHOWN = 8
"""Moments of a strip, at most."""


class Moment(NamedTuple):
    """What a network answered at one time of its training."""

    sequences: int
    """That it had seen."""
    answers: Sequence[Answer]
    """One for each point."""


def at_work(inside: Inside, batch: Batch, title: str) -> bytes:
    """A machine over one sequence as a GIF: its heads over memory, a frame a step.

    Args:
        inside: What it did.
        batch: The sequence, alone.
        title: Stands above.

    """
    target, mask = batch.targets[:, 0].numpy(), batch.mask[:, 0].numpy() > 0
    steps = range(0, len(inside.inputs), -(-len(inside.inputs) // FRAMES))
    drawing = _AtWork(inside, target, mask, title)
    return _gif((drawing.at(step) for step in steps), 160)


class _AtWork:
    """One figure, changed from step to step: to make it anew takes ten times as long."""

    def __init__(self, inside: Inside, target: np.ndarray, mask: np.ndarray, title: str) -> None:
        self.inside = inside
        self.places = locations_used(inside)
        self.figure = Figure(figsize=(8, 5.2), dpi=DOTS)
        grid = self.figure.add_gridspec(
            6, 1, height_ratios=[1, 1, 1, 0.9, 2.2, 0.9], hspace=0.55,
            left=0.11, right=0.98, top=0.91, bottom=0.08,
        )  # fmt: skip
        self.figure.suptitle(title, y=0.98, fontsize=11)
        answers = np.where(mask[:, None], inside.outputs, np.nan)
        rows = (("input", inside.inputs), ("target", np.where(mask[:, None], target, np.nan)),
                ("output", answers))  # fmt: skip
        self.cursors = []
        for place, (name, values) in enumerate(rows):
            axis = self.figure.add_subplot(grid[place])
            axis.imshow(values.T, aspect="auto", cmap="cividis", vmin=0, vmax=1,
                        interpolation="nearest")  # fmt: skip
            axis.set_ylabel(name, rotation=0, ha="right", va="center")
            axis.set_yticks([])
            axis.set_xticks([])
            self.cursors.append(axis.axvspan(-0.5, 0.5, fill=False, ec=COLOURS[1], lw=2))
            if place == 2:
                wrong = mask[:, None] & ((inside.outputs > 0.5) != (target > 0.5))
                axis.plot(*np.nonzero(wrong), "x", color=COLOURS[1], ms=5)
        self.writing = self._bars(grid[3], "write\nheads", COLOURS[1])
        words = self.figure.add_subplot(grid[4])
        high = max(float(np.abs(inside.memory).max()), 1e-6)
        empty = np.zeros((inside.memory.shape[2], len(self.places)))
        self.memory = words.imshow(empty, aspect="auto", cmap="RdBu_r", vmin=-high, vmax=high,
                                   interpolation="nearest")  # fmt: skip
        words.set_ylabel("memory", rotation=0, ha="right", va="center")
        words.set_xticks([])
        words.set_yticks([])
        self.reading = self._bars(grid[5], "read\nheads", COLOURS[0])
        below = self.reading.axes
        below.invert_yaxis()
        marks = np.unique(np.linspace(0, len(self.places) - 1, 9).astype(int))
        below.set_xticks(marks, [str(self.places[mark]) for mark in marks])
        below.set_xlabel("location", labelpad=1)

    def _bars(self, place, name: str, colour: str):  # type: ignore[no-untyped-def]
        axis = self.figure.add_subplot(place)
        count = len(self.places)
        bars = axis.stairs(np.zeros(count), np.arange(count + 1) - 0.5, fill=True, color=colour)
        axis.set_xlim(-0.5, count - 0.5)
        axis.set_ylim(0, 1)
        axis.set_yticks([])
        axis.set_xticks([])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        return bars

    def at(self, step: int) -> np.ndarray:
        """The frame of one step."""
        for cursor in self.cursors:
            cursor.set_x(step - 0.5)
        self.memory.set_data(self.inside.memory[step, self.places].T)
        for bars, weightings in (
            (self.writing, self.inside.write_weightings),
            (self.reading, self.inside.read_weightings),
        ):
            bars.set_data(weightings[step].max(0)[self.places])
        return image_array(self.figure)


def learning(moments: Sequence[Moment], labels: Sequence[str], title: str) -> bytes:
    """Answers through training as a GIF, a frame a moment.

    Args:
        moments: The earliest first.
        labels: Of the points.
        title: Stands above.

    """
    return _gif((image_array(_frame(moment, labels, title)) for moment in moments[-FRAMES:]), 400)


def draw_learned(moments: Sequence[Moment], labels: Sequence[str], title: str) -> Figure:
    """Answers through training as a strip: a row a moment, a column a point, the target first.

    Most rows are of the time before no bit was wrong any more; the last is the end.
    """
    wrong = [sum(int(answer.wrong.sum()) for answer in moment.answers) for moment in moments]
    right = max((i + 1 for i, bits in enumerate(wrong) if bits), default=0)
    learning = np.linspace(0, min(right, len(moments) - 1), SHOWN - 1).astype(int)
    shown = [moments[i] for i in sorted({*learning.tolist(), len(moments) - 1})]
    figure = Figure(figsize=(4.6 * len(labels) + 1, 0.8 * len(shown) + 2), layout="constrained")
    axes = figure.subplots(len(shown) + 1, len(labels), squeeze=False)
    for column, label in enumerate(labels):
        axes[0, column].set_title(label, fontsize=10)
        _bits(axes[0, column], moments[0].answers[column].target, "target" if not column else "")
        for row, moment in enumerate(shown, 1):
            name = f"{moment.sequences:,}\nsequences" if not column else ""
            _answer(axes[row, column], moment.answers[column], name)
    figure.suptitle(title, fontsize=11)
    return figure


def _frame(moment: Moment, labels: Sequence[str], title: str) -> Figure:
    figure = Figure(figsize=(8, 1.1 + 1.9 * len(labels)), dpi=DOTS, layout="constrained")
    axes = figure.subplots(2 * len(labels), 1)
    for place, (label, answer) in enumerate(zip(labels, moment.answers, strict=True)):
        _bits(axes[2 * place], answer.target, "target")
        axes[2 * place].set_title(label, fontsize=10)
        _answer(axes[2 * place + 1], answer, "output")
    figure.suptitle(f"{title}, after {moment.sequences:,} sequences", fontsize=11)
    return figure


def _answer(axis, answer: Answer, name: str) -> None:  # type: ignore[no-untyped-def]
    _bits(axis, answer.output, name)
    axis.plot(*np.nonzero(answer.wrong), "x", color=COLOURS[1], ms=3, mew=0.8)
    axis.set_xlabel(f"{answer.wrong.sum()} of {answer.wrong.size} bits wrong", fontsize=8)


def _bits(axis, values: np.ndarray, name: str) -> None:  # type: ignore[no-untyped-def]
    axis.imshow(values.T, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def _gif(frames: Iterable[np.ndarray], milliseconds: int) -> bytes:
    """Frames that follow one another for ever, the last held for two seconds."""
    images = [Image.fromarray(frame) for frame in frames]
    some = np.linspace(0, len(images) - 1, 4).astype(int)
    palette = Image.fromarray(np.concatenate([np.asarray(images[i]) for i in some])).quantize(96)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [milliseconds] * (len(images) - 1) + [2000]
    content = io.BytesIO()
    images[0].save(
        content, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0
    )
    return content.getvalue()
