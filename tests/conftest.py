"""What all tests share: one thread, Ctrl-C, commands run in this process, and a browser."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runners import run_here


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: who tests a command waits for its processes."""
    return (os.cpu_count() or 1) + 1


COMPILE = """
import sys
sys.executable = ""  # without a helper, what several functions call is compiled once
from ntm.kernels.compiling import kernels
for controller in ("lstm", "feedforward", "any", "step"):
    kernels(controller, sys.argv[1])
"""
"""Has the fused engine compiled for a precision and kept, in half the time of one by one."""

compiling: list[subprocess.Popen[bytes]] = []


def pytest_xdist_setupnodes() -> None:
    """Several workers are for the whole suite: it is compiled before one of them asks for it."""
    for dtype in ("float32", "float64"):
        compiling.append(subprocess.Popen([sys.executable, "-c", COMPILE, dtype]))


def pytest_unconfigure() -> None:
    while compiling:
        process = compiling.pop()
        process.kill()
        process.wait()


LONG = ("test_sweeps", "test_devices", "test_run", "test_package")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts processes comes first: at the end, a worker would be left alone with it."""
    items.sort(key=lambda item: not (item.path.stem in LONG or item.get_closest_marker("slow")))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> None:
    """By what a test starts, too: what a shell has put into the background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run one of the commands in this process, in an empty folder."""

    def run(program: str, *overrides: str) -> int:
        return run_here(monkeypatch, tmp_path, program, *overrides)

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    why = "requirements-pages.txt installs Playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=why)
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end, that it said nothing wrong and asked for nothing is checked."""
    complaints: list[str] = []
    tabs: list[Any] = []

    def open_page(path: Path, hash: str = "", width: int = 1280) -> Any:
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tabs.append(tab)
        tab.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        own = path.as_uri()
        tab.on(
            "request",
            lambda asked: (
                complaints.append(asked.url)
                if not asked.url.startswith((own, "data:", "blob:"))
                else None
            ),
        )
        tab.goto(own + hash)
        return tab

    yield open_page
    for tab in tabs:
        tab.close()
    assert complaints == []
