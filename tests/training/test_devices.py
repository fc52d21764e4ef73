"""One run over several processes comes to what it comes to in one; nothing names a device."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from faults import faults, hold, release, wait_until_held
from runners import BESIDE, ROOT, SMALL, finish, start
from written import assert_same_tensors, checkpoint, event_steps, result, rows, untimed

from ntm.folders.locks import Lock

TWO = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
# Rows of unequal number and length: each process has other target bits than its neighbour.
UNEVEN = [*SMALL, "batch_size=15", "validate_every=90", "task.mixed_lengths=true"]
UNEVEN += ["sequences=1080"]  # twelve validations


TOGETHER = pytest.mark.xdist_group("two processes")
"""What one worker runs, so that the whole run is trained once."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two processes, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    status, out, err = finish(folder, "run_train", *UNEVEN, *TWO)
    assert status == 0, err
    assert out.count("tensorboard --logdir") == 1
    for row in rows(folder / "outputs" / "copy" / "ntm" / "seed_0"):
        assert len(re.findall(rf" {int(row['sequences']):,} sequences ", err)) == 1, err
    return folder / "outputs" / "copy" / "ntm" / "seed_0"


@pytest.mark.slow
@TOGETHER
def test_two_processes_come_to_the_same_run_as_one(whole, run_command, tmp_path):
    assert run_command("run_train", *UNEVEN) == 0
    alone = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    exact = ("sequences", "train/wrong_bits_per_sequence", "val/wrong_bits_per_sequence")
    assert len(rows(whole)) == len(rows(alone))
    for one, other in zip(rows(whole), rows(alone), strict=True):
        for column in one.keys() - {"seconds"}:
            tolerance = 0 if column in exact else 1e-5
            assert float(one[column]) == pytest.approx(float(other[column]), rel=tolerance), column
    for name in ("last", "best"):
        one, other = (checkpoint(folder, name)["state_dict"] for folder in (whole, alone))
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5, msg=key)
    steps = [int(row["sequences"]) for row in rows(alone)]
    assert event_steps(whole, "val/loss") == steps
    two, one = result(whole), result(alone)
    assert two["bits_per_sequence"] == pytest.approx(one["bits_per_sequence"], rel=1e-5)
    for key in ("status", "wrong_bits_per_sequence", "sequences", "parameters", "batch_size"):
        assert two[key] == one[key]
    written = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    expected = {path.relative_to(alone) for path in alone.rglob("*") if path.is_file()}
    assert {p for p in written if "tfevents" not in p.name} == {
        p for p in expected if "tfevents" not in p.name
    }


def child_of(process: subprocess.Popen[str]) -> int:
    """The other process of a run over two."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    pairs = [map(int, line.split()) for line in listed.splitlines()]
    (child,) = (pid for pid, parent in pairs if parent == process.pid)
    return child


@pytest.mark.slow
@TOGETHER
def test_stopped_or_lost_processes_end_together_and_go_on_to_the_same_bits(
    whole, tmp_path, monkeypatch
):
    """SIGTERM to one process, Ctrl-C to all, one of them killed: three times in one run."""
    monkeypatch.setenv("PYTHONPATH", BESIDE)
    asked = [*UNEVEN, *TWO, faults(tmp_path)]
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    stops = [
        (2, "interrupted", lambda process: process.terminate()),
        (4, "interrupted", lambda process: os.killpg(process.pid, signal.SIGINT)),  # as Ctrl-C does
        (6, "failed", lambda process: os.kill(child_of(process), signal.SIGKILL)),
    ]
    for number, (validations, status, stop) in enumerate(stops):
        hold(tmp_path, after=validations)
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run_train.py"), *asked],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_until_held(tmp_path, process)
        stop(process)
        release(tmp_path)
        _, err = process.communicate(timeout=300)
        assert process.returncode == {"interrupted": 130, "failed": 1}[status], err
        assert err.count("going on after") == min(number, 1)
        assert result(folder)["status"] == status
        last = err.strip().splitlines()[-1]
        if status == "failed":
            assert result(folder)["reason"] in last
        else:
            assert "last.ckpt" in last
            assert "Traceback" not in err
    status, _, err = finish(tmp_path, "run_train", *asked)
    assert status == 0, err
    assert err.count("going on after") == 1
    assert untimed(folder) == untimed(whole)
    assert_same_tensors(
        checkpoint(folder, "last")["state_dict"], checkpoint(whole, "last")["state_dict"]
    )


WATCHED = """
import os, subprocess, sys, time
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from ntm.training import devices
devices.SECONDS_TO_TELL = 3
dead = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
dead.wait()
_ChildProcessObserver(os.getpid(), [devices.SeenLater(dead)], sleep_period=0.1).start()
time.sleep(1)
print("told", flush=True)
time.sleep(60)
"""


def test_the_first_process_has_time_to_tell_before_it_is_killed():
    """Lightning would kill it within five seconds of another's death, noticed or not."""
    command = [sys.executable, "-c", WATCHED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout == "told\n", done.stderr
    assert done.returncode == -signal.SIGKILL


@pytest.mark.soak
def test_runs_of_a_sweep_use_several_devices_one_after_another(whole, tmp_path):
    status, out, err = finish(tmp_path, "run_train", "-m", *UNEVEN, *TWO, "seed=0,1")
    assert status == 0, err
    assert "ntm: 2 of 2 finished" in out
    folder = tmp_path / "outputs" / "copy" / "ntm"
    assert [result(folder / f"seed_{seed}")["seed"] for seed in (0, 1)] == [0, 1]
    assert untimed(folder / "seed_0") == untimed(whole)
    assert untimed(folder / "seed_1") != untimed(whole)


@pytest.mark.slow
def test_a_held_run_of_a_sweep_is_left_to_its_holder(tmp_path):
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    with Lock(folder):
        status, out, err = finish(tmp_path, "run_train", "-m", *UNEVEN, *TWO, "seed=0")
        assert status == 0, err
        assert "held: ntm seed 0" in out
        assert f"held by process {os.getpid()}" in err
        assert [path.name for path in folder.iterdir()] == [".lock.1"]


@pytest.mark.slow
def test_all_processes_leave_a_folder_that_was_taken_over(tmp_path):
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    process = start(tmp_path, "run_train", *UNEVEN, *TWO, "sequences=960000")
    while process.poll() is None and len(rows(folder)) < 2:
        time.sleep(0.005)
    (folder / ".lock.1").replace(folder / ".lock.2")  # to the first process, another's
    _, err = process.communicate(timeout=300)  # that of all processes
    assert process.returncode == 1, err
    assert err.strip().splitlines()[-1].startswith("held: outputs/copy/ntm/seed_0 was taken over")
    assert result(folder)["status"] == "running"


@pytest.mark.slow
def test_what_the_first_process_says_is_not_covered_by_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", BESIDE)
    (tmp_path / "disk_full").touch()
    status, _, err = finish(tmp_path, "run_train", *UNEVEN, *TWO, faults(tmp_path))
    assert status == 1, err
    came_to = result(tmp_path / "outputs" / "copy" / "ntm" / "seed_0")
    assert came_to["status"] == "failed"
    assert "File too large" in came_to["reason"]
    assert came_to["reason"] in err.strip().splitlines()[-1]


HOT = ["optimizer.lr=1e30", "optimizer.clip_norm=null", "optimizer.clip_factor=null"]
DIVERGES = {
    "in all processes": (HOT, "logits, in sequence 16"),
    "in another than the first": (
        ["task._target_=faults.Spoilt", "+task.row=1", "task.mixed_lengths=false"],
        "inputs, in sequence 2",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "where"), DIVERGES.values(), ids=DIVERGES)
def test_numbers_that_go_wrong_are_told_once_and_kept(
    overrides, where, tmp_path, monkeypatch, run_command, capfd
):
    monkeypatch.setenv("PYTHONPATH", BESIDE)
    status, _, err = finish(tmp_path, "run_train", *UNEVEN, *TWO, *overrides)
    assert status == 1, err
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    came_to = result(folder)
    assert came_to["status"] == "failed"
    assert came_to["reason"].startswith("Diverged: the loss is not finite")
    assert came_to["reason"].endswith(f"; the first tensor that is not finite is {where}")
    assert came_to["reason"] in err.strip().splitlines()[-1]
    assert err.count(came_to["reason"]) == 1, err
    kept = torch.load(folder / "checkpoints" / "diverged.ckpt", weights_only=True)
    assert kept["batch"]["inputs"].shape[1] == 15
    assert run_command("run_train", f"replay={folder}", "allow=[faults.Spoilt]") == 0
    assert "Not finite in double precision either" in capfd.readouterr().out


@pytest.mark.slow
def test_why_another_process_failed_is_told_by_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", BESIDE)
    (tmp_path / "fail_0").write_text("1")
    status, _, err = finish(tmp_path, "run_train", *UNEVEN, *TWO, faults(tmp_path))
    assert status == 1, err
    why = "RuntimeError: no luck today"
    assert result(tmp_path / "outputs" / "copy" / "ntm" / "seed_0")["reason"] == why
    assert err.strip().splitlines()[-1].endswith(f"in another process of the run: {why}")


WRONG = {
    "more devices than sequences": ([*TWO, "batch_size=1"], ["batch_size", "2", "got 1"]),
    "processes without a command line": (
        [*TWO[:2], "trainer.strategy=ddp_spawn"],
        ["trainer.strategy", "auto or ddp", "ddp_spawn"],
    ),
    "too many devices": (["trainer.accelerator=cpu", "trainer.devices=0"], ["trainer"]),
}


@pytest.mark.parametrize(("overrides", "words"), WRONG.values(), ids=WRONG)
def test_wrong_devices_are_one_line_and_write_nothing(
    overrides, words, run_command, tmp_path, capsys
):
    assert run_command("run_train", *SMALL, *overrides) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


NAMES = re.compile(r"""["'](cuda|gpu|mps|tpu|xla|hpu|xpu|npu)(:\d+)?["']""")


def test_no_device_is_named_outside_the_kernels():
    """Kernels are of one kind of device each, and networks say which they have.

    `ntm.accelerators` picks among them; everything else takes what the Trainer chose.
    """
    package = ROOT / "src" / "ntm"
    knowing = [
        package / name for name in ("accelerators.py", "machine/ntm.py", "baselines/lstm.py")
    ]
    for path in sorted(package.rglob("*.py")):
        if not path.is_relative_to(package / "kernels") and path not in knowing:
            assert not NAMES.search(path.read_text()), path
