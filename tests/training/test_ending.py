"""Ways for a run to end that are not the end of its budget, and what it leaves then."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from faults import Faults, faults, hold, release, wait_until_held
from runners import BESIDE, ROOT, SMALL, finish, start
from written import assert_same_tensors, checkpoint, result, rows, untimed

from ntm.folders.runs import RunFolder


class Enough(pl.Callback):
    """Stops after so many batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step >= self.batches:
            trainer.should_stop = True


LIGHTNINGS = "_target_:pytorch_lightning.callbacks."
ENDS = [
    (f"{LIGHTNINGS}EarlyStopping,monitor:val/loss,stopping_threshold:100.0", 96, "EarlyStopping: "),
    (f"{LIGHTNINGS}EarlyStopping,monitor:val/loss,patience:1,min_delta:9.0", 192, "EarlyStopping"),
    (f"{LIGHTNINGS}Timer,duration:{{milliseconds:1}}", 16, "Timer: its time is over"),
    (f"{LIGHTNINGS}Timer,duration:'00:00:00:01',interval:epoch", None, "Timer: its time is over"),
    ("_target_:test_ending.Enough,batches:8", 128, "a callback that set trainer.should_stop"),
]
"""Six batches of 16 an interval: the callback, sequences seen, and what is told of it."""


@pytest.mark.parametrize(("callback", "sequences", "told"), ENDS, ids=lambda one: str(one)[-40:])
def test_a_callback_that_stops_training_has_finished_it(
    callback, sequences, told, run_command, tmp_path, capfd
):
    longer = [] if sequences else ["sequences=9600"]
    asked = [*SMALL, *longer, f"trainer.callbacks=[{{{callback}}}]"]
    assert run_command("run_train", *asked) == 0
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    came_to = result(folder)
    assert came_to["status"] == "finished"
    assert came_to["stopped"].startswith(told)
    assert came_to["sequences"] == int(rows(folder)[-1]["sequences"])
    if sequences is not None:
        assert came_to["sequences"] == sequences
    with open(folder / "eval" / "results.csv", newline="") as file:
        assert {row["length"] for row in csv.DictReader(file)} == {"3", "6"}
    out, err = capfd.readouterr()
    assert "stopped by" in out
    assert f"stopped by {told}" in err
    # It is finished, and not gone on with.
    assert run_command("run_train", *asked) == 0
    assert "left alone" in capfd.readouterr().err


def test_what_is_stopped_before_it_begins_has_failed(run_command, tmp_path, capfd):
    timer = f"trainer.callbacks=[{{{LIGHTNINGS}Timer,duration:{{seconds:0}}}}]"
    assert run_command("run_train", *SMALL, timer) == 1
    assert result(tmp_path / "outputs" / "copy" / "ntm" / "seed_0")["status"] == "failed"
    assert "nothing to evaluate" in capfd.readouterr().err


def test_what_a_callback_ended_is_evaluated_by_the_next_process(run_command, tmp_path, monkeypatch):
    from ntm.training import run

    asked = [*SMALL, "trainer.callbacks=[{_target_:test_ending.Enough,batches:8}]"]
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    assert run_command("run_train", *asked, "name=whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_evaluation", _lost)
        assert run_command("run_train", *asked) == 1
    assert result(folder)["status"] == "failed"
    before = rows(folder)
    assert run_command("run_train", *asked) == 0
    assert rows(folder) == before
    whole = result(tmp_path / "outputs" / "whole" / "ntm" / "seed_0")
    timeless = whole.keys() - {"name", "seconds", "sequences_per_second"}
    assert {key: result(folder)[key] for key in timeless} == {key: whole[key] for key in timeless}


def _lost(*_: object) -> None:
    raise RuntimeError("the machine is lost")


def test_a_second_signal_costs_nothing_of_what_a_stopped_run_leaves(
    run_command, tmp_path, monkeypatch, capfd
):
    """As Ctrl-C comes in a sweep: from the terminal and, while the run ends, from the script."""
    write = RunFolder.write_result

    def told_again(folder: RunFolder, **values: object) -> None:
        if values.get("status") == "interrupted":
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
        write(folder, **values)

    def told(_: object, trainer: pl.Trainer, *__: object) -> None:
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunFolder, "write_result", told_again)
    monkeypatch.setattr(Faults, "on_train_batch_start", told)
    assert run_command("run_train", *SMALL, faults(tmp_path)) == 130
    assert "interrupted (SIGINT); the same command goes on from outputs" in capfd.readouterr().err
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    assert (result(folder)["status"], result(folder)["reason"]) == ("interrupted", "SIGINT")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
@pytest.mark.parametrize(
    "ignored",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["heard", "under nohup"],
)
def test_a_terminal_that_is_closed_ends_it_as_an_interrupt_does(ignored, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", BESIDE)
    hold(tmp_path, after=1)
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        process = start(tmp_path, "run_train", *SMALL, faults(tmp_path))
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until_held(tmp_path, process)
    process.send_signal(signal.SIGHUP)
    release(tmp_path)
    _, err = process.communicate(timeout=300)
    assert "Traceback" not in err
    if ignored:
        assert process.returncode == 0
        assert result(folder)["status"] == "finished"
        return
    assert process.returncode == 130, err
    assert result(folder)["status"] == "interrupted"
    assert "SIGHUP" in result(folder)["reason"]


@pytest.mark.parametrize(
    "closed", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("stdout", "stderr")), "both"]
)
def test_it_goes_on_when_nobody_reads_what_it_says(closed, tmp_path):
    """As `| head -1` does it, and a terminal that is gone."""
    process = start(tmp_path, "run_train", *SMALL, "trainer.enable_progress_bar=true")
    assert process.stderr.readline()
    if closed != "stderr":
        process.stdout.close()
    if closed != "stdout":
        process.stderr.close()
    status = process.wait(timeout=300)
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    assert status == 0
    assert result(folder)["status"] == "finished"
    assert (folder / "eval" / "results.csv").is_file()


@pytest.mark.slow
def test_head_reads_a_line_of_every_command(tmp_path):
    assert finish(tmp_path, "run_train", *SMALL)[0] == 0
    run = "run=outputs/copy/ntm/seed_0"
    for command in (
        f"run_eval.py {run} at=[4]",
        "run_compare.py runs=outputs/copy",
        "run_train.py --help",
        "run_train.py --cfg job",
    ):
        line = f"{sys.executable} {ROOT}/{command} 2>err | head -1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.stdout.splitlines()[-1] == "0", command
        assert "Traceback" not in (tmp_path / "err").read_text(), command
        assert "BrokenPipe" not in (tmp_path / "err").read_text(), command


@pytest.mark.parametrize(
    "encoding",
    [
        pytest.param("ascii", marks=pytest.mark.slow),
        *(pytest.param(one, marks=pytest.mark.soak) for one in ("latin-1", "cp1252")),
    ],
)
def test_a_terminal_that_lacks_letters_gets_others_for_them(encoding, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict", "PYTHONPATH": BESIDE}
    for command in (
        [f"{ROOT}/run_train.py", *SMALL],
        [f"{ROOT}/run_eval.py", "run=outputs/copy/ntm/seed_0", "at=[4]", "kinds=all"],
        [f"{ROOT}/run_compare.py", "runs=outputs/copy"],
    ):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told = done.stdout.decode(encoding) + done.stderr.decode(encoding)
        assert "seed_0" in told or "comparison" in told
    assert result(tmp_path / "outputs" / "copy" / "ntm" / "seed_0")["status"] == "finished"


class Filler:
    """A disk of 24 megabytes, which can be filled and emptied."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.path = place / "filler"

    def fill(self) -> None:
        with open(self.path, "ab", buffering=0) as file, suppress(OSError):
            while file.write(b"\0" * 4096):
                pass

    def empty(self) -> None:
        self.path.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Filler]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    try:
        yield Filler(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("moment", ["on_train_start", "on_train_epoch_start", "on_test_start"])
def test_a_disk_that_fills_up_ends_a_run_and_costs_what_was_not_written(
    moment, disk, run_command, tmp_path, monkeypatch, capfd
):
    """Before the first validation, before the third, and before the closing evaluation."""
    at, kept = {
        "on_train_start": (0, 0), "on_train_epoch_start": (2, 2), "on_test_start": (5, 5),
    }[moment]  # fmt: skip

    def full(_: object, trainer: pl.Trainer, *__: object) -> None:
        if trainer.current_epoch == at:
            disk.fill()

    assert run_command("run_train", *SMALL, "name=whole") == 0
    folder = disk.place / "run"
    asked = [*SMALL, f"folder={folder}", faults(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(Faults, moment, full, raising=False)
        capfd.readouterr()
        assert run_command("run_train", *asked) == 1
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("failed: ")
    assert "No space left on device" in err.strip().splitlines()[-1]
    assert result(folder)["status"] in ("running", "failed")  # there was no room to say so
    for path in (folder / "checkpoints").iterdir():
        assert path.suffix == ".ckpt"
        assert torch.load(path, weights_only=True)["epoch"] < kept
    assert (folder / "checkpoints" / "last.ckpt").exists() == (kept > 0)
    disk.empty()
    assert run_command("run_train", *asked) == 0
    whole = tmp_path / "outputs" / "whole" / "ntm" / "seed_0"
    assert untimed(folder) == untimed(whole)
    for name in ("best", "last"):
        one, other = checkpoint(folder, name), checkpoint(whole, name)
        assert_same_tensors(one["state_dict"], other["state_dict"])
    table = Path("eval/results.csv")
    assert (folder / table).read_text() == (whole / table).read_text()


def test_a_full_disk_costs_no_table_and_nothing_that_was_there(disk, run_command, capfd):
    runs = disk.place / "runs"
    run = runs / "ntm" / "seed_0"
    assert run_command("run_train", *SMALL, "sequences=96", f"folder={run}") == 0
    commands = {
        "run_eval": [f"run={run}", "at=[3,5]", "sequences=4"],
        "run_compare": [f"runs={runs}"],
    }
    assert run_command("run_compare", *commands["run_compare"]) == 0
    disk.fill()
    before = contents(disk.place)
    for program, asked in commands.items():
        capfd.readouterr()
        assert run_command(program, *asked) == 1, program
        out, err = capfd.readouterr()
        assert "wrong bits" in out
        assert "Traceback" not in err
        assert "No space left on device" in err.strip().splitlines()[-1]
        assert contents(disk.place) == before
    disk.empty()
    for program, asked in commands.items():
        assert run_command(program, *asked) == 0, program
    assert "\n5,drawn," in (run / "eval" / "results.csv").read_text()


def test_a_run_in_a_thread_of_its_own_is_as_any(tmp_path, monkeypatch):
    from ntm.commands import command
    from ntm.training.run import train

    monkeypatch.chdir(tmp_path)
    config = command.compose(ROOT / "configs", "train", [*SMALL, "sequences=96"])
    came_to = []
    thread = threading.Thread(target=lambda: came_to.append(train(config)))
    thread.start()
    thread.join(timeout=300)
    assert came_to[0]["status"] == "finished"
