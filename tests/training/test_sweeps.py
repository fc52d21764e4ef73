"""Sweeps on this machine: what is there is left alone, what fails fails alone, nothing is lost."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from faults import faults, hold, wait_until_held
from runners import BESIDE, ROOT, SMALL, finish

from ntm import accelerators
from ntm.commands.configuration import ConfigurationError
from ntm.folders.locks import Lock
from ntm.folders.runs import RunFolder
from ntm.training import sweeps
from ntm.training.sweeps import Job, duration, numbers

LONG = [*SMALL, "sequences=960000"]
"""A run that does not end while a test lasts."""


begun: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    """Also of a test that failed."""
    yield
    while begun:
        process = begun.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def begin(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start the script as a user would, in a process group of its own."""
    environment = {"MODELS": "ntm", "PYTHON": sys.executable} | variables
    process = subprocess.Popen(
        [str(ROOT / "scripts" / "multiple_train.sh"), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": BESIDE} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    begun.append(process)
    return process


def sweep(folder: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run the script to its end: exit status, stdout, stderr."""
    process = begin(folder, *arguments, **variables)
    out, err = process.communicate(timeout=1800)
    return process.returncode, out, err


def run_folder(folder: Path, seed: int) -> RunFolder:
    return RunFolder(folder / "outputs" / "copy" / "ntm" / f"seed_{seed}")


def result(folder: Path, seed: int) -> dict:
    return run_folder(folder, seed).read_result()


def states(table: str) -> dict[str, str]:
    """The second column of a table by its first."""
    return dict(re.findall(r"│ (\w+ seed \d+) +│ ([\w ]*\w) +│", table))


def weights(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    return torch.load(run_folder(folder, seed).last, weights_only=True)["state_dict"]


def assert_same_weights(one: Path, other: Path, seed: int) -> None:
    mine, its = weights(one, seed), weights(other, seed)
    assert mine.keys() == its.keys()
    for name in mine:
        assert torch.equal(mine[name], its[name]), f"seed {seed}: {name}"


def written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def wait_for(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def runs_of(script: int) -> dict[int, str]:
    """Process numbers of the runs that a script has started, with their command lines."""
    shown = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=", "-o", "ppid=", "-o", "args="],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split(None, 2) for line in shown.stdout.splitlines()]
    return {
        int(pid): args
        for pid, parent, args in lines
        if int(parent) == script and "run_train" in args
    }


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("0-9", list(range(10))),
            ("1,4,7", [1, 4, 7]),
            ("3", [3]),
            ("8-10,2,9", [8, 9, 10, 2]),
        ],
    )
    def test_of_a_list(self, text, expected):
        assert numbers(text, "SEEDS") == expected

    @pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1,,2", "1.5", "0-"])
    def test_of_no_list(self, text):
        with pytest.raises(ConfigurationError, match=r"^SEEDS must be such as 0-9 .*, got"):
            numbers(text, "SEEDS")


def test_a_job_survives_its_line():
    job = Job("ntm", 3, "outputs/a b/ntm/seed_3", 20000, "start over", "held: by\twhom")
    assert Job.read(job.line() + "\n") == job


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (125, "2:05"), (3599.6, "1:00:00"), (3725, "1:02:05")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


WRONG = {
    "unknown key": (["sede=1"], {}, ["sede", "seed"]),
    "wrong value": (["model.network.memory_size=0"], {}, ["model.network.memory_size", "1", "0"]),
    "wrong for one model": (
        ["model.network.memory_size=9"],
        {"MODELS": "ntm lstm"},
        ["memory_size"],
    ),
    "unknown model": ([], {"MODELS": "ntm foo"}, ["model", "lstm, ntm", "foo"]),
    "no model": ([], {"MODELS": ""}, ["MODELS"]),
    "no seeds": ([], {"SEEDS": "few"}, ["SEEDS", "0-9", "few"]),
    "no jobs": ([], {"JOBS": "0"}, ["JOBS", "at least 1", "0"]),
    "jobs of a wrong type": ([], {"JOBS": "two"}, ["JOBS", "two"]),
    "a seed as an override": (["seed=3"], {}, ["seed=3", "SEEDS"]),
    "a model as an override": (["model=lstm"], {}, ["model=lstm", "MODELS"]),
    "a sweep as an override": (["optimizer.lr=1e-3,1e-4"], {}, ["optimizer.lr"]),
    "unknown option": (["-m"], {}, ["-m", "--dry-run"]),
}


@pytest.mark.parametrize(("overrides", "variables", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_command_is_one_line_and_writes_nothing(overrides, variables, words, tmp_path):
    status, out, err = sweep(tmp_path, *overrides, **variables)
    assert status == 2, err
    assert err.count("\n") == 1
    assert out == ""
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_help_says_what_can_be_set(tmp_path):
    status, out, err = sweep(tmp_path, "--help", PYTHON="/does/not/exist")
    assert (status, err) == (0, "")
    for word in ("MODELS", "SEEDS", "JOBS", "--dry-run"):
        assert word in out


UNTOUCHED = pytest.mark.xdist_group("untouched")
"""What one worker runs, so that these runs are trained once."""


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process, which nobody disturbs."""
    folder = tmp_path_factory.mktemp("untouched")
    status, out, err = finish(folder, "run_train", "-m", *SMALL, "seed=range(3)")
    assert status == 0, err
    assert states(out) == {f"ntm seed {seed}": "finished" for seed in range(3)}
    return folder


@pytest.mark.slow
@UNTOUCHED
def test_one_fails_alone_and_the_same_command_mends_it(untouched, tmp_path):
    overrides = [*SMALL, faults(tmp_path)]
    (tmp_path / "fail_1").touch()
    process = begin(tmp_path, *overrides, SEEDS="0-2", JOBS="2")
    said = next(line for line in process.stderr if "no luck today" in line)
    # At once: others are still to come.
    assert said == "ntm seed 1 failed: RuntimeError: no luck today\n"
    assert result(tmp_path, 2).get("status") != "finished"
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert states(out) == {
        "ntm seed 0": "finished",
        "ntm seed 1": "failed",
        "ntm seed 2": "finished",
    }
    assert "failed: ntm seed 1: RuntimeError: no luck today" in out
    assert result(tmp_path, 1)["status"] == "failed"
    assert result(tmp_path, 1)["reason"] == "RuntimeError: no luck today"

    finished = written(run_folder(tmp_path, 0).path)
    status, out, _ = sweep(tmp_path, "--dry-run", *overrides, SEEDS="0-3")
    assert status == 0
    does = {line.split()[3]: line.split()[0] for line in out.splitlines()}
    assert does == {"0": "skip", "1": "start", "2": "skip", "3": "start"}
    (tmp_path / "fail_1").unlink()
    status, out, err = sweep(tmp_path, *overrides, SEEDS="0-2", JOBS="2")
    assert status == 0, err
    assert states(out) == {
        "ntm seed 0": "skipped",
        "ntm seed 1": "finished",
        "ntm seed 2": "skipped",
    }
    assert written(run_folder(tmp_path, 0).path) == finished
    for seed in range(3):
        assert_same_weights(tmp_path, untouched, seed)


@pytest.mark.slow
def test_under_hydra_too_one_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", BESIDE)
    (tmp_path / "fail_0").touch()
    command = ["run_train", "-m", *SMALL, faults(tmp_path), "sequences=96", "seed=0,1"]
    status, out, err = finish(tmp_path, *command)
    assert status == 1, err
    assert "failed: RuntimeError: no luck today\n" in err
    assert "failed: ntm seed 0: RuntimeError: no luck today\n" in out
    assert states(out) == {"ntm seed 0": "failed", "ntm seed 1": "finished"}
    (tmp_path / "fail_0").unlink()
    status, out, err = finish(tmp_path, *command)
    assert status == 0, err
    assert states(out) == {"ntm seed 0": "finished", "ntm seed 1": "skipped"}


def test_a_folder_of_other_settings_is_refused_before_anything_starts(run_command, tmp_path):
    assert run_command("run_train", *SMALL, "sequences=16", "seed=1") == 0
    folder = run_folder(tmp_path, 1)
    before = written(tmp_path)
    other = ["sequences=16", "optimizer.lr=0.5"]
    status, _, err = sweep(tmp_path, *SMALL, *other, SEEDS="0-2")
    assert status == 2
    assert err.count("\n") == 1
    for word in (str(folder.path.relative_to(tmp_path)), "optimizer.lr", "name=", "overwrite=true"):
        assert word in err
    assert written(tmp_path) == before


def test_a_held_run_is_left_to_its_holder(run_command, tmp_path, capfd):
    with Lock(run_folder(tmp_path, 0).path):
        assert run_command("run_train", *SMALL) == 1
        line = capfd.readouterr().err
        assert line.count("\n") == 1
        for word in ("held: outputs/copy/ntm/seed_0", f"process {os.getpid()}", "since"):
            assert word in line
        assert [path.name for path in run_folder(tmp_path, 0).path.iterdir()] == [".lock.1"]
        (planned,), *_ = sweeps.plan(ROOT / "configs", ["ntm"], [0], SMALL)
        assert f"is held by process {os.getpid()}" in planned.note
        status, out, err = finish(tmp_path, "run_train", "-m", *SMALL, "seed=0,1")
        assert status == 0
        assert states(out) == {"ntm seed 0": "held", "ntm seed 1": "finished"}
        assert f"process {os.getpid()}" in err


@pytest.mark.slow
@UNTOUCHED
def test_two_sweeps_at_once_train_each_run_once(untouched, tmp_path):
    overrides = [*SMALL, faults(tmp_path)]
    both = [begin(tmp_path, *overrides, SEEDS="0-2", JOBS="1") for _ in range(2)]
    outs, errs = zip(*(process.communicate(timeout=300) for process in both), strict=True)
    assert [process.returncode for process in both] == [0, 0], errs
    assert sorted((tmp_path / "begun").read_text().split()) == ["0", "1", "2"]
    for seed in range(3):
        assert result(tmp_path, seed)["status"] == "finished"
        assert_same_weights(tmp_path, untouched, seed)
    held = [line for err in errs for line in err.splitlines() if " held: " in line]
    assert held
    assert all("process" in line and "since" in line for line in held)
    assert any("held: ntm seed" in out for out in outs)


@pytest.mark.slow
def test_a_killed_run_says_so_and_ctrl_c_ends_the_others_after_their_step(tmp_path, monkeypatch):
    process = begin(tmp_path, *LONG, SEEDS="0-3", JOBS="2")
    wait_for(lambda: all(run_folder(tmp_path, seed).last.is_file() for seed in (0, 1)))
    pattern = r"ntm seed 0 +\d+ % +\d+ of 960000 +\d+/s  wrong bits +\d+\.\d{3}  [\d:]+ left"
    assert any(re.match(pattern, line) for line in process.stderr)

    (run,) = (pid for pid, line in runs_of(process.pid).items() if line.endswith("seed=0"))
    os.kill(run, signal.SIGKILL)
    reason = "killed by signal 9 (KILL)"
    assert f"ntm seed 0 failed: {reason}\n" in process.stderr
    assert result(tmp_path, 0)["status"] == "failed"
    assert result(tmp_path, 0)["reason"] == reason

    wait_for(run_folder(tmp_path, 2).last.is_file)  # which came in its place
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert states(out) == {
        "ntm seed 0": "failed",
        "ntm seed 1": "interrupted",
        "ntm seed 2": "interrupted",
        "ntm seed 3": "not started",
    }
    for seed in (1, 2):
        assert f"goes on from outputs/copy/ntm/seed_{seed}/checkpoints/last.ckpt" in err
        assert result(tmp_path, seed)["status"] == "interrupted"
        assert not list(run_folder(tmp_path, seed).path.glob(".*"))
    assert not run_folder(tmp_path, 3).path.exists()
    assert "Traceback" not in err
    monkeypatch.chdir(tmp_path)
    jobs, *_ = sweeps.plan(ROOT / "configs", ["ntm"], range(4), LONG)
    assert [job.state for job in jobs] == ["resume", "resume", "resume", "start"]


def test_what_a_run_said_before_the_scripts_own_signal_came_is_told(tmp_path):
    """Ctrl-C comes from the terminal and, as SIGTERM, from the script: here after the last word."""
    python = tmp_path / "python"
    python.write_text(
        f"""#!/usr/bin/env bash
case "$*" in
  *run_train.py*)
    said="interrupted (SIGINT); the same command goes on from here"
    trap 'echo "$said" >&2; trap - TERM; kill -s TERM $$' TERM
    touch {tmp_path}/begun
    while :; do sleep 0.05; done ;;
esac
exec {sys.executable} "$@"
"""
    )
    python.chmod(0o755)
    process = begin(tmp_path, *SMALL, SEEDS="0", JOBS="1", PYTHON=str(python))
    wait_for((tmp_path / "begun").is_file)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "ntm seed 0 interrupted (SIGINT); the same command goes on from here\n" in err


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path):
    hold(tmp_path, after=1)
    process = begin(tmp_path, *LONG, faults(tmp_path), SEEDS="0", JOBS="1")
    wait_until_held(tmp_path, process)
    (run,) = runs_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(2)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    wait_for(lambda: run not in running())


def running() -> set[int]:
    shown = subprocess.run(
        ["ps", "-A", "-o", "pid=", "-o", "stat="], capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in shown.stdout.splitlines()]
    return {int(pid) for pid, state in lines if not state.startswith("Z")}


def test_runs_end_when_their_script_is_killed(tmp_path):
    process = begin(tmp_path, *LONG, SEEDS="0", JOBS="1")
    wait_for(run_folder(tmp_path, 0).last.is_file)
    (run,) = runs_of(process.pid)
    process.kill()
    process.communicate()
    wait_for(lambda: run not in running(), seconds=20)
    assert result(tmp_path, 0)["status"] == "interrupted"
    assert not list(run_folder(tmp_path, 0).path.glob(".*"))


@pytest.mark.slow
@UNTOUCHED
def test_a_full_disk_is_said_and_costs_one_interval(untouched, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", BESIDE)
    overrides = [*SMALL, faults(tmp_path)]
    (tmp_path / "disk_full").touch()
    status, _, err = finish(tmp_path, "run_train", *overrides)
    assert status == 1
    assert err.splitlines()[-1].startswith("failed: OSError: [Errno 27] File too large")
    folder = run_folder(tmp_path, 0)
    assert "File too large" in folder.read_result()["reason"]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    for path in (folder.last, folder.best):
        assert path.stat().st_size > 20_000
        assert torch.load(path, weights_only=True)["epoch"] <= 1
    assert torch.load(folder.last, weights_only=True)["epoch"] == 1
    (tmp_path / "disk_full").unlink()
    status, _, err = finish(tmp_path, "run_train", *overrides)
    assert status == 0, err
    assert "going on after 192 sequences" in err
    assert_same_weights(tmp_path, untouched, 0)


@pytest.mark.parametrize(
    ("kills", "seeds"),
    [
        pytest.param(3, 3, marks=[pytest.mark.slow, UNTOUCHED]),
        pytest.param(10, 6, marks=pytest.mark.soak),
    ],
)
def test_kills_at_random_moments_lose_nothing(kills, seeds, untouched, tmp_path):
    """One run, the script alone, and the whole process group, in turn."""
    if seeds > 3:
        status, _, err = finish(untouched, "run_train", "-m", *SMALL, f"seed=range({seeds})")
        assert status == 0, err
    drawn = random.Random(0)
    variables = {"SEEDS": f"0-{seeds - 1}", "JOBS": "2"}
    process = begin(tmp_path, *SMALL, **variables)
    for number in range(kills):
        time.sleep(drawn.uniform(0, 14))
        kind = ("run", "script", "group")[number % 3]
        children = runs_of(process.pid)
        if kind == "run" and children:
            os.kill(drawn.choice(list(children)), signal.SIGKILL)
        elif kind == "script":
            process.kill()
        elif kind == "group" and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if kind != "run" or process.poll() is not None:
            process.communicate()
            process = begin(tmp_path, *SMALL, **variables)
    process.communicate(timeout=300)
    status, out, err = sweep(tmp_path, *SMALL, **variables)
    assert status == 0, err
    assert set(states(out).values()) <= {"finished", "resumed", "skipped"}
    for seed in range(seeds):
        assert result(tmp_path, seed)["status"] == "finished"
        assert_same_weights(tmp_path, untouched, seed)
        rows = run_folder(tmp_path, seed).metrics.read_text().splitlines()[1:]
        assert [int(row.split(",")[0]) for row in rows] == [96, 192, 288, 384, 480]


def test_plans_check_every_configuration_that_is_not_the_same(tmp_path, monkeypatch):
    """A folder of weights that one seed lacks is found, though the others are alike."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="init_from must be a run folder"):
        sweeps.plan(ROOT / "configs", ["ntm"], [0, 1], [*SMALL, "init_from=none/seed_${seed}"])


def test_runs_of_one_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = "seed=0 and seed=1 would share the folder outputs/x"
    with pytest.raises(ConfigurationError, match=shared):
        sweeps.plan(ROOT / "configs", ["ntm"], [0, 1], [*SMALL, "folder=outputs/x"])


def test_the_table_tells_what_was_not_reached(tmp_path, capsys):
    folder = RunFolder(tmp_path / "outputs" / "copy" / "ntm" / "seed_0")
    folder.path.mkdir(parents=True)
    values = {"sequences": 4000, "sequences_to_solve": 3000, "wrong_bits_per_sequence": 0.04}
    folder.write_result(status="finished", seconds=3725.2, **values)
    jobs = [Job("ntm", 0, str(folder.path), 4000, "finished")]
    jobs += [Job("ntm", 1, str(tmp_path / "no"), 4000, "held", "no is held by [x] process 3")]
    sweeps.table(jobs)
    out = capsys.readouterr().out
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert rows == [
        ["ntm seed 0", "finished", "3,000", "0.040", "4,000", "1:02:05"],
        ["ntm seed 1", "held", "", "", "", ""],
    ]
    assert "ntm: 1 of 2 finished, 1 solved, at 3,000 to 3,000 sequences, median 3,000" in out
    assert "held: ntm seed 1: no is held by [x] process 3" in out
    assert "goes on with 1 of 2 runs" in out
    assert json.loads(folder.result.read_text())["status"] == "finished"


GPUS = """
import sys
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 2
from ntm.training import sweeps
sys.exit(sweeps._main(*sys.argv[1:]))
"""


@pytest.mark.slow
def test_runs_are_shared_out_over_the_gpus(tmp_path):
    """Two GPUs are made up for the plan; a run writes down which it was given."""
    (tmp_path / "plan.py").write_text(GPUS)
    python = tmp_path / "python"
    python.write_text(
        f"""#!/usr/bin/env bash
case "$*" in
  *"sweeps plan"*) shift 2; exec {sys.executable} {tmp_path}/plan.py "$@" ;;
  *run_train.py*) printf '%s %s\\n' "${{CUDA_VISIBLE_DEVICES:-none}}" "$*" >>{tmp_path}/given ;;
esac
exec {sys.executable} "$@"
"""
    )
    python.chmod(0o755)
    asked = [*SMALL, "sequences=96"]
    status, _, err = sweep(tmp_path, *asked, SEEDS="0-2", JOBS="3", PYTHON=str(python))
    assert status == 0, err
    assert "3 runs, 3 at a time on GPU 0,1" in err
    given = [line.split()[0] for line in (tmp_path / "given").read_text().splitlines()]
    assert sorted(given) == ["0", "0", "1"]


@pytest.mark.parametrize(
    ("visible", "found"), [(None, ["0", "1", "2"]), ("5", ["5"]), ("1, 2", ["1", "2"])]
)
def test_gpus_are_those_that_may_be_seen(visible, found, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setitem(accelerators.AVAILABLE, "cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert accelerators.gpus() == found
    monkeypatch.setitem(accelerators.AVAILABLE, "cuda", lambda: False)
    assert accelerators.gpus() == []


@pytest.mark.parametrize(
    ("override", "shared"),
    [
        ("trainer.accelerator=auto", True),
        ("trainer.accelerator=cpu", False),
        ("trainer.devices=2", False),
    ],
)
def test_only_runs_that_take_one_gpu_are_shared_out(override, shared, monkeypatch):
    monkeypatch.setattr(accelerators, "gpus", lambda: ["0", "1"])
    more = ["trainer.accelerator=cpu", "trainer.strategy=ddp"] if "devices" in override else []
    *_, spread = sweeps.plan(ROOT / "configs", ["ntm"], [0], [*SMALL, *more, override])
    assert spread == (["0", "1"] if shared else [])
