"""Whole commands for tests, in a process of their own or in this one, and what pages come to."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ntm.commands import command

ROOT = Path(__file__).parent.parent
BESIDE = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
"""PYTHONPATH with which a command finds the faults of tests."""

SMALL = [
    "model.network.memory_size=16",
    "model.network.controller.hidden_size=20",
    "task.max_length=6",
    "sequences=480",
    "batch_size=16",
    "validate_every=96",
    "evaluation.at=[3,6]",
    "evaluation.kinds=[drawn]",
    "evaluation.sequences=4",
    "callbacks.pictures_every=null",
    "callbacks.figures=false",
]
"""A run of five validations in about two seconds."""


def run_here(patch: pytest.MonkeyPatch, folder: Path, program: str, *overrides: str) -> int:
    """Run a command in this process, which has what it imports: its exit status."""
    patch.chdir(folder)
    patch.syspath_prepend(str(ROOT))
    module = importlib.import_module(program)
    importlib.reload(module)  # as a new process has it
    name = program.removeprefix("run_")
    patch.setattr(sys, "argv", [f"{program}.py", *overrides])
    ready = module.plan.settle if program == "run_train" else None
    return command.main(ROOT / "configs", name, module.check, module.job, ready=ready)


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
    out, err = process.communicate(timeout=1800)
    return process.returncode, out, err


def run_script(
    name: str, folder: Path, *arguments: str, **environment: str
) -> tuple[int, str, str]:
    """Run one of scripts/ in a folder, one job at a time: exit status, stdout, stderr."""
    done = subprocess.run(
        [str(ROOT / "scripts" / name), *arguments],
        cwd=folder,
        env=os.environ | {"JOBS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def wait_until(tab: Any, condition: str) -> None:
    """As Playwright's own, which would need the page to allow `eval`."""
    for _ in range(600):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(f"{condition} never came")
