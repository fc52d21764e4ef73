"""Comparisons as files: tables, figures, the page report.html and TensorBoard's summaries."""

from __future__ import annotations

import html
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table as TerminalTable

from ntm.commands import command
from ntm.commands.command import DONE
from ntm.commands.configuration import one_line, plain, quoted
from ntm.commands.streams import show
from ntm.comparison.events import MEANS_PAGE, write_means
from ntm.comparison.grouping import Comparison, Group, band, compare
from ntm.comparison.numbers import (
    ABOVE_OPTIMUM,
    BOOTSTRAP_SEED,
    CONFIDENCE,
    RESAMPLINGS,
    curve_rows,
    difference_rows,
    evaluations,
    group_rows,
    kind_rows,
    point_rows,
    run_rows,
)
from ntm.comparison.page import Section, page
from ntm.folders.runs import FAILED, FINISHED, check_writable, in_words, write_rows, write_whole
from ntm.views import figures
from ntm.views.figures import Curve, Map, Panel, per_cent

FOLDER = "comparison"
MEAN, MEDIAN = "mean", "median"
STATISTICS = {MEAN: "mean ± sd over seeds", MEDIAN: "median and quartiles over seeds"}
"""What the curves show."""
TABLES = ("groups", "runs", "points", "kinds", "differences", "curves")
PICTURES = ("curves", "seeds", "points")
NOTHING = "–"
"""In a cell without a value."""
LOSS = "loss, nats per bit"
MOST_PAIRS = 10
"""Of groups, whose differences a reader is shown; the file has all."""

Summary = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
"""A line, and the ends of the band around it where there is a spread."""


class Table(NamedTuple):
    """A table for readers: every cell is text, not yet escaped."""

    title: str
    caption: str
    headings: list[str]
    rows: list[list[str]]


def _speakable(value: Any) -> Any:
    """A value as JSON has it: what is no finite number is a word."""
    if isinstance(value, dict):
        return {key: _speakable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_speakable(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def compare_job(config: DictConfig) -> int:
    """Compare the runs below some folders, and return the exit status of the command.

    Raises:
        ConfigurationError: There is no run to read, or a key that none has; nothing is written.

    """
    by = None if config.by is None else _list(plain(config.by))
    comparisons = compare(_list(plain(config.runs)), by)
    elsewhere = None if config.folder is None else Path(config.folder)
    check_writable(elsewhere or comparisons[0].root / FOLDER)
    unwritten: OSError | None = None
    try:
        folder = write_comparisons(comparisons, config.statistic, elsewhere)
    except OSError as error:
        unwritten = error
    console = Console(markup=False)
    for comparison in comparisons:
        show(_terminal_table(comparison))
        for note in comparison.notes:
            console.print(f"note: {note}", soft_wrap=True, markup=False, highlight=False)
    if unwritten is not None:
        told = (
            f"the results could not be written: {one_line(unwritten)}; folder=… puts them elsewhere"
        )
        print(told, file=sys.stderr)
        return command.FAILED
    for line in (
        f"Everything: {folder / 'report.html'}",
        f"TensorBoard: tensorboard --logdir {quoted(folder if elsewhere else folder.parent)}",
        f"and there the mean ± sd of every group: http://localhost:6006/{MEANS_PAGE}",
    ):
        console.print(line, soft_wrap=True, markup=False)
    return DONE


@np.errstate(invalid="ignore")  # results that are no numbers are told in the table of runs
def write_comparisons(
    comparisons: Sequence[Comparison], statistic: str = MEAN, elsewhere: Path | None = None
) -> Path:
    """Write every file of some comparisons, and TensorBoard's summaries beside the runs.

    Args:
        comparisons: From `ntm.comparison.grouping.compare`. Of one task the files are called
            ``groups.csv``, of several ``copy_groups.csv`` and so on.
        statistic: A key of `STATISTICS`.
        elsewhere: The folder; None for ``comparison/`` below that of the runs, with the means for
            TensorBoard beside these.

    Returns:
        The folder.

    """
    folder = elsewhere or comparisons[0].root / FOLDER
    several = len(comparisons) > 1
    written: set[str] = set()
    texts, sections, told = ["# Comparison", ""], [], {}
    for comparison in comparisons:
        prefix = f"{comparison.task}_" if several else ""
        numbers = _numbers(comparison)
        for name, rows in numbers.items():
            write_rows(folder / f"{prefix}{name}.csv", rows)
        written |= {f"{prefix}{name}.csv" for name in numbers}
        told[comparison.task] = {"notes": comparison.notes, **_without_curves(numbers)}
        pictures = {f"{prefix}{name}": drawn for name, drawn in _draw(comparison, statistic)}
        for name, figure in pictures.items():
            write_whole(folder / f"{name}.png", figures.png(figure))
            write_whole(folder / f"{name}.svg", figures.svg(figure))
            written |= {f"{name}.png", f"{name}.svg"}
        tables = readable_tables(comparison)
        heading = comparison.task if several else ""
        texts += markdown(heading, comparison.notes, tables, list(pictures))
        sections.append(_section(heading, comparison, tables, statistic))
        write_means(comparison, elsewhere)
    write_whole(folder / "comparison.md", "\n".join(texts).encode())
    contents = {"bootstrap": _bootstrap_settings(), "tasks": told}
    text = json.dumps(_speakable(contents), indent=2, allow_nan=False, default=str) + "\n"
    write_whole(folder / "comparison.json", text.encode())
    content = page(_title(comparisons), STATISTICS[statistic], sections)
    write_whole(folder / "report.html", content.encode())
    _remove_others(folder, written)
    return folder


def curve_panels(comparison: Comparison, statistic: str) -> list[Panel]:
    """Training and validation, each group one line with its band."""
    return [
        _panel(comparison, column, _band_curves(comparison, column, statistic))
        for column in comparison.curves
    ]


def seed_panels(comparison: Comparison) -> list[Panel]:
    """Training and validation, each run a line."""
    return [
        _panel(
            comparison,
            column,
            [
                Curve(
                    group.label,
                    place,
                    place,
                    run.metrics["sequences"],
                    run.metrics[column],
                    weight="thin",
                    run=run.path.name,
                    broken_off=not run.finished,
                )
                for place, group in enumerate(comparison.groups)
                for run in group.runs
                if column in run.metrics
            ],
        )
        for column in comparison.curves
    ]


def point_panels(comparison: Comparison, statistic: str) -> list[Panel]:
    """The metric that counts and exact sequences against the task's number.

    None where it has several numbers, or nothing was evaluated at two points.
    """
    metric, bound = comparison.solved_when
    if len(comparison.numbers) > 1 or len(_points(comparison)) < 2:
        return []
    (number,) = comparison.numbers
    panels = []
    for key, name, scale in (
        (metric, metric.replace("_", " "), "to 0"),
        ("exact", "share of exact sequences", "share"),
    ):
        curves = [
            curve
            for place, group in enumerate(comparison.groups)
            for curve in _point_curves(comparison, group, place, key, statistic)
        ]
        x = np.concatenate([curve.x for curve in curves])
        far = bool(x.max() > 8 * x.min())
        marked = comparison.range(number)
        panels.append(Panel(name, number, name, scale, curves, marked, far, bound))
    return panels


def point_maps(comparison: Comparison, statistic: str) -> list[Map]:
    """The metric that counts over the task's first two numbers, a map a group and memory size.

    None where it has one number.
    """
    if len(comparison.numbers) < 2:
        return []
    metric, bound = comparison.solved_when
    second, first = comparison.numbers[:2]
    x, y = (sorted({point[place] for point in _points(comparison)}) for place in (1, 0))
    across, up = comparison.range(first), comparison.range(second)
    marked = (across, up) if across and up else None
    maps = []
    for group in comparison.groups:
        by_size: dict[float | None, np.ndarray] = {}
        for (size, point), rows in evaluations(comparison, group).items():
            values = by_size.setdefault(size, np.full((len(y), len(x)), math.nan))
            centre, _, _ = _summary([[row[metric] for row in rows]], statistic)
            values[y.index(point[0]), x.index(point[1])] = centre[0]
        for size, values in by_size.items():
            title = group.label if len(by_size) == 1 else f"{group.label}, memory {size:,.0f}"
            name = f"{statistic} {metric.replace('_', ' ')}"
            maps.append(Map(title, first, second, x, y, values, name, marked, bound))
    return maps


def readable_tables(comparison: Comparison) -> list[Table]:
    """The tables of comparison.md and report.html; those with nothing to say are left out."""
    makers: list[Callable[[Comparison], Table]] = [
        _groups_table,
        _points_table,
        _kinds_table,
        _differences_table,
        _runs_table,
    ]
    return [table for make in makers if (table := make(comparison)).rows]


def markdown(
    heading: str, notes: Sequence[str], tables: Sequence[Table], pictures: Sequence[str]
) -> list[str]:
    """The tables, notes and pictures of a comparison as lines of Markdown."""
    lines = [f"# {_cell(heading)}", ""] if heading else []
    for table in tables:
        lines += [f"## {table.title}", ""]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in [table.headings]]
        lines += ["|" + "---|" * len(table.headings)]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
        lines += ["", *([table.caption, ""] if table.caption else [])]
    if notes:
        lines += ["## Notes", "", *(f"- {_cell(note)}" for note in notes), ""]
    for name in pictures:
        lines += [f"![{name}]({name}.png)", ""]
    return lines


def _list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _title(comparisons: Sequence[Comparison]) -> str:
    if len(comparisons) > 1:
        return f"Comparison over {', '.join(comparison.task for comparison in comparisons)}"
    return f"Comparison of {'; '.join(group.label for group in comparisons[0].groups)}"


def _numbers(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    makers = (group_rows, run_rows, point_rows, kind_rows, difference_rows, curve_rows)
    made = {name: make(comparison) for name, make in zip(TABLES, makers, strict=True)}
    return {name: rows for name, rows in made.items() if rows or name != "kinds"}


def _without_curves(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: rows for name, rows in numbers.items() if name != "curves"}


def _draw(comparison: Comparison, statistic: str) -> Iterator[tuple[str, Figure]]:
    """Pictures by name."""
    shown = STATISTICS[statistic]
    curves, seeds = curve_panels(comparison, statistic), seed_panels(comparison)
    points = point_panels(comparison, statistic)
    maps = point_maps(comparison, statistic)
    fewer = any(curve.thin_from is not None for panel in curves for curve in panel.curves)
    thin = "; thin where not every run got so far" if fewer else ""
    where = f"{comparison.task}: "
    yield "curves", figures.draw_curves(curves, f"{where}learning curves, {shown}{thin}")
    title = f"{where}learning curves of every seed{_crosses(seeds)}"
    yield "seeds", figures.draw_curves(seeds, title)
    if points:
        title = f"{where}fresh sequences, best.ckpt, {shown}; dots are single seeds"
        yield "points", figures.draw_curves(points, title)
    if maps:
        title = f"{where}fresh sequences, best.ckpt; framed: the ranges in training"
        yield "points", figures.draw_maps(maps, title)


def _section(
    heading: str, comparison: Comparison, tables: Sequence[Table], statistic: str
) -> Section:
    together = [
        one._replace(curves=one.curves + each.curves)
        for one, each in zip(
            curve_panels(comparison, statistic), seed_panels(comparison), strict=True
        )
    ]
    panels = together + point_panels(comparison, statistic)
    return Section(heading, comparison.notes, tables, panels, point_maps(comparison, statistic))


def _remove_others(folder: Path, written: set[str]) -> None:
    """Take away what an earlier comparison left here and this one does not have."""
    names = {f"{name}.csv" for name in TABLES}
    names |= {f"{name}.{ending}" for name in PICTURES for ending in ("png", "svg")}
    for path in folder.iterdir():
        if path.name not in written and any(
            path.name == name or path.name.endswith(f"_{name}") for name in names
        ):
            path.unlink()


def _points(comparison: Comparison) -> set[tuple[int, ...]]:
    """Every point at which some run was evaluated."""
    found = (evaluations(comparison, group) for group in comparison.groups)
    return {point for settings in found for _, point in settings}


def _groups_table(comparison: Comparison) -> Table:
    metric, bound = comparison.solved_when
    rows = [
        [
            row["group"],
            _solved(row),
            _interval(row),
            _solve(row, "sequences_to_solve_median"),
            " to ".join(
                _solve(row, f"sequences_to_solve_{q}_quartile") for q in ("lower", "upper")
            ),
            _solve(row, "sequences_to_solve_worst"),
            _with_sd(row, "wrong_bits"),
            _with_sd(row, "bits"),
            _with_sd(row, "above_optimum"),
            _with_sd(row, "seconds"),
            _number(row["sequences_per_second_mean"]),
            _count(row["parameters"]),
        ]
        for row in group_rows(comparison)
    ]
    headings = ["group", "solved", f"{CONFIDENCE:.0%} interval", "sequences to solve, median"]
    headings += ["quartiles", "worst", "wrong bits", "bits", "above optimum"]
    headings += ["seconds a run", "sequences a second", "parameters"]
    if all(row[headings.index("above optimum")] == NOTHING for row in rows):
        rows = _without_column(headings, rows, "above optimum")
    caption = (
        f"Solved: {in_words(metric)} below {bound:g} from some validation on; a failed run "
        "counts as one that never solves, one that still runs or was interrupted does not count; "
        "the interval is Wilson's, for the share of runs that solve. "
        "Wrong bits and bits per sequence: best.ckpt on the test set, finished runs, mean ± "
        "sample standard deviation over seeds."
    )
    return Table("Groups", caption, headings, rows)


def _points_table(comparison: Comparison) -> Table:
    found = point_rows(comparison)
    parts = [name for name in (found[0] if found else ()) if name.endswith("_bits_mean")]
    parts.remove("wrong_bits_mean") if parts else None
    rows = [
        [
            row["group"],
            _count(row["memory_size"]),
            *(_count(row[number]) for number in comparison.numbers),
            _count(row["runs"]),
            _count(row["sequences_each"]),
            _with_sd(row, "wrong_bits"),
            *(_number(row[name]) for name in parts),
            _number(row["wrong_bits_worst"]),
            _with_sd(row, "above_optimum"),
            f"{row['runs_without_error']} of {row['runs']}",
            _share_with_sd(row["exact_mean"], row["exact_sd"]),
            per_cent(row["accuracy_mean"], 2),
        ]
        for row in found
    ]
    headings = ["group", "memory", *comparison.numbers, "runs", "sequences each", "wrong bits"]
    headings += [name.removesuffix("_mean").replace("_", " ") for name in parts]
    headings += ["worst run", "above optimum", "runs without a wrong bit", "exact, %"]
    headings += ["right bits, %"]
    if all(row[headings.index("above optimum")] == NOTHING for row in rows):
        rows = _without_column(headings, rows, "above optimum")
    caption = (
        "Fresh sequences with best.ckpt; mean ± sample standard deviation over runs. "
        "Exact: share of sequences without one wrong bit."
    )
    return Table(f"By {' and '.join(comparison.numbers)}", caption, headings, rows)


def _kinds_table(comparison: Comparison) -> Table:
    found = kind_rows(comparison)
    points = list(dict.fromkeys(tuple(row[n] for n in comparison.numbers) for row in found))
    cells: dict[tuple[Any, ...], dict[Any, str]] = {}
    for row in found:
        shown = f"{per_cent(row['exact_mean'])} ({row['runs_without_error']} of {row['runs']})"
        line = cells.setdefault((row["group"], row["kind"], row["memory_size"]), {})
        line[tuple(row[number] for number in comparison.numbers)] = shown
    rows = [
        [group, kind, _count(size), *(line.get(point, NOTHING) for point in sorted(points))]
        for (group, kind, size), line in cells.items()
    ]
    named = [
        ", ".join(f"{n} {value}" for n, value in zip(comparison.numbers, point, strict=True))
        for point in sorted(points)
    ]
    caption = (
        "Exact sequences, %, mean over runs, and in how many runs there was no wrong bit. "
        "Kinds: see ntm.tasks.kinds; drawn is what the paper has; every kind: of all that a run "
        "was shown there, and the runs without a wrong bit on any."
    )
    return Table("Kinds of sequence", caption, ["group", "kind", "memory", *named], rows)


def _without_column(headings: list[str], rows: list[list[str]], name: str) -> list[list[str]]:
    """Rows without a column; takes it out of the headings, too."""
    place = headings.index(name)
    del headings[place]
    return [row[:place] + row[place + 1 :] for row in rows]


def _differences_table(comparison: Comparison) -> Table:
    groups = len(comparison.groups)
    few = groups * (groups - 1) // 2 <= MOST_PAIRS
    rows = [
        [
            row["quantity"],
            f"{row['second']} − {row['first']}",
            _number(row["second_mean"]),
            _number(row["first_mean"]),
            _number(row["difference"]),
            NOTHING if row["low"] is None else f"{_number(row['low'])} to {_number(row['high'])}",
            f"{row['second_runs']} and {row['first_runs']}",
        ]
        for row in (difference_rows(comparison) if few else ())
    ]
    headings = ["quantity", "groups", "mean of the one", "of the other", "difference"]
    headings += [f"{CONFIDENCE:.0%} interval", "runs"]
    caption = (
        f"Percentile bootstrap: the seeds of each group drawn anew with replacement, "
        f"{RESAMPLINGS:,} times, by NumPy's default generator from seed {BOOTSTRAP_SEED} for each "
        "quantity. With fewer than about ten seeds such an interval is too narrow."
    )
    return Table("Differences", caption, headings, rows)


def _runs_table(comparison: Comparison) -> Table:
    rows = [
        [
            row["run"],
            row["group"],
            row["status"],
            _count(row["sequences"]),
            "never"
            if row["status"] in (FINISHED, FAILED) and row["sequences_to_solve"] is None
            else _count(row["sequences_to_solve"]),
            _number(row["wrong_bits_per_sequence"]),
            _number(row["bits_per_sequence"]),
            _number(row["bits_above_optimum"]),
            _number(row["seconds"]),
        ]
        for row in run_rows(comparison)
    ]
    headings = ["run", "group", "status", "sequences", "solved at", "wrong bits", "bits"]
    headings += ["above optimum", "seconds"]
    if all(row[headings.index("above optimum")] == NOTHING for row in rows):
        rows = _without_column(headings, rows, "above optimum")
    return Table("Runs", "", headings, rows)


def _panel(comparison: Comparison, column: str, curves: list[Curve]) -> Panel:
    metric, bound = comparison.solved_when
    stage, _, name = column.partition("/")
    title = f"{'training' if stage == 'train' else 'validation'}: {name.replace('_', ' ')}"
    axis, scale = (name.replace("_", " "), "to 0") if name == metric else (LOSS, "log")
    return Panel(title, "sequences seen", axis, scale, curves, bound=bound)


def _band_curves(comparison: Comparison, column: str, statistic: str) -> list[Curve]:
    curves = []
    for place, group in enumerate(comparison.groups):
        over = band(group, column)
        if not len(over.sequences):
            continue
        if statistic == MEDIAN:
            line: Summary = over.median, over.lower_quartile, over.upper_quartile
        else:
            line = over.mean, over.mean - over.sd, over.mean + over.sd
        runs = int(over.runs.max())
        most = over.sequences[over.runs == runs]
        thin_from = None if most[-1] == over.sequences[-1] else float(most[-1])
        spread = line if runs > 1 else (line[0], None, None)
        name = f"{group.label} ({runs} seed{'s' if runs > 1 else ''})"
        curves.append(Curve(name, place, place, over.sequences, *spread, thin_from=thin_from))
    return curves


def _point_curves(
    comparison: Comparison, group: Group, place: int, key: str, statistic: str
) -> list[Curve]:
    """A line a memory size with its band, then the single runs."""
    (number,) = comparison.numbers
    by_size: dict[float | None, dict[int, list[float]]] = {}
    for (size, (value,)), rows in evaluations(comparison, group).items():
        by_size.setdefault(size, {})[value] = [row[key] for row in rows]
    curves = []
    for nth, (size, at) in enumerate(by_size.items()):
        name = group.label if len(by_size) == 1 else f"{group.label}, memory {size:,.0f}"
        lines = _summary(list(at.values()), statistic)
        curves.append(Curve(name, place, place + nth, np.array(list(at), float), *lines))
        for run in group.runs:
            rows = [r for r in run.evaluations if _same(r["memory_size"], size)]
            rows.sort(key=lambda r: r[number])
            x, y = (np.array([row[k] for row in rows], float) for k in (number, key))
            if rows:
                dots = Curve(name, place, place + nth, x, y, weight="dots", run=run.path.name)
                curves.append(dots)
    return curves


def _summary(values: Sequence[Sequence[float]], statistic: str) -> Summary:
    """Centre and spread of each group of values."""
    if statistic == MEDIAN:
        lower, centre, upper = np.transpose([np.percentile(v, (25, 50, 75)) for v in values])
    else:
        centre = np.array([np.mean(v) for v in values])
        sd = np.array([np.std(v, ddof=1) if len(v) > 1 else math.nan for v in values])
        lower, upper = centre - sd, centre + sd
    return centre, lower, upper


def _same(size: float, other: float | None) -> bool:
    return math.isnan(size) if other is None else size == other


def _crosses(panels: Sequence[Panel]) -> str:
    broken = any(curve.broken_off for panel in panels for curve in panel.curves)
    return "; × ends an unfinished run" if broken else ""


def _bootstrap_settings() -> dict[str, Any]:
    return {"resamplings": RESAMPLINGS, "confidence": CONFIDENCE, "seed": BOOTSTRAP_SEED}


def _terminal_table(comparison: Comparison) -> TerminalTable:
    table = _groups_table(comparison)
    metric, _ = comparison.solved_when
    reached = "above optimum" if metric == ABOVE_OPTIMUM else in_words(metric)
    shown = ["group", "solved", "95% interval", "sequences to solve, median", "worst", reached]
    drawn = TerminalTable(title=f"{comparison.task}: runs below {comparison.root}")
    for name in shown:
        short = "to solve, median" if "median" in name else name
        # A group's name that is cut short could be another's.
        drawn.add_column(short, justify="left" if name == "group" else "right", overflow="fold")
    for row in table.rows:
        cells = dict(zip(table.headings, row, strict=True))
        drawn.add_row(*(cells.get(name, NOTHING) for name in shown))
    return drawn


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def _solved(row: dict[str, Any]) -> str:
    parts = [f"{row['solved']} of {row['finished'] + row['failed']}"]
    parts += [f"{row[key]} {key}" for key in ("failed", "unfinished") if row[key]]
    return ", ".join(parts)


def _interval(row: dict[str, Any]) -> str:
    """Of the share of runs that solve the task."""
    if row["solved_share_low"] is None:
        return NOTHING
    return f"{100 * row['solved_share_low']:.0f}–{100 * row['solved_share_high']:.0f} %"


def _solve(row: dict[str, Any], key: str) -> str:
    """Sequences to solve; a run that ended without is one that never did."""
    if row[key] is None and row["finished"] + row["failed"]:
        return "never"
    return _count(row[key])


def _with_sd(row: dict[str, Any], name: str) -> str:
    """Mean ± sd, to the second digit of the sd."""
    mean, sd = row[f"{name}_mean"], row[f"{name}_sd"]
    if sd is None:
        return _number(mean)
    if sd <= 1e-9 * abs(mean):  # equal values, but for rounding
        return f"{_number(mean)} ± 0"
    digits = max(0, 1 - math.floor(math.log10(sd)))
    return f"{mean:,.{digits}f} ± {sd:,.{digits}f}"


def _share_with_sd(mean: float, sd: float | None) -> str:
    """A share in [0, 1] ± sd in per cent; only all of it reads 100."""
    if not sd:
        return per_cent(mean, 2) + ("" if sd is None else " ± 0")
    digits = max(0, 1 - math.floor(math.log10(100 * sd)))
    return f"{per_cent(mean, digits)} ± {100 * sd:.{digits}f}"


def _number(value: Any) -> str:
    """Three digits that count, more for large numbers."""
    if value is None:
        return NOTHING
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−") if "e" not in text else text


def _count(value: Any) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else f"{value:,.0f}"
