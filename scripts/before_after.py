"""One picture of what the heads of two runs did over the same sequence.

    python scripts/before_after.py before after kind length picture [locations]

`before` and `after` are run folders, `kind` one of the task's kinds of sequence, `length` a point,
and `locations` how much memory both are given; without it, what each was trained with. Of a hundred
sequences it is the one that the first run gets most wrong. The pictures of docs/recipe.md are made
by this.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntm.commands.configuration import ConfigurationError
from ntm.folders.runs import RunFolder, write_whole
from ntm.machine import NTM
from ntm.metrics import count
from ntm.tasks import Batch
from ntm.tasks.sampling import EVALUATION, sample_at
from ntm.views.evaluation import resize_memory, restore
from ntm.views.figures import COLOURS, PIXELS_PER_INCH, png

SEQUENCES = 100
CELLS = 160
"""Cells of a map along each side; what is longer is shown by the largest value in each cell."""


def coarse(values: np.ndarray) -> np.ndarray:
    """A map of at most `CELLS` a side, the largest value of each part standing for it."""
    for axis in (0, 1):
        if values.shape[axis] > CELLS:
            starts = np.linspace(0, values.shape[axis], CELLS, endpoint=False).astype(int)
            values = np.maximum.reduceat(values, starts, axis)
    return values


def column(axes: list[Axes], network: NTM, batch: Batch) -> None:
    """Draw what a machine does over a batch of one."""
    trace = network.trace(batch.inputs)
    heads = {"write": trace.write_weightings, "read": trace.read_weightings}
    wrong = ((trace.logits > 0) != (batch.targets > 0.5)) & (batch.mask[..., None] > 0)
    steps = len(batch.inputs)
    for axis, (name, weightings) in zip(axes, heads.items(), strict=False):
        weights = weightings[:, 0].amax(1).numpy()
        extent = (0, steps, weights.shape[1], 0)
        axis.imshow(coarse(weights).T, aspect="auto", cmap="magma", vmin=0, vmax=1, extent=extent)
        axis.set_ylabel(f"{name} weighting\nlocation")
    for place, (name, weightings) in enumerate(heads.items()):
        largest = weightings[:, 0].amax((1, 2)).numpy()
        axes[2].plot(largest, color=COLOURS[place], ls="-" if place else "--", label=name)
    axes[2].set(ylim=(0, 1.05), ylabel="largest\nweight")
    axes[2].legend(loc="lower left", fontsize=8)
    axes[3].bar(range(steps), wrong[:, 0].sum(-1).numpy(), width=1.0, color=COLOURS[1])
    axes[3].margins(x=0)
    axes[3].set(ylim=(0, batch.targets.shape[-1]), ylabel="wrong\nbits", xlabel="time step")


@torch.no_grad()
def picture(before: str, after: str, kind: str, length: int, locations: int | None) -> Figure:
    """Both runs side by side."""
    figure = Figure(figsize=(9.6, 8), dpi=PIXELS_PER_INCH, layout="constrained")
    axes = figure.subplots(4, 2, sharex=True, height_ratios=[3, 3, 1, 1])
    worst = None
    for place, run in enumerate((before, after)):
        task, network = restore(RunFolder.existing(run, "run"), "best")
        if not isinstance(network, NTM):
            raise ConfigurationError(f"{run} has no memory to look into")
        resize_memory(network, locations)
        batch = sample_at(task, EVALUATION, SEQUENCES, task.point(length), kind)
        _, wrong, _ = count(network(batch.inputs)[0], batch)
        worst = int(wrong.argmax()) if worst is None else worst
        column(list(axes[:, place]), network, Batch(*(part[:, worst, None] for part in batch)))
        told = f"{('before', 'after')[place]}: {wrong[worst].item()} bits wrong of this sequence"
        axes[0, place].set_title(f"{told}, {wrong.double().mean():.3g} in the mean", fontsize=10)
    figure.suptitle(f"{kind.replace('_', ' ')}, length {length:,}", fontsize=11)
    figure.align_ylabels()
    return figure


def main() -> int:
    """Draw and write."""
    if not 5 <= len(sys.argv[1:]) <= 6:
        print(__doc__, file=sys.stderr)
        return 2
    before, after, kind, length, path, *locations = sys.argv[1:]
    try:
        figure = picture(before, after, kind, int(length), int(locations[0]) if locations else None)
    except (ConfigurationError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    write_whole(Path(path), png(figure))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
