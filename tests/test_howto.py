"""What the pages of docs/howto tell to do: their Python is run, and their commands are composed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runners import ROOT, run_here

from ntm.commands import command, configuration

PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs/howto").glob("*.md"))}
OWN = ("controller", "model")
"""Pages with files of the reader's own, without which their commands mean nothing."""
FEW = [
    "sequences=16", "validate_every=16", "evaluation.at=[3]", "evaluation.kinds=[drawn]",
    "evaluation.sequences=2", "callbacks.pictures_every=null", "callbacks.figures=false",
]  # fmt: skip
ALONE = """
import sys, torch
answer = torch.export.load("answer.pt2").module()
assert answer(torch.zeros(7, 1, 9)).shape == (7, 1, 8)
assert "ntm" not in sys.modules
"""
"""What somebody without this package does with the last file of the page on exporting."""


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(r"(?ms)^```([^\n]*)\n(.*?)^```$", PAGES[page])
    return [text for kind, text in found if kind == language]


def python(page: str) -> list[str]:
    return blocks(page, "python")


def commands(page: str) -> list[str]:
    """Lines of the blocks without a language, those that go on joined."""
    text = "".join(blocks(page, "")).replace("\\\n", "")
    return [line for line in text.splitlines() if line]


def test_there_is_something_to_run():
    assert {"controller", "model", "finetune", "export"} == {p for p in PAGES if python(p)}
    assert sum(len(commands(page)) for page in PAGES) > 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the default machine, hardly trained."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        assert run_here(patch, folder, "run_train", "model=ntm", *FEW) == 0
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if python(page)])
def test_the_python_of_a_page_runs_from_top_to_bottom(page, trained, monkeypatch):
    monkeypatch.chdir(trained)
    names: dict[str, object] = {"__name__": page}
    for block in python(page):
        exec(compile(block, f"{page}.md", "exec"), names)
    if page == "export":
        subprocess.run([sys.executable, "-c", ALONE], check=True)


@pytest.mark.parametrize(
    "line",
    [line for page in PAGES if page not in OWN for line in commands(page)],
)
def test_a_command_is_one_that_can_be_given(line):
    words = shlex.split(line, comments=True)
    while "=" in words[0]:  # the environment
        words.pop(0)
    known = {f"run_{name}.py": name for name in ("train", "eval", "compare", "inside")}
    if words[0].endswith("multiple_train.sh"):
        words = ["python", "run_train.py", *words[1:]]
    if words[0] in ("pip", "tensorboard") or words[1].startswith("scripts/"):
        assert words[1] in ("install", "--logdir") or (ROOT / words[1]).exists()
        return
    assert words[0] == "python"
    overrides = [single(word) for word in words[2:] if not word.startswith(("-", "hydra"))]
    config = command.compose(ROOT / "configs", known[words[1]], overrides)
    check = {
        "run_train.py": configuration.check_values,
        "run_eval.py": configuration.check_evaluation,
        "run_compare.py": configuration.check_comparison,
        "run_inside.py": configuration.check_inside,
    }
    check[words[1]](config)


def single(override: str) -> str:
    """An override of a sweep with the first of its values."""
    key, _, value = override.partition("=")
    if value.startswith("range("):
        return f"{key}=0"
    return override if value.startswith("[") else f"{key}={value.split(',')[0]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", OWN)
def test_a_network_of_ones_own_trains_and_is_evaluated(page, tmp_path):
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for program in ("run_train.py", "run_eval.py"):
        shutil.copy(ROOT / program, tmp_path)
    files = re.findall(r"`([\w/]+\.(?:py|yaml))`[^`]*:\n\n```\w+\n(.*?)```", PAGES[page], re.DOTALL)
    assert [name.rpartition(".")[2] for name, _ in files] == ["py", "yaml"]
    for name, content in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(content)
    lines = commands(page)
    assert [line.split()[1] for line in lines] == ["run_train.py", "run_eval.py"]
    for line, more in zip(lines, (FEW, ["sequences=2"]), strict=True):
        done = subprocess.run(
            [sys.executable, *shlex.split(line)[1:], *more],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path / "src"), "PATH": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
