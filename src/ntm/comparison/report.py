"""A comparison as files: tables, figures, the page report.html and TensorBoard's summaries."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table as TerminalTable

from ntm.commands.command import DONE
from ntm.comparison.events import MEANS_PAGE, write_means
from ntm.comparison.numbers import (
    BOOTSTRAP_SEED,
    CONFIDENCE,
    CURVES,
    RESAMPLINGS,
    Comparison,
    Model,
    band,
    compare,
    curve_rows,
    difference_rows,
    evaluations,
    length_rows,
    model_rows,
    run_rows,
)
from ntm.comparison.page import page
from ntm.folders.runs import FAILED, FINISHED, write_rows, write_whole
from ntm.views import figures
from ntm.views.figures import Curve, Panel

FOLDER = "comparison"
MEAN, MEDIAN = "mean", "median"
STATISTICS = {MEAN: "mean ± sd over seeds", MEDIAN: "median and quartiles over seeds"}
"""What the curves show."""

Summary = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
"""A line, and the ends of the band around it where there is a spread."""


class Table(NamedTuple):
    """A table for readers: every cell is text, not yet escaped."""

    title: str
    caption: str
    headings: list[str]
    rows: list[list[str]]


def compare_job(config: DictConfig) -> int:
    """Compare the runs below a folder, and return the exit status of the command.

    Raises:
        ConfigurationError: There is no run to read; nothing is written.

    """
    comparison = compare(config.runs)
    folder = write_comparison(comparison, config.statistic)
    console = Console()
    console.print(_terminal_table(comparison))
    for note in comparison.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False, highlight=False)
    for line in (
        f"Everything: {folder / 'report.html'}",
        f"TensorBoard: tensorboard --logdir {comparison.root}",
        f"and there the mean ± sd of every model: http://localhost:6006/{MEANS_PAGE}",
    ):
        console.print(line, soft_wrap=True, markup=False)
    return DONE


def write_comparison(comparison: Comparison, statistic: str = MEAN) -> Path:
    """Write every file of a comparison, and TensorBoard's summaries beside the runs.

    Args:
        comparison: From `ntm.comparison.numbers.compare`.
        statistic: A key of `STATISTICS`.

    Returns:
        The folder, ``comparison/`` below that of the runs.

    """
    folder = comparison.root / FOLDER
    numbers = {
        "models": model_rows(comparison),
        "runs": run_rows(comparison),
        "lengths": length_rows(comparison),
        "differences": difference_rows(comparison),
    }
    for name, rows in (numbers | {"curves": curve_rows(comparison)}).items():
        write_rows(folder / f"{name}.csv", rows)
    contents = {"notes": comparison.notes, "bootstrap": _bootstrap_settings(), **numbers}
    text = json.dumps(contents, indent=2, allow_nan=False, default=str) + "\n"
    write_whole(folder / "comparison.json", text.encode())
    shown = STATISTICS[statistic]
    curves, seeds = curve_panels(comparison, statistic), seed_panels(comparison)
    lengths = length_panels(comparison, statistic)
    fewer = any(curve.thin_from is not None for panel in curves for curve in panel.curves)
    thin = "; thin where not every run got so far" if fewer else ""
    drawn = {
        "curves": figures.draw_curves(curves, f"Learning curves, {shown}{thin}"),
        "seeds": figures.draw_curves(seeds, f"Learning curves of every seed{_crosses(seeds)}"),
    }
    if lengths:
        title = f"Fresh sequences, best.ckpt, {shown}; dots are single seeds"
        drawn["lengths"] = figures.draw_curves(lengths, title)
    for name in ("curves", "seeds", "lengths"):
        _write_figure(folder / name, drawn.get(name))
    tables = readable_tables(comparison)
    write_whole(folder / "comparison.md", markdown(comparison, tables, list(drawn)).encode())
    together = [
        one._replace(curves=one.curves + each.curves)
        for one, each in zip(curves, seeds, strict=True)
    ]
    title = f"Comparison of {', '.join(model.label for model in comparison.models)}"
    content = page(title, shown, comparison.notes, tables, together, lengths)
    write_whole(folder / "report.html", content.encode())
    write_means(comparison)
    return folder


def curve_panels(comparison: Comparison, statistic: str) -> list[Panel]:
    """Training and validation, each model one line with its band."""
    return [_panel(column, _band_curves(comparison, column, statistic)) for column in CURVES]


def seed_panels(comparison: Comparison) -> list[Panel]:
    """Training and validation, each run a line."""
    return [
        _panel(
            column,
            [
                Curve(
                    model.label,
                    place,
                    place,
                    run.metrics["sequences"],
                    run.metrics[column],
                    weight="thin",
                    run=run.name,
                    broken_off=not run.finished,
                )
                for place, model in enumerate(comparison.models)
                for run in model.runs
                if run.metrics
            ],
        )
        for column in CURVES
    ]


def length_panels(comparison: Comparison, statistic: str) -> list[Panel]:
    """Wrong bits and exact sequences against length; none where nothing was evaluated."""
    ranges = [model.training_range() for model in comparison.models]
    known = [found for found in ranges if found is not None]
    marked = (min(low for low, _ in known), max(high for _, high in known)) if known else None
    panels = []
    for key, name, scale in (
        ("wrong_bits_per_sequence", "wrong bits per sequence", "wrong bits"),
        ("exact", "share of exact sequences", "share"),
    ):
        curves = [
            curve
            for place, model in enumerate(comparison.models)
            for curve in _length_curves(model, place, key, statistic)
        ]
        x = np.concatenate([curve.x for curve in curves]) if curves else np.ones(1)
        far = x.max() > 8 * x.min()
        panels.append(Panel(name, comparison.difficulty, name, scale, curves, marked, bool(far)))
    return panels if any(panel.curves for panel in panels) else []


def readable_tables(comparison: Comparison) -> list[Table]:
    """The tables of comparison.md and report.html; those with nothing to say are left out."""
    makers: list[Callable[[Comparison], Table]] = [
        _models_table,
        _lengths_table,
        _differences_table,
        _runs_table,
    ]
    return [table for make in makers if (table := make(comparison)).rows]


def markdown(comparison: Comparison, tables: Sequence[Table], pictures: Sequence[str]) -> str:
    """The tables, notes and pictures of a comparison as Markdown."""
    lines = ["# Comparison", ""]
    for table in tables:
        lines += [f"## {table.title}", ""]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in [table.headings]]
        lines += ["|" + "---|" * len(table.headings)]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
        lines += ["", *([table.caption, ""] if table.caption else [])]
    if comparison.notes:
        lines += ["## Notes", "", *(f"- {_cell(note)}" for note in comparison.notes), ""]
    for name in pictures:
        lines += [f"![{name}]({name}.png)", ""]
    return "\n".join(lines)


def _models_table(comparison: Comparison) -> Table:
    rows = [
        [
            row["model"],
            _solved(row),
            _solve(row, "sequences_to_solve_median"),
            _solve(row, "sequences_to_solve_worst"),
            _with_sd(row, "wrong_bits"),
            _with_sd(row, "bits"),
            _with_sd(row, "seconds"),
            _number(row["sequences_per_second_mean"]),
            _count(row["parameters"]),
        ]
        for row in model_rows(comparison)
    ]
    headings = ["model", "solved", "sequences to solve, median", "worst", "wrong bits", "bits"]
    headings += ["seconds a run", "sequences a second", "parameters"]
    caption = (
        "Solved: from some validation on fewer than 0.1 wrong bits per sequence; a failed run "
        "counts as one that never solves, one that still runs or was interrupted does not count. "
        "Wrong bits and bits per sequence: best.ckpt on the test set, finished runs, mean ± "
        "sample standard deviation over seeds."
    )
    return Table("Models", caption, headings, rows)


def _lengths_table(comparison: Comparison) -> Table:
    rows = [
        [
            row["model"],
            _count(row["memory_size"]),
            _count(row[comparison.difficulty]),
            _count(row["runs"]),
            _count(row["sequences_each"]),
            _with_sd(row, "wrong_bits"),
            _number(row["wrong_bits_worst"]),
            f"{row['runs_without_error']} of {row['runs']}",
            _with_sd({key: _percent(row[key]) for key in ("exact_mean", "exact_sd")}, "exact"),
            _number(100 * row["accuracy_mean"]),
        ]
        for row in length_rows(comparison)
    ]
    headings = ["model", "memory", comparison.difficulty, "runs", "sequences each", "wrong bits"]
    headings += ["worst run", "runs without a wrong bit", "exact, %", "right bits, %"]
    caption = (
        "Fresh sequences with best.ckpt; mean ± sample standard deviation over runs. "
        "Exact: share of sequences without one wrong bit."
    )
    return Table(f"By {comparison.difficulty}", caption, headings, rows)


def _differences_table(comparison: Comparison) -> Table:
    rows = [
        [
            row["quantity"],
            f"{row['second']} − {row['first']}",
            _number(row["second_mean"]),
            _number(row["first_mean"]),
            _number(row["difference"]),
            "–" if row["low"] is None else f"{_number(row['low'])} to {_number(row['high'])}",
            f"{row['second_runs']} and {row['first_runs']}",
        ]
        for row in difference_rows(comparison)
    ]
    headings = ["quantity", "models", "mean of the one", "of the other", "difference"]
    headings += [f"{CONFIDENCE:.0%} interval", "runs"]
    caption = (
        f"Percentile bootstrap: the seeds of each model drawn anew with replacement, "
        f"{RESAMPLINGS:,} times, by NumPy's default generator from seed {BOOTSTRAP_SEED} for each "
        "quantity. With fewer than about ten seeds such an interval is too narrow."
    )
    return Table("Differences", caption, headings, rows)


def _runs_table(comparison: Comparison) -> Table:
    rows = [
        [
            f"{row['model']}/{row['run']}",
            row["status"],
            _count(row["sequences"]),
            "never"
            if row["status"] in (FINISHED, FAILED) and row["sequences_to_solve"] is None
            else _count(row["sequences_to_solve"]),
            _number(row["wrong_bits_per_sequence"]),
            _number(row["bits_per_sequence"]),
            _number(row["seconds"]),
        ]
        for row in run_rows(comparison)
    ]
    headings = ["run", "status", "sequences", "solved at", "wrong bits", "bits", "seconds"]
    return Table("Runs", "", headings, rows)


def _panel(column: str, curves: list[Curve]) -> Panel:
    stage, _, metric = column.partition("/")
    wrong = metric == "wrong_bits_per_sequence"
    name = "wrong bits per sequence" if wrong else "loss, nats per bit"
    title = f"{'training' if stage == 'train' else 'validation'}: {name.partition(',')[0]}"
    return Panel(title, "sequences seen", name, "wrong bits" if wrong else "log", curves)


def _band_curves(comparison: Comparison, column: str, statistic: str) -> list[Curve]:
    curves = []
    for place, model in enumerate(comparison.models):
        over = band(model, column)
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
        name = f"{model.label} ({runs} seed{'s' if runs > 1 else ''})"
        curves.append(Curve(name, place, place, over.sequences, *spread, thin_from=thin_from))
    return curves


def _length_curves(model: Model, place: int, key: str, statistic: str) -> list[Curve]:
    """A line a memory size with its band, then the single runs."""
    by_size: dict[float | None, dict[float, list[float]]] = {}
    for (size, length), rows in evaluations(model).items():
        by_size.setdefault(size, {})[length] = [row[key] for row in rows]
    curves = []
    for nth, (size, at) in enumerate(by_size.items()):
        name = model.label if len(by_size) == 1 else f"{model.label}, memory {size:,.0f}"
        lines = _summary(list(at.values()), statistic)
        curves.append(Curve(name, place, place + nth, np.array(list(at)), *lines))
        for run in model.runs:
            rows = [r for r in run.evaluations if _same(r["memory_size"], size)]
            rows.sort(key=lambda r: r[run.difficulty])
            x, y = ([row[k] for row in rows] for k in (run.difficulty, key))
            if rows:
                curves.append(
                    Curve(
                        name,
                        place,
                        place + nth,
                        np.array(x),
                        np.array(y),
                        weight="dots",
                        run=run.name,
                    )
                )
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


def _write_figure(path: Path, figure: Figure | None) -> None:
    """Write a figure as PNG and SVG; None takes away what an earlier comparison left."""
    for ending, draw in ((".png", figures.png), (".svg", figures.svg)):
        file = path.with_suffix(ending)
        if figure is None:
            file.unlink(missing_ok=True)
        else:
            write_whole(file, draw(figure))


def _bootstrap_settings() -> dict[str, Any]:
    return {"resamplings": RESAMPLINGS, "confidence": CONFIDENCE, "seed": BOOTSTRAP_SEED}


def _terminal_table(comparison: Comparison) -> TerminalTable:
    drawn = TerminalTable(title=f"Runs below {comparison.root}")
    drawn.add_column("model")
    for heading in ("solved", "to solve, median", "worst", "wrong bits", "seconds"):
        drawn.add_column(heading, justify="right")
    for row in _models_table(comparison).rows:
        model, solved, median, worst, wrong, _, seconds, *_ = row
        drawn.add_row(*map(_plain_cell, (model, solved, median, worst, wrong, seconds)))
    return drawn


def _plain_cell(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def _solved(row: dict[str, Any]) -> str:
    parts = [f"{row['solved']} of {row['finished'] + row['failed']}"]
    parts += [f"{row[key]} {key}" for key in ("failed", "unfinished") if row[key]]
    return ", ".join(parts)


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


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _number(value: Any) -> str:
    """Three digits that count, more for large numbers."""
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−") if "e" not in text else text


def _count(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:,.0f}"
