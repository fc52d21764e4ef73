"""Pictures, drawn from arrays alone; nothing here runs a network."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    FuncFormatter,
    LogFormatter,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

from ntm.metrics import SOLVED_BELOW
from ntm.views.probing import Answer, Inside

PIXELS_PER_INCH = 120
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Told apart by colour-blind readers (Okabe and Ito), one after the other."""
DASHES = ("-", "--", "-.", ":")
"""Told apart without colour."""
MARKED_UP_TO = 12
"""A line of at most so many points shows them."""


class Curve(NamedTuple):
    """A line of `draw_curves`."""

    name: str
    """What the legend says; lines of one name have one entry."""
    colour: int
    """Which of `COLOURS`, over and over."""
    dashes: int
    """Which of `DASHES`, over and over."""
    x: np.ndarray
    y: np.ndarray
    lower: np.ndarray | None = None
    """The band around the line."""
    upper: np.ndarray | None = None
    weight: str = "thick"
    """``thick``, ``thin``, or ``dots`` for the points without the line."""
    thin_from: float | None = None
    """The x beyond which the line is thin, because it stands on fewer runs."""
    run: str = ""
    """The run that it is of, where it is of one."""
    broken_off: bool = False
    """Whether the end is marked as that of an unfinished run."""


class Panel(NamedTuple):
    """One pair of axes of `draw_curves`."""

    title: str
    x_name: str
    y_name: str
    scale: str
    """``log``, ``share`` from 0 to 1, or ``to 0``: logarithmic above ``bound``, linear below."""
    curves: list[Curve]
    marked: tuple[float, float] | None = None
    """A stretch of x to shade, such as the range in training."""
    log_x: bool = False
    bound: float = SOLVED_BELOW
    """Below which the task is solved."""


class Map(NamedTuple):
    """A heat map of `draw_maps`: one value at each point of two numbers."""

    title: str
    x_name: str
    y_name: str
    x: list[int]
    y: list[int]
    values: np.ndarray
    """(y, x); nan where nothing is known."""
    value_name: str
    marked: tuple[tuple[int, int], tuple[int, int]] | None = None
    """Stretches of x and y to frame, such as the ranges in training."""
    bound: float = SOLVED_BELOW
    """Below which the task is solved; the colours' scale is linear below."""


def draw_answer(answer: Answer, title: str) -> Figure:
    """Target, output and error of one sequence, time to the right."""
    steps, bits = answer.target.shape
    wrong = int(answer.wrong.sum())
    title = f"{title}: {wrong} of {steps * bits} bits wrong"
    figure, axes = _stack([1, 1, 1], (8, 4.2), title)
    error = np.abs(answer.output - answer.target)
    for axis, values, name in (
        (axes[0], answer.target, "target"),
        (axes[1], answer.output, "output"),
        (axes[2], error, "error"),
    ):
        image = _image(axis, values, "magma" if name == "error" else "viridis", 0, 1)
        axis.set_ylabel(f"{name}\nbit")
        axis.set_yticks([0, bits - 1] if bits > 1 else [0])
        _add_scale(figure, axis, image, [0, 1])
    axes[2].set_xlabel("step of the answer")
    return figure


def draw_inside(inside: Inside, title: str) -> Figure:
    """What the machine did over one sequence: the panels share the time axis."""
    T = len(inside.inputs)
    location = locations_used(inside)
    writes = inside.write_weightings.max(1)[:, location]
    reads = inside.read_weightings.max(1)[:, location]
    lengths = np.linalg.norm(inside.memory, axis=-1)[:, location]
    panels = [
        ("inputs", "channel", inside.inputs, "viridis"),
        ("adds", "element", inside.adds.reshape(T, -1), "RdBu_r"),
        ("write weighting", "location", writes, "magma"),
        ("memory\nlength of each word", "location", lengths, "cividis"),
        ("read weighting", "location", reads, "magma"),
        ("reads", "element", inside.reads.reshape(T, -1), "RdBu_r"),
        ("outputs", "bit", inside.outputs, "viridis"),
    ]
    heights = [max(values.shape[1], 8) ** 0.5 for _, _, values, _ in panels]
    figure, axes = _stack(heights, (9, 13), title)
    for axis, (name, unit, values, colours) in zip(axes, panels, strict=True):
        if colours == "RdBu_r":
            high = max(float(np.abs(values).max()), 1e-6)
            low = -high
        else:
            low, high = 0.0, max(float(values.max()), 1e-6) if "memory" in name else 1.0
        image = _image(axis, values, colours, low, high)
        axis.set_ylabel(f"{name}\n{unit}")
        if unit == "location":
            marks = np.unique(np.linspace(0, len(location) - 1, 5).astype(int))
            axis.set_yticks(marks, [str(location[mark]) for mark in marks])
        else:
            axis.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        _add_scale(figure, axis, image)
    axes[-1].set_xlabel("time step")
    return figure


def _grid(count: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """So many axes, row by row, each so many inches high; what is left of the last row is empty."""
    rows = -(-count // columns)
    figure = Figure(figsize=(8.4, 0.9 + height * rows), layout="constrained", dpi=PIXELS_PER_INCH)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, list(axes[:count])


def draw_curves(panels: Sequence[Panel], title: str, columns: int = 2) -> Figure:
    """Panels of curves with one legend; for a page in print, in colour or not."""
    figure, axes = _grid(len(panels), columns, 2.9)
    entries: dict[str, Any] = {}
    for axis, panel in zip(axes, panels, strict=True):
        for curve in panel.curves:
            entries.setdefault(curve.name, _draw_curve(axis, curve))
        _set_scales(axis, panel)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.x_name)
        axis.set_ylabel(panel.y_name)
        axis.grid(alpha=0.25)
        if panel.marked is not None:
            entries["range in training"] = axis.patches[-1]
    # A $ would begin a formula.
    names = [name.replace("$", r"\$") for name in entries]
    figure.legend(entries.values(), names, loc="outside lower center", ncols=min(len(names), 4))
    figure.suptitle(title, fontsize=11)
    return figure


def draw_maps(maps: Sequence[Map], title: str, columns: int = 2) -> Figure:
    """Heat maps on one scale of colours, every value written in its cell."""
    figure, axes = _grid(len(maps), min(columns, len(maps)), 3.0)
    highest = max(float(np.nanmax(one.values)) for one in maps)
    scale = SymLogNorm(maps[0].bound, vmin=0, vmax=max(highest, 10 * maps[0].bound))
    for axis, one in zip(axes, maps, strict=True):
        image = axis.imshow(one.values, norm=scale, cmap="cividis", origin="lower", aspect="auto")
        for (row, column), value in np.ndenumerate(one.values):
            if np.isfinite(value):
                ink = "black" if scale(value) > 0.6 else "white"
                axis.text(column, row, f"{value:.3g}", ha="center", va="center", color=ink)
        _frame(axis, one)
        axis.set_xticks(range(len(one.x)), [str(x) for x in one.x])
        axis.set_yticks(range(len(one.y)), [str(y) for y in one.y])
        axis.set_title(one.title.replace("$", r"\$"), fontsize=10)
        axis.set_xlabel(one.x_name)
        axis.set_ylabel(one.y_name)
    bar = figure.colorbar(image, ax=axes, label=maps[0].value_name)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.suptitle(title, fontsize=11)
    return figure


def per_cent(share: float, digits: int = 1) -> str:
    """A share in [0, 1] in per cent; only all of it reads 100, only nothing of it 0."""
    least = 10.0**-digits
    shown = round(100 * share, digits)
    if 0 < share < 1:
        shown = min(max(shown, least), 100 - least)
    return f"{shown:.{digits}f}".removesuffix("." + digits * "0")


def draw_shares(
    shares: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str
) -> Figure:
    """Shares in [0, 1], each a cell of a colour with its per cent written in it."""
    size = (2.6 + 0.95 * len(columns), 1.4 + 0.36 * len(rows))
    figure = Figure(figsize=size, layout="constrained", dpi=PIXELS_PER_INCH)
    axis = figure.subplots()
    image = axis.imshow(np.array(shares), vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), share in np.ndenumerate(np.array(shares)):
        ink = "black" if share > 0.5 else "white"
        axis.text(column, row, per_cent(share), ha="center", va="center", color=ink)
    axis.set_xticks(range(len(columns)), [name.replace(", ", "\n") for name in columns])
    axis.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
    figure.colorbar(image, ax=axis).ax.yaxis.set_major_formatter(PercentFormatter(1))
    figure.suptitle(title, fontsize=11)
    return figure


def _frame(axis: Axes, one: Map) -> None:
    """Around the cells that training drew from."""
    if one.marked is None:
        return
    inside = [
        [place for place, value in enumerate(values) if low <= value <= high]
        for values, (low, high) in zip((one.x, one.y), one.marked, strict=True)
    ]
    if all(inside):
        (left, *_, right), (bottom, *_, top) = ([*places, places[-1]] for places in inside)
        corner, width, height = (left - 0.5, bottom - 0.5), right - left + 1, top - bottom + 1
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#D55E00", lw=2))


def log_ticks(panel: Panel) -> list[float]:
    """Values of x that a logarithmic axis can name without their running into one another."""
    values = sorted({float(x) for curve in panel.curves for x in curve.x})
    if not values:
        return []
    apart = (values[-1] / values[0]) ** (1 / MARKED_UP_TO)
    ticks = values[:1]
    for value in values[1:]:
        if value >= ticks[-1] * apart:
            ticks.append(value)
    return ticks


def image_array(figure: Figure) -> np.ndarray:
    """The drawn figure as (height, width, 3) bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png(figure: Figure) -> bytes:
    """The drawn figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """The drawn figure as an SVG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ntm"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _stack(
    heights: Sequence[float], size: tuple[float, float], title: str
) -> tuple[Figure, list[Axes]]:
    """Panels one below the other, of these relative heights, that share the time axis.

    Places are set, in inches: to have them found takes twice as long as to draw.
    """
    width, height = size
    figure = Figure(figsize=size, dpi=PIXELS_PER_INCH)
    axes = figure.subplots(
        len(heights),
        1,
        sharex=True,
        gridspec_kw={
            "height_ratios": heights,
            "left": 1.15 / width,
            "right": 1 - 0.95 / width,
            "bottom": 0.5 / height,
            "top": 1 - 0.42 / height,
            "hspace": 0.14 * len(heights) / (height - 0.92),
        },
    )
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axis in axes:
        axis.yaxis.set_label_coords(-0.52 / (width - 2.1), 0.5)
    for axis in axes[:-1]:
        axis.xaxis.set_visible(False)  # marks take most of the time of drawing
    figure.suptitle(title, y=1 - 0.1 / height, va="top")
    return figure, axes


def _add_scale(
    figure: Figure, axis: Axes, image: Any, ticks: Sequence[float] | None = None
) -> None:
    """What the colours of a panel mean, to its right."""
    bar = figure.colorbar(image, cax=axis.inset_axes((1.01, 0, 0.015, 1)), ticks=ticks)
    bar.ax.xaxis.set_visible(False)
    bar.minorticks_off()


def _draw_curve(axis: Axes, curve: Curve):  # type: ignore[no-untyped-def]
    """Draw a line and give what stands for it in the legend."""
    colour = COLOURS[curve.colour % len(COLOURS)]
    if curve.weight == "dots":
        (dots,) = axis.plot(curve.x, curve.y, ".", color=colour, alpha=0.5, markersize=4)
        return dots
    if curve.lower is not None and curve.upper is not None:
        axis.fill_between(curve.x, curve.lower, curve.upper, color=colour, alpha=0.18, linewidth=0)
    line: dict[str, Any] = {"color": colour, "linestyle": DASHES[curve.dashes % len(DASHES)]}
    whole = np.ones(len(curve.x), bool)
    if curve.thin_from is not None:
        whole = curve.x <= curve.thin_from
        rest = curve.x >= curve.thin_from
        axis.plot(curve.x[rest], curve.y[rest], linewidth=0.7, **line)
    width = 1.6 if curve.weight == "thick" else 1.0
    marker = "o" if len(curve.x) <= MARKED_UP_TO else None
    (drawn,) = axis.plot(
        curve.x[whole], curve.y[whole], linewidth=width, marker=marker, markersize=4, **line
    )
    if curve.broken_off and len(curve.x):
        axis.plot(curve.x[-1:], curve.y[-1:], marker="x", color=colour, markersize=7, mew=2)
    return drawn


class _WithinADecade(LogFormatter):
    """Marks between powers of ten, where there are few of these, as plain numbers."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _set_scales(axis: Axes, panel: Panel) -> None:
    """Scales and limits, for what is drawn already."""
    if panel.scale == "to 0":
        axis.set_yscale("symlog", linthresh=panel.bound)
        axis.set_ylim(bottom=-panel.bound / 12)  # a line at 0 is seen whole
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.axhline(panel.bound, color="grey", linestyle=":", linewidth=1)
    elif panel.scale == "log":
        axis.set_yscale("log", nonpositive="clip")
        values = np.concatenate([curve.y for curve in panel.curves] or [np.ones(1)])
        positive = values[values > 0]
        if len(positive):  # the band's lower end may be at 0 or below
            low, high = positive.min(), positive.max()
            margin = max((high / low) ** 0.05, 1.05)
            axis.set_ylim(low / margin, high * margin)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_formatter(_WithinADecade())
    elif panel.scale == "share":
        axis.set_ylim(-0.03, 1.03)
    else:
        raise ValueError(f"scale must be log, share or to 0, got {panel.scale!r}")
    if panel.log_x:
        axis.set_xscale("log")
        ticks = log_ticks(panel)
        axis.set_xticks(ticks, [f"{x:,.0f}" for x in ticks], rotation=45)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    if panel.marked is not None:
        axis.axvspan(*panel.marked, color="grey", alpha=0.15, linewidth=0)


def _image(axis: Axes, values: np.ndarray, colours: str, low: float, high: float):  # type: ignore[no-untyped-def]
    return axis.imshow(
        values.T, aspect="auto", interpolation="nearest", cmap=colours, vmin=low, vmax=high
    )


def locations_used(inside: Inside) -> np.ndarray:
    """The stretch of the ring that the heads used, in ring order, so that it is seen whole."""
    weightings = np.concatenate([inside.write_weightings, inside.read_weightings], axis=1)
    N = weightings.shape[-1]
    used = np.flatnonzero(weightings.max((0, 1)) > 0.1)
    if len(used) == 0:
        return np.arange(N)
    gaps = np.diff(np.append(used, used[0] + N))
    start = used[(gaps.argmax() + 1) % len(used)]
    length = N - gaps.max() + 1
    return np.arange(start - 1, start + length + 1) % N if length + 2 <= N else np.arange(N)
