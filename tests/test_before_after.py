"""The picture of two runs side by side: that it says of them what evaluating them says."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
from runners import ROOT, SMALL

from ntm.folders.runs import RunFolder


@pytest.fixture
def before_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("before_after")


def test_it_tells_what_evaluation_tells(before_after, run_command, monkeypatch, capsys, tmp_path):
    runs = [f"outputs/copy/ntm/seed_{seed}" for seed in (0, 1)]
    for seed, run in enumerate(runs):
        assert run_command("run_train", *SMALL, f"seed={seed}") == 0
        hundred = ["at=[5]", "sequences=100", "kinds=[sparse]", "memory_size=20"]
        assert run_command("run_eval", f"run={run}", *hundred) == 0
    figure = before_after.picture(*runs, "sparse", 5, 20)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    for run, title in zip(runs, titles, strict=True):
        rows = RunFolder(run).read_evaluations()
        (row,) = [row for row in rows if (row["kind"], row["memory_size"]) == ("sparse", "20")]
        assert f"{float(row['wrong_bits_per_sequence']):.3g} in the mean" in title
    # The bars of the first are the wrong bits of its worst sequence.
    bars = next(axis for axis in figure.axes if axis.get_ylabel() == "wrong\nbits")
    (told,) = re.findall(r"before: (\d+) bits", titles[0])
    assert sum(bar.get_height() for bar in bars.patches) == int(told) > 0

    monkeypatch.setattr("sys.argv", ["before_after.py", *runs, "sparse", "5", "made.png", "20"])
    assert before_after.main() == 0
    assert (tmp_path / "made.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.endswith("made.png\n")


def test_what_is_asked_wrongly_is_one_line(before_after, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["before_after.py", "here", "there", "zeros", "20", "made.png"])
    assert before_after.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
