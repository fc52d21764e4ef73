"""A comparison for TensorBoard: one summary run a group, and charts with mean and spread."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ntm.comparison.grouping import Comparison, Group, band
from ntm.folders.runs import EVENTS, writing

MEAN = "mean"
"""The folder beside a group's runs that holds its summary."""
MEANS = Path("comparison") / "means"
"""Where the summaries of groups lie that have no folder of their own."""
MEANS_PAGE = "#custom_scalars&regexInput=mean%24&_smoothingWeight=0"
"""What follows TensorBoard's address to see the summaries alone, as they are."""
BELOW, ABOVE = "with_sd/minus", "with_sd/plus"
"""What stands before a metric's tag for the ends of mean ± sd."""


def write_means(comparison: Comparison, elsewhere: Path | None = None) -> None:
    """Write, for every group, the mean over its runs in place of the last one written.

    Into ``means/`` below a folder, or beside the runs.

    The mean of a metric has the tag that the runs use, so that it lies over them; the ends of
    mean ± sd have tags of their own. A single run has no spread, and its ends are its mean.
    """
    for group in comparison.groups:
        folder = means_folder(comparison, group, elsewhere)
        before = list(folder.glob(f"{EVENTS}*"))
        # A new and later name: a TensorBoard that is open would go on reading the old file.
        stamps = [int(stamp) for old in before if (stamp := old.name.split(".")[3]).isdigit()]
        path = folder / f"{EVENTS}{max(time.time_ns(), *(at + 1 for at in stamps), 0)}.{MEAN}"
        with writing(path) as part:
            _write_events(part, group, comparison.curves)
        for old in before:
            old.unlink()


def means_folder(comparison: Comparison, group: Group, elsewhere: Path | None = None) -> Path:
    """Beside the group's runs, where they fill a folder; else among those of the comparison."""
    name = re.sub(r"[^\w=,.+-]+", "_", f"{comparison.task}, {group.label}")
    if elsewhere is not None:
        return elsewhere / MEANS.name / name
    beside = {run.path.parent for run in group.runs}
    inside = [run for run in comparison.runs if run.path.parent in beside]
    if len(beside) == 1 and len(inside) == len(group.runs):
        return beside.pop() / MEAN
    return comparison.root / MEANS / name


def points(group: Group, curves: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """The summary's tags, each with its (sequences, value) in order; every value is finite.

    They are all columns of metrics.csv, and mean ± sd of ``curves``.
    """
    tags: dict[str, list[tuple[int, float]]] = {}
    columns = {name for run in group.runs for name in run.metrics} - {"sequences", "seconds"}
    for column in sorted(columns):
        over = band(group, column)
        lines = {column: over.mean}
        if column in curves:
            sd = np.nan_to_num(over.sd)
            lines |= {f"{BELOW}/{column}": over.mean - sd, f"{ABOVE}/{column}": over.mean + sd}
        for tag, values in lines.items():
            pairs = zip(over.sequences.tolist(), values.tolist(), strict=True)
            tags[tag] = [(at, value) for at, value in pairs if math.isfinite(value)]
    return tags


def _write_events(path: Path, group: Group, curves: Sequence[str]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    now = time.time()
    by_step: dict[int, list[Summary.Value]] = {}
    for tag, values in points(group, curves).items():
        for at, value in values:
            by_step.setdefault(at, []).append(Summary.Value(tag=tag, simple_value=value))
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    events.append(Event(wall_time=now, step=0, summary=Summary(value=[_layout(curves)])))
    for at, values_there in sorted(by_step.items()):
        events.append(Event(wall_time=now, step=at, summary=Summary(value=values_there)))
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()


def _layout(curves: Sequence[str]):  # type: ignore[no-untyped-def]
    """The page Custom Scalars: mean ± sd of every group in one chart a metric."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    categories = []
    by_metric: dict[str, list[str]] = {}
    for column in curves:
        by_metric.setdefault(column.partition("/")[2], []).append(column)
    for metric, columns in by_metric.items():
        charts = []
        for column in columns:
            stage = "training" if column.startswith("train/") else "validation"
            series = layout_pb2.MarginChartContent.Series(
                value=column, lower=f"{BELOW}/{column}", upper=f"{ABOVE}/{column}"
            )
            content = layout_pb2.MarginChartContent(series=[series])
            charts.append(layout_pb2.Chart(title=f"{stage}, mean ± sd", margin=content))
        categories.append(layout_pb2.Category(title=metric.replace("_", " "), chart=charts))
    layout = layout_pb2.Layout(category=categories)
    return Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=metadata.create_summary_metadata(),
        tensor=TensorProto(
            dtype=DT_STRING,
            string_val=[layout.SerializeToString()],
            tensor_shape=TensorShapeProto(),
        ),
    )
