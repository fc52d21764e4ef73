"""docs/results/robustness.md: the default recipe with one setting changed at a time.

    python scripts/robustness.py < rows

Takes the finished runs under outputs/robustness_<row> into docs/results/robustness/runs.csv, where
those of earlier calls stay, and makes the page from this table and the notes beside it. The rows,
a name and what it changes in each line of standard input, come from `scripts/robustness.sh`, which
trains the runs and ends with this.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paper import ROOT, Row, Rows, markdown, merge, sections, values, when

from ntm.folders.runs import DRAWN, FINISHED, RunFolder, read_rows, write_whole

DATA = Path("docs") / "results" / "robustness"
NOTES = ROOT / DATA / "notes.md"


def collect(outputs: Path) -> None:
    """Take every finished run into the table, in place of what it had of it."""
    found = []
    for path in sorted(outputs.glob("robustness_*/*/seed_*")):
        folder = RunFolder(path)
        result = folder.read_result()
        if result.get("status") == FINISHED:
            row = path.parent.parent.name.removeprefix("robustness_")
            key = {"row": row, "model": result["model"], "seed": result["seed"]}
            found.append(key | run_row(folder, result))
    merge(DATA / "runs.csv", found, by="row")


def run_row(folder: RunFolder, result: Mapping[str, Any]) -> Row:
    """What the page needs of a run."""
    rows = [row for row in folder.read_evaluations() if row["checkpoint"] == "best"]
    exact = {(row["kind"], row["length"]): float(row["exact"]) for row in rows}
    at_20 = [share for (_, length), share in exact.items() if length == "20"]
    return {
        "sequences": result["sequences"],
        "sequences_to_solve": result["sequences_to_solve"] or "",
        "wrong_bits_per_sequence": result["wrong_bits_per_sequence"],
        "kinds_exact_at_20": sum(share == 1 for share in at_20),
        "kinds": len(at_20),
        "exact_at_120": exact.get((DRAWN, "120"), ""),
    }


def page(grid: Mapping[str, str]) -> str:
    """The whole page.

    Raises:
        ValueError: A row that does not solve with every seed has no note.

    """
    runs, notes = read_rows(DATA / "runs.csv"), sections(NOTES.read_text())
    lines, missing = [], []
    for name, changed in grid.items():
        own = [run for run in runs if run["row"] == name]
        if not own:
            lines.append([shown(changed), "not run yet", *[""] * 7])
            continue
        if not is_solved(own) and not notes.get(name):
            missing.append(name)
        lines.append([shown(changed), *cells(own), " ".join(notes.get(name, "").split())])
    if missing:
        raise ValueError(f"{NOTES} must say why there is a seed without success: {missing}")
    headings = ["changed", "seeds", "budget", "solved", "sequences to solve, median / worst"]
    headings += ["wrong bits", "every kind exact at 20", "exact at 120", "remarks"]
    top = "<!-- Made by scripts/robustness.py; written by hand is robustness/notes.md. -->\n"
    return "\n".join([top, notes[""], "", *markdown(headings, lines), "", notes.get("end", "")])


def shown(changed: str) -> str:
    """What a row changes, as it is given to run_train.py."""
    return f"`{changed}`" if changed else "nothing"


def is_solved(runs: Rows) -> bool:
    """Whether every seed came to solve the task."""
    return len(values(runs, "sequences_to_solve")) == len(runs)


def cells(runs: Rows) -> list[str]:
    """A row's numbers over its seeds."""
    solved = len(values(runs, "sequences_to_solve"))
    wrong = values(runs, "wrong_bits_per_sequence")
    kinds = sum(run["kinds_exact_at_20"] == run["kinds"] for run in runs)
    exact = sum(value == 1 for value in values(runs, "exact_at_120"))
    told = f"{solved} of {len(runs)}"
    return [
        ", ".join(run["seed"] for run in runs),
        f"{int(runs[0]['sequences']):,}",
        told if is_solved(runs) else f"**{told}**",
        when(runs),
        f"{wrong.mean():.3g}",
        f"{kinds} of {len(runs)}",
        f"{exact} of {len(runs)}",
    ]


def main() -> int:
    """Collect, and write the page."""
    parts = [line.strip().partition(" ") for line in sys.stdin if line.strip()]
    collect(Path("outputs"))
    try:
        text = page({name: changed for name, _, changed in parts})
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    write_whole(DATA.parent / "robustness.md", text.encode())
    print(DATA.parent / "robustness.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
