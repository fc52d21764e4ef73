"""Draw the validation curves of run folders over one another.

python scripts/plot_curves.py curves.png outputs/copy/ntm/seed_0 outputs/copy/lstm/seed_0
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from ntm.figures import png
from ntm.runs import read_rows, write_whole


def main() -> None:
    """Read metrics.csv of every run and write one picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="the PNG file to write")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    arguments = parser.parse_args()

    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=120)
    axis = figure.subplots()
    for run in arguments.runs:
        rows = read_rows(run / "metrics.csv")
        sequences = [int(row["sequences"]) for row in rows]
        wrong = [float(row["val/wrong_bits_per_sequence"]) for row in rows]
        axis.plot(sequences, wrong, label="/".join(run.parts[-3:]), linewidth=1.5)
    axis.axhline(0.1, color="grey", linestyle=":", linewidth=1, label="solved below")
    axis.set_yscale("symlog", linthresh=0.1)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("sequences seen")
    axis.set_ylabel("wrong bits per sequence, validation")
    axis.legend()
    axis.grid(alpha=0.3)
    write_whole(arguments.picture, png(figure))


if __name__ == "__main__":
    main()
