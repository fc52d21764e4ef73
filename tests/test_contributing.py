"""A sixth task, exactly as CONTRIBUTING.md shows it."""

import re
import shutil
import subprocess
import sys

import pytest
from runners import ROOT

SHOWN = (ROOT / "CONTRIBUTING.md").read_text().partition("## Adding a task")[2]
FILES = re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)```", SHOWN, re.DOTALL)


def test_it_is_one_file_and_one_config_of_under_forty_lines():
    assert [name for name, _ in FILES] == ["src/ntm/tasks/reverse.py", "configs/task/reverse.yaml"]
    assert sum(content.count("\n") for _, content in FILES) < 40


@pytest.mark.slow
def test_it_trains_is_evaluated_and_drawn(tmp_path):
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for program in ("run_train.py", "run_eval.py"):
        shutil.copy(ROOT / program, tmp_path)
    for name, content in FILES:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(content)

    def run(program: str, *overrides: str) -> None:
        done = subprocess.run(
            [sys.executable, program, *overrides],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path / "src"), "PATH": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    run(
        "run_train.py", "task=reverse", "model=lstm", "model.network.hidden_size=16",
        "curriculum=growing", "sequences=32", "validate_every=16", "evaluation.sequences=2",
    )  # fmt: skip
    folder = tmp_path / "outputs" / "reverse" / "lstm" / "seed_0"
    run("run_eval.py", f"run={folder}", "at=[7]", "kinds=[drawn,zeros]", "sequences=3")
    rows = [line.split(",")[:2] for line in (folder / "eval/results.csv").read_text().split()]
    assert [length for length, kind in rows if kind == "drawn"] == ["5", "7", "10", "20"]
    assert [length for length, kind in rows if kind == "zeros"] == ["5", "7", "10", "20"]
    assert (folder / "figures" / "length_7.png").stat().st_size > 0
