"""Pictures, drawn from arrays alone; nothing here runs a network."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntm.probing import Answer, Inside

PIXELS_PER_INCH = 120


def draw_answer(answer: Answer, title: str) -> Figure:
    """Target, output and error of one sequence, time to the right."""
    steps, bits = answer.target.shape
    figure = Figure(figsize=(8, 4.2), layout="constrained", dpi=PIXELS_PER_INCH)
    axes = figure.subplots(3, 1, sharex=True)
    wrong = int(answer.wrong.sum())
    error = np.abs(answer.output - answer.target)
    for axis, values, name in (
        (axes[0], answer.target, "target"),
        (axes[1], answer.output, "output"),
        (axes[2], error, "error"),
    ):
        image = _image(axis, values, "magma" if name == "error" else "viridis", 0, 1)
        axis.set_ylabel(f"{name}\nbit")
        axis.set_yticks([0, bits - 1] if bits > 1 else [0])
        figure.colorbar(image, ax=axis, pad=0.01, ticks=[0, 1])
    axes[2].set_xlabel("step of the answer")
    figure.suptitle(f"{title}: {wrong} of {steps * bits} bits wrong")
    return figure


def draw_inside(inside: Inside, title: str) -> Figure:
    """What the machine did over one sequence: the panels share the time axis."""
    T = len(inside.inputs)
    location = _locations(inside)
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
    figure = Figure(figsize=(9, 13), layout="constrained", dpi=PIXELS_PER_INCH)
    axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights)
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
        figure.colorbar(image, ax=axis, pad=0.01)
    axes[-1].set_xlabel("time step")
    figure.suptitle(title)
    return figure


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


def _image(axis: Axes, values: np.ndarray, colours: str, low: float, high: float):  # type: ignore[no-untyped-def]
    return axis.imshow(
        values.T, aspect="auto", interpolation="nearest", cmap=colours, vmin=low, vmax=high
    )


def _locations(inside: Inside) -> np.ndarray:
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
