"""docs/results/paper.md: the results section of the paper beside what these networks came to.

    python scripts/paper.py

Takes the finished runs under outputs/paper_<task> into docs/results/paper/*.csv, where those of
earlier calls and machines stay, and makes the page from these tables and the notes beside them.
`scripts/reproduce_paper.sh` trains the runs and ends with this.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntm.comparison.numbers import wilson
from ntm.folders.runs import DRAWN, FINISHED, RunFolder, read_rows, write_rows, write_whole
from ntm.views import figures
from ntm.views.figures import Curve, Panel

ROOT = Path(__file__).resolve().parent.parent
DATA = Path("docs") / "results" / "paper"
"""Below the folder that the command is given in, as outputs/ is."""
NOTES = ROOT / "docs" / "results" / "paper" / "notes.md"
MODELS = {"ntm": "NTM, LSTM controller", "ntm_feedforward": "NTM, feedforward", "lstm": "LSTM"}
TASKS = {
    "copy": "Copy (section 4.1)",
    "copy_long": "Copy: the baseline with five times its budget",
    "repeat_copy": "Repeat copy (section 4.2)",
    "associative_recall": "Associative recall (section 4.3)",
    "dynamic_ngrams": "Dynamic N-grams (section 4.4)",
    "priority_sort": "Priority sort (section 4.5)",
}
PARAMETERS = {
    "copy": ("67,561", "17,162", "1,352,969"),
    "repeat_copy": ("66,111", "16,712", "5,312,007"),
    "associative_recall": ("70,330", "146,845", "1,344,518"),
    "dynamic_ngrams": ("61,749", "14,656", "331,905"),
    "priority_sort": ("269,038", "508,305", "384,424"),
}
"""Of the paper's tables 2, 1 and 3, by task."""
POINTS_OF_A_CURVE = 60
"""Validations of a run that are kept for its curve; the last one always is."""
OF_A_POINT = re.compile(r"(inside_)?[a-z]+_\d+(_[a-z]+_\d+)*")
"""Names of the pictures of best.ckpt, as drawn and with the memory of training."""
NUMBERS = ("length", "repeats", "items", "steps")

Row = dict[str, Any]
Rows = Sequence[Row]


def collect(outputs: Path) -> None:
    """Take every finished run into the tables, in place of what they had of it."""
    runs: list[Row] = []
    points: list[Row] = []
    curves: list[Row] = []
    for path in sorted(outputs.glob("paper_*/*/seed_*")):
        folder = RunFolder(path)
        result = folder.read_result()
        if result.get("status") != FINISHED:
            continue
        task = path.parent.parent.name.removeprefix("paper_")
        key = {"task": task, "model": result["model"], "seed": result["seed"]}
        runs.append(key | run_row(result))
        points += [key | row for row in point_rows(folder)]
        curves += [key | row for row in curve_rows(folder)]
    for name, rows in (("runs", runs), ("points", points), ("curves", curves)):
        merge(DATA / f"{name}.csv", rows)
    for task in TASKS:
        show(task, sorted(outputs.glob(f"paper_{task}/ntm/seed_*")))


def show(task: str, folders: Sequence[Path]) -> None:
    """Keep the first machine's own pictures: an answer beyond its training, and its inside."""
    for path in folders:
        found = sorted((path / "figures").glob("*.png"), key=lambda p: (len(p.name), p.name))
        found = [p for p in found if OF_A_POINT.fullmatch(p.stem) and "memory" not in p.name]
        inside = [p for p in found if p.name.startswith("inside_")]
        answers = [p for p in found if p not in inside]
        if inside and answers and RunFolder(path).read_result().get("status") == FINISHED:
            write_whole(DATA / f"{task}_inside.png", inside[-1].read_bytes())
            write_whole(DATA / f"{task}_answer.png", answers[-1].read_bytes())
            return


def run_row(result: Row) -> Row:
    """What the page needs of result.json."""
    keys = (
        "parameters", "batch_size", "sequences", "sequences_to_first_solve", "sequences_to_solve",
        "wrong_bits_per_sequence", "bits_per_sequence", "bits_above_optimum", "skipped_steps",
        "seconds",
    )  # fmt: skip
    goal = result["solved_when"]
    row = {key: "" if result.get(key) is None else result[key] for key in keys}
    return row | {"metric": goal["metric"], "below": goal["below"]}


def point_rows(folder: RunFolder) -> list[Row]:
    """What the page needs of eval/results.csv."""
    columns = (
        *NUMBERS, "memory_size", "sequences", "wrong_bits_per_sequence", "bits_per_sequence",
        "bits_above_optimum", "accuracy", "exact", "wrong_data_bits", "wrong_end_marker_bits",
    )  # fmt: skip
    rows = [
        row
        for row in folder.read_evaluations()
        if row["checkpoint"] == "best" and row["kind"] == DRAWN
    ]
    return [{column: row.get(column, "") for column in columns} for row in rows]


def curve_rows(folder: RunFolder) -> list[Row]:
    """Some validations of metrics.csv."""
    rows = read_rows(folder.metrics)
    every = math.ceil(len(rows) / POINTS_OF_A_CURVE)
    columns = (
        "sequences", "val/bits_per_sequence", "val/wrong_bits_per_sequence",
        "val/bits_above_optimum",
    )  # fmt: skip
    return [
        {column: row.get(column, "") for column in columns}
        for k, row in enumerate(rows, 1)
        if k % every == 0 or k == len(rows)
    ]


def merge(path: Path, rows: list[Row], by: str = "task") -> None:
    """Put the rows of some runs into a table, in place of those that it has of them.

    A run is what `by`, the model and the seed name.
    """

    def key(row: Row) -> tuple[str, str, int]:
        return row[by], row["model"], int(row["seed"])

    mine = {key(row) for row in rows}
    kept = [row for row in (read_rows(path) if path.is_file() else []) if key(row) not in mine]
    together = sorted([*kept, *rows], key=key)
    write_rows(path, together, header=dict.fromkeys(name for row in together for name in row))


def page() -> str:
    """The whole page."""
    runs, points, curves = (
        read_rows(DATA / f"{name}.csv") for name in ("runs", "points", "curves")
    )
    notes = sections(NOTES.read_text())
    lines = [
        "<!-- Made by scripts/paper.py; written by hand is docs/results/paper/notes.md. -->",
        "",
    ]
    lines += [notes[""], ""]
    for task, title in TASKS.items():
        of_task = [row for row in runs if row["task"] == task]
        lines += [f"## {title}", "", notes.get(task, ""), ""]
        if not of_task:
            lines += ["Not run yet.", ""]
            continue
        lines += [*table(RESULTS, of_task), ""]
        picture = f"{task}.png"
        own = [row for row in curves if row["task"] == task]
        write_whole(DATA / picture, figures.png(learning_curves(own, of_task[0], title)))
        lines += [f"![{title}: learning curves](paper/{picture})", ""]
        lines += [*by_point([row for row in points if row["task"] == task]), ""]
        for name, what in (
            ("answer", "an answer"),
            ("inside", "the machine inside"),
        ):
            if (DATA / f"{task}_{name}.png").is_file():
                lines += [f"![{title}: {what}](paper/{task}_{name}.png)", ""]
    lines += ["## Parameters", "", notes.get("parameters", ""), "", *parameters(runs), ""]
    lines += [notes.get("end", ""), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def sections(text: str) -> dict[str, str]:
    """The notes by the name in their headings; what stands before the first has none."""
    parts = re.split(r"^## (\w+)$", text, flags=re.MULTILINE)
    return {"": parts[0].strip()} | {
        name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def values(rows: Rows, column: str) -> np.ndarray:
    """A column's numbers, where they are known."""
    return np.array([float(row[column]) for row in rows if row.get(column, "") != ""])


def spread(rows: Rows, column: str) -> str:
    """Mean and sample standard deviation."""
    found = values(rows, column)
    if not len(found):
        return "–"
    return number(found.mean()) + (f" ± {number(found.std(ddof=1))}" if len(found) > 1 else "")


def number(value: float) -> str:
    """Three digits that count."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.0e}"


def solved(rows: Rows) -> str:
    """How many, of how many, and the interval of the rate."""
    count = len(values(rows, "sequences_to_solve"))
    low, high = wilson(count, len(rows))
    return f"{count} of {len(rows)} ({100 * low:.0f}–{100 * high:.0f} %)"


def when(rows: Rows) -> str:
    """Median and worst of the sequences to solve; a run that never does is the worst."""
    found = [float(row["sequences_to_solve"] or math.inf) for row in rows]
    told = [f"{at:,.0f}" if math.isfinite(at) else "never" for at in (np.median(found), max(found))]
    return " / ".join(told)


RESULTS: dict[str, Callable[[Rows], str]] = {
    "runs": lambda rows: f"{len(rows)} (seeds {', '.join(row['seed'] for row in rows)})",
    "sequences": lambda rows: spread(rows, "sequences").partition(" ±")[0],
    "solved (95 %)": solved,
    "sequences to solve, median / worst": when,
    "wrong bits": lambda rows: spread(rows, "wrong_bits_per_sequence"),
    "bits": lambda rows: spread(rows, "bits_per_sequence"),
    "above the optimum": lambda rows: spread(rows, "bits_above_optimum"),
    "skipped steps": lambda rows: f"{values(rows, 'skipped_steps').sum():.0f}",
    "seconds a run": lambda rows: spread(rows, "seconds"),
}
"""Columns of a task's table, each from the runs of a model."""


def table(columns: dict[str, Callable[[Rows], str]], rows: Rows) -> list[str]:
    """A line for each model; columns that say nothing are left out."""
    by_model = {name: [r for r in rows if r["model"] == model] for model, name in MODELS.items()}
    cells = {
        heading: [cell(of_model) for of_model in by_model.values() if of_model]
        for heading, cell in columns.items()
    }
    cells = {heading: column for heading, column in cells.items() if {*column} - {"–"}}
    names = [name for name, of_model in by_model.items() if of_model]
    return markdown(["model", *cells], list(zip(names, *cells.values(), strict=True)))


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines."""
    return [
        f"| {' | '.join(headings)} |",
        "|" + "---|" * len(headings),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def by_point(rows: Rows) -> list[str]:
    """Every point that was evaluated, each model's runs together."""
    names = [name for name in NUMBERS if any(row[name] for row in rows)]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = (row["model"], *(row[name] for name in names), row["memory_size"], row["sequences"])
        groups.setdefault(key, []).append(row)
    order = {model: k for k, model in enumerate(MODELS)}
    columns: dict[str, Callable[[Rows], str]] = {
        "wrong bits": lambda rows: spread(rows, "wrong_bits_per_sequence"),
        "bits": lambda rows: spread(rows, "bits_per_sequence"),
    }
    if any(row["wrong_data_bits"] for row in rows):
        columns["wrong data bits, %"] = data_share
        columns["wrong end-marker bits"] = lambda rows: spread(rows, "wrong_end_marker_bits")
    if any(row["bits_above_optimum"] for row in rows):
        columns["above the optimum"] = lambda rows: spread(rows, "bits_above_optimum")
    else:  # where chance decides bits, nobody is without a wrong one
        columns["runs without a wrong bit"] = lambda rows: below(rows, 1e-9)
        columns["below one"] = lambda rows: below(rows, 1)
    lines = [
        [
            MODELS[key[0]], *key[1:-2], key[-2] or "–", key[-1], str(len(groups[key])),
            *(cell(groups[key]) for cell in columns.values()),
        ]
        for key in sorted(groups, key=lambda k: (order[k[0]], *map(int, k[1:-2]), int(k[-2] or 0)))
    ]  # fmt: skip
    return markdown(["model", *names, "memory", "sequences each", "runs", *columns], lines)


def below(rows: Rows, bound: float) -> str:
    """How many of the runs have fewer wrong bits."""
    return f"{(values(rows, 'wrong_bits_per_sequence') < bound).sum()} of {len(rows)}"


def data_share(rows: Rows) -> str:
    """Wrong data bits in percent of all data bits."""
    bits = [6 * int(row["length"]) * int(row["repeats"]) for row in rows]
    share = [100 * float(row["wrong_data_bits"]) / n for row, n in zip(rows, bits, strict=True)]
    return spread([{"share": value} for value in share], "share")


def learning_curves(rows: Rows, run: Row, title: str) -> figures.Figure:
    """Bits per sequence, the paper's cost, and what a run is solved by, every run a line."""
    panels = []
    bound = float(run["below"])
    for metric, scale in (("bits_per_sequence", "log"), (run["metric"], "to 0")):
        name = metric.replace("_", " ")
        curves = []
        for place, (model, label) in enumerate(MODELS.items()):
            of_model = [row for row in rows if row["model"] == model]
            for seed in sorted({row["seed"] for row in of_model}, key=int):
                own = [row for row in of_model if row["seed"] == seed]
                x, y = values(own, "sequences"), values(own, f"val/{metric}")
                curves.append(Curve(label, place, place, x, y, weight="thin", run=f"seed_{seed}"))
        panels.append(Panel(name, "sequences seen", name, scale, curves, bound=bound))
    return figures.draw_curves(panels, title)


def parameters(runs: Rows) -> list[str]:
    """Ours beside the paper's."""
    lines = []
    for task, published in PARAMETERS.items():
        for model, paper in zip(MODELS, published, strict=True):
            own = [row for row in runs if row["task"] == task and row["model"] == model]
            ours = f"{int(own[0]['parameters']):,}" if own else "–"
            lines.append([TASKS[task].partition(" (")[0], MODELS[model], ours, paper])
    return markdown(["task", "model", "here", "in the paper"], lines)


def main() -> int:
    """Collect, and write the page."""
    collect(Path("outputs"))
    write_whole(DATA.parent / "paper.md", page().encode())
    print(DATA.parent / "paper.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
