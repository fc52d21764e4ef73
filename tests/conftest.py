"""What the tests of whole runs share: small runs, in this process or in one of their own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ntm import command

ROOT = Path(__file__).parent.parent

SMALL = [
    "model.network.memory_size=16",
    "model.network.controller.hidden_size=20",
    "task.max_length=6",
    "sequences=480",
    "batch_size=16",
    "validate_every=96",
    "evaluation.lengths=[3,6]",
    "evaluation.sequences=4",
]
"""A run of five validations in about two seconds."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def run_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `run_train` or `run_eval` with overrides, in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))

    def run(program: str, *overrides: str) -> int:
        module = importlib.import_module(program)
        name = {"run_train": "train", "run_eval": "eval"}[program]
        monkeypatch.setattr(sys, "argv", [f"{program}.py", *overrides])
        return command.main(ROOT / "configs", name, module.check, module.job)

    return run


def start(folder: Path, program: str, *overrides: str) -> subprocess.Popen[str]:
    """Start a command as a user would, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / f"{program}.py"), *overrides],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def finish(folder: Path, program: str, *overrides: str) -> tuple[int, str, str]:
    """Run a command to its end: exit status, stdout, stderr."""
    process = start(folder, program, *overrides)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err
