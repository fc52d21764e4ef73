"""The check of a device: that it runs, needs little, and finds what is wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runners import ROOT

WITHOUT = """
import runpy, sys
for name in ("hydra", "omegaconf", "pytorch_lightning", "lightning", "tensorboard", "matplotlib"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def check_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("check_device")


def check(check_device: Any, folder: Path) -> Any:
    return check_device.Check("cpu", True, folder)


@pytest.mark.slow
def test_all_of_it_runs_dry_with_torch_and_numpy_alone(check_device, tmp_path):
    script = str(ROOT / "scripts" / "check_device.py")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, script, "--dry", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "devices.json").read_text())
    assert {*check_device.STEPS, "machine", "seconds"} <= set(found)
    assert not found["failed"]
    made = subprocess.run(
        [sys.executable, script, "--page", str(tmp_path / "devices.json")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert done.stdout.endswith(made)
    assert "A dry run" in made
    for title in ("Error", "The same bits", "Training steps", "until it is solved", "side by side"):
        assert title in made


@pytest.mark.triton
def test_the_kernels_for_gpus_are_checked_in_the_interpreter(
    check_device, monkeypatch, tmp_path, capsys
):
    """In a process of its own, as the tests of the kernels themselves."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("TRITON_INTERPRET=1 must be set before the process starts")
    launch = pytest.importorskip("ntm.kernels.cuda.launch", reason="requirements-cuda.txt")
    run, jobs = launch.run, []
    monkeypatch.setattr(launch, "run", lambda *a, **more: jobs.append(1) or run(*a, **more))
    slow = {"odd sizes": check_device.CASES["odd sizes"]}  # one is enough: a step takes a second
    monkeypatch.setattr(check_device, "CASES", slow)
    asked = ["--dry", "--folder", str(tmp_path), "--steps", "agreement"]
    monkeypatch.setattr("sys.argv", ["check_device.py", *asked])
    assert check_device.main() == 0, capsys.readouterr().out
    assert len(jobs) == 2  # forward and backward


@pytest.mark.parametrize("off", [1e-3, float("nan")])
def test_an_engine_that_is_off_is_found(off, check_device, monkeypatch, tmp_path):
    exact = check_device.outcome

    def wrong(net, engine, inputs):
        found = exact(net, engine, inputs)
        if engine == "fused":
            found["memory"] = found["memory"] + off
        return found

    one = check(check_device, tmp_path)
    check_device.agreement(one)
    assert not one.found["failed"]
    monkeypatch.setattr(check_device, "outcome", wrong)
    check_device.agreement(one)
    assert len(one.found["failed"]) == len(check_device.CASES)
    assert all(": memory is off by" in told for told in one.found["failed"])


def test_a_part_that_is_missing_is_found(check_device, monkeypatch, tmp_path):
    exact = check_device.outcome

    def lacking(net, engine, inputs):
        found = exact(net, engine, inputs)
        if engine == "fused":
            del found["gradient of emit.bias"]
        return found

    monkeypatch.setattr(check_device, "outcome", lacking)
    one = check(check_device, tmp_path)
    check_device.agreement(one)
    assert "gradient of emit.bias" in one.found["failed"][0]


def test_one_bit_that_differs_is_found(check_device, monkeypatch, tmp_path):
    exact, calls = check_device.outcome, []

    def racing(net, engine, inputs):
        found = exact(net, engine, inputs)
        calls.append(1)
        if len(calls) == 3:
            reads = found["reads"].clone()
            reads.view(-1)[0] = torch.nextafter(reads.view(-1)[0], torch.tensor(9.0))
            found["reads"] = reads
        return found

    monkeypatch.setattr(check_device, "outcome", racing)
    one = check(check_device, tmp_path)
    check_device.repeats(one)
    assert one.found["failed"] == ["default: 1 of 3 repeats differ from the first"]


def test_a_step_that_breaks_hides_no_other(check_device, monkeypatch, tmp_path, capsys):
    def broken(_check):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(check_device.STEPS, "speed", broken)
    asked = ["--dry", "--folder", str(tmp_path), "--steps", "speed", "rates"]
    monkeypatch.setattr("sys.argv", ["check_device.py", *asked])
    assert check_device.main() == 1
    found = json.loads((tmp_path / "devices.json").read_text())
    assert found["failed"] == ["speed: RuntimeError: out of memory"]
    assert found["rates"]
    assert "- speed: RuntimeError: out of memory" in capsys.readouterr().out


def test_time_that_is_up_is_said(check_device, monkeypatch, tmp_path):
    asked = ["--dry", "--folder", str(tmp_path), "--seconds", "-1", "--steps", "rates"]
    monkeypatch.setattr("sys.argv", ["check_device.py", *asked])
    assert check_device.main() == 1
    found = json.loads((tmp_path / "devices.json").read_text())
    assert "rates was not begun: the time was up" in found["failed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_is_a_wrong_command(check_device, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["check_device.py"])
    assert check_device.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
