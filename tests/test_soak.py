"""Long trials of what docs/guarantees.md promises; scripts/soak.sh runs them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import evaluated, make_run
from runners import ROOT, SMALL, finish, run_here, run_script, start, wait_until
from written import assert_same_tensors, checkpoint, result, rows, untimed

pytestmark = pytest.mark.soak

QUICK = [one for one in SMALL if not one.startswith(("task.", "evaluation.at"))]
TASKS = {
    "copy": ["task.max_length=6", "evaluation.at=[3,6]"],
    "repeat_copy": [
        "task.max_length=3", "task.max_repeats=3", "evaluation.at=[{length: 2, repeats: 2}]",
    ],
    "associative_recall": ["task.max_items=3", "evaluation.at=[3]"],
    "dynamic_ngrams": ["task.steps=20", "evaluation.at=[30]"],
    "priority_sort": ["task.min_items=4", "task.max_items=4", "evaluation.at=[4]"],
}  # fmt: skip


def assert_same_run(one: Path, other: Path) -> None:
    assert untimed(one) == untimed(other)
    for name in ("best", "last"):
        left, right = checkpoint(one, name), checkpoint(other, name)
        assert_same_tensors(left["state_dict"], right["state_dict"])
        assert_same_tensors(left["optimizer_states"][0], right["optimizer_states"][0])
    evaluations = [folder / "eval" / "results.csv" for folder in (one, other)]
    assert evaluations[0].read_text() == evaluations[1].read_text()


@pytest.mark.parametrize("model", ["ntm", "lstm"])
@pytest.mark.parametrize("task", TASKS)
def test_the_same_command_gives_the_same_numbers(task, model, tmp_path):
    """Run twice, and with one and with four processes that draw the data."""
    own = [] if model == "ntm" else ["model.network.hidden_size=20"]
    asked = [one for one in QUICK if model == "ntm" or not one.startswith("model.network")]
    asked += [f"task={task}", f"model={model}", *TASKS[task], *own]
    made = []
    for name, more in (("once", []), ("again", []), *((f"by_{n}", [n]) for n in (1, 4))):
        workers = [f"num_workers={n}" for n in more]
        status, _, err = finish(tmp_path, "run_train", *asked, f"name={name}", *workers)
        assert status == 0, err
        made.append(tmp_path / "outputs" / name / model / "seed_0")
    for other in made[1:]:
        assert_same_run(made[0], other)


LONGER = ["sequences=3840", "callbacks.pictures_every=960", "callbacks.keep_every=960"]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
def test_twenty_stops_at_random_moments_change_nothing(how, tmp_path):
    """Before the first step, in steps, validations and checkpoints, in the closing evaluation."""
    status, _, err = finish(tmp_path, "run_train", *SMALL, *LONGER, "name=whole")
    assert status == 0, err
    whole = tmp_path / "outputs" / "whole" / "ntm" / "seed_0"
    took = result(whole)["seconds"]
    drawn = random.Random(how)
    stopped = tmp_path / "outputs" / "stopped" / "ntm" / "seed_0"
    stops = 0
    while stops < 20:
        process = start(tmp_path, "run_train", *SMALL, *LONGER, "name=stopped")
        time.sleep(drawn.uniform(0.3, 0.75 * took))
        ended = process.poll() is not None
        process.send_signal(getattr(signal, how))
        _, err = process.communicate(timeout=300)
        stops += not ended
        assert "Traceback" not in err or how != "SIGKILL", err
        if ended and process.returncode == 0:  # it came to its end: another one begins
            assert_same_run(whole, stopped)
            subprocess.run(["rm", "-rf", str(stopped)], check=True)
    status, _, err = finish(tmp_path, "run_train", *SMALL, *LONGER, "name=stopped")
    assert status == 0, err
    assert_same_run(whole, stopped)


def test_alone_in_a_sweep_and_side_by_side_are_the_same(tmp_path):
    for seed in range(3):
        status, _, err = finish(tmp_path, "run_train", *SMALL, f"seed={seed}", "name=alone")
        assert status == 0, err
    for jobs in ("1", "2"):
        more = {"SEEDS": "0-2", "JOBS": jobs, "MODELS": "ntm", "PYTHON": sys.executable}
        asked = [*SMALL, f"name=jobs_{jobs}"]
        status, _, err = run_script("multiple_train.sh", tmp_path, *asked, **more)
        assert status == 0, err
    status, _, err = finish(tmp_path, "run_train", "-m", *SMALL, "seed=range(3)", "name=swept")
    assert status == 0, err
    for name in ("jobs_1", "jobs_2", "swept"):
        for seed in range(3):
            of = [tmp_path / "outputs" / one / "ntm" / f"seed_{seed}" for one in ("alone", name)]
            assert_same_run(*of)


def test_five_million_time_steps_take_no_more_memory_than_the_first(tmp_path):
    """400,000 sequences of 6 vectors are 13 time steps each: 5.2 million."""
    asked = [
        *SMALL,
        "task.min_length=6",
        "sequences=400000",
        "validate_every=8000",
        "batch_size=32",
    ]
    process = start(tmp_path, "run_train", *asked)
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    place = Path(f"/proc/{process.pid}")
    held: list[tuple[int, int]] = []
    seen = 0
    while process.poll() is None:
        done = len(rows(folder)) if folder.exists() else 0
        if done > seen:
            seen = done
            resident = int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            held.append((resident, len(os.listdir(place / "fd"))))
        time.sleep(0.05)
    _, err = process.communicate()
    assert process.returncode == 0, err
    after_some, at_the_end = held[len(held) // 20 + 1], held[-2]
    print(f"resident {after_some[0] / 1e6:.0f} to {at_the_end[0] / 1e6:.0f} MB", end=" ")
    assert at_the_end[0] <= 1.05 * after_some[0]
    assert at_the_end[1] <= after_some[1]
    events = sum(path.stat().st_size for path in folder.glob("events.out.tfevents.*"))
    assert events < 2000 * len(rows(folder)) + 100_000
    assert (folder / "train.log").stat().st_size < 250 * len(rows(folder)) + 2000


def most_memory(program: str, folder: Path, *overrides: str) -> tuple[float, float, str]:
    """Seconds and gigabytes that a command takes, and what it says."""
    script = (
        "import resource, subprocess, sys, time\n"
        "began = time.monotonic()\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "assert done.returncode == 0, done.stderr\n"
        "print(time.monotonic() - began, most / 1e6)\n"
        "print(done.stdout)\n"
    )
    command = [sys.executable, "-c", script, sys.executable, str(ROOT / f"{program}.py")]
    done = subprocess.run([*command, *overrides], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, most = map(float, done.stdout.split("\n")[0].split())
    return seconds, most, done.stdout


def test_length_ten_thousand_with_eleven_thousand_locations_fits_in_two_gigabytes(tmp_path):
    asked = ["sequences=96", "batch_size=16", "validate_every=96", "evaluation.at=[3]"]
    asked += ["evaluation.kinds=[drawn]", "callbacks.pictures_every=null", "task.max_length=6"]
    status, _, err = finish(tmp_path, "run_train", *asked)
    assert status == 0, err
    more = ["run=outputs/copy/ntm/seed_0", "at=[10000]", "memory_size=11000", "sequences=8"]
    seconds, most, _ = most_memory("run_eval", tmp_path, *more)
    print(f"{seconds:.0f} s, {most:.2f} GB", end=" ")
    assert most < 2


@pytest.fixture(scope="module")
def a_thousand(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, float, Path]:
    """A thousand runs compared: seconds, gigabytes and the page."""
    here = tmp_path_factory.mktemp("thousand")
    drawn = random.Random(0)
    for model in ("ntm", "lstm"):
        for seed in range(500):
            curve = {1000 * k: 40 * drawn.random() / k for k in range(1, 41)}
            kinds = {"drawn": [evaluated(at, drawn.random(), 0.5) for at in (10, 20, 120)]}
            described = {"model": {"name": model}}
            folder = here / "outputs" / "many" / model / f"seed_{seed}"
            make_run(folder, curve, kinds=kinds, config=described)
    seconds, most, _ = most_memory("run_compare", here, "runs=outputs/many")
    return seconds, most, next((here / "outputs").rglob("report.html"))


def test_a_thousand_runs_are_compared_in_half_a_minute_and_a_gigabyte(a_thousand):
    seconds, most, page = a_thousand
    print(f"{seconds:.0f} s, {most:.2f} GB, page of {page.stat().st_size / 1e6:.0f} MB", end=" ")
    assert seconds < 30
    assert most < 1


def test_the_page_of_a_thousand_runs_opens_in_three_seconds(a_thousand, opened):
    _, _, page = a_thousand
    began = time.monotonic()
    wait_until(opened(page), "document.querySelector('.chart .main-svg') !== null")
    seconds = time.monotonic() - began
    print(f"{seconds:.1f} s to the first chart", end=" ")
    assert seconds < 3


# --- Whole configurations, drawn


class FailsOnce(pl.Callback):
    """Fails in the second interval, unless it has."""

    def __init__(self, mark: str) -> None:
        self.mark = Path(mark)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.current_epoch == 1 and not self.mark.exists():
            self.mark.touch()
            raise RuntimeError("no luck today")


@st.composite
def configurations(draw: st.DrawFn) -> list[str]:
    """Overrides of a small run, of whatever may be combined."""

    def one_of(key: str, *values: object) -> str:
        return f"{key}={draw(st.sampled_from(values))}"

    task, shifts = draw(st.sampled_from(sorted(TASKS))), draw(st.integers(0, 2))
    memory = draw(st.integers(2 * shifts + 1, 12))
    network = "model.network"
    asked = [
        *(one for one in TASKS[task] if not one.startswith("evaluation.at")),
        f"task={task}", f"{network}.shift_range={shifts}", f"{network}.memory_size={memory}",
        one_of(f"{network}.word_size", 1, 2, 5), one_of(f"{network}.num_read_heads", 1, 2, 3),
        one_of(f"{network}.num_write_heads", 1, 2),
        one_of(f"{network}.initial_memory", "constant", "random", "learned"),
        one_of(f"{network}.initial_weighting", "first_location", "uniform", "learned"),
        one_of(f"{network}.initial_reads", "zeros", "learned"),
        one_of(f"{network}.key_activation", "tanh", "identity", "relu", "sigmoid"),
        one_of(f"{network}.add_activation", "tanh", "identity", "relu", "sigmoid"),
        one_of(f"{network}.read_first", "true", "false"),
        one_of(f"{network}.controller.num_layers", 1, 2),
        one_of(f"{network}.controller.hidden_size", 1, 4, 9),
        one_of(f"{network}.controller.dropout", 0.0, 0.3),
        one_of("optimizer", "adamw", "adam", "rmsprop", "graves_rmsprop"),
        one_of("engine", "auto", "reference"), one_of("seed", 0, 7),
        one_of("trainer.precision", "null", "64-true", "bf16-mixed"),
        one_of("num_workers", 0, 0, 0, 1), one_of("trainer.accumulate_grad_batches", 1, 1, 2),
        one_of("batch_size", 1, 3, 16),
    ]  # fmt: skip
    if draw(st.booleans()):
        asked.append("model=ntm_feedforward")
    if task == "copy" and draw(st.booleans()):
        asked += ["curriculum=staged", "curriculum.upper=[2,4,null]"]
    return asked


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(asked=configurations())
def test_whatever_is_legal_trains_resumes_to_the_bit_and_is_evaluated(asked):
    size = next(int(one.split("=")[1]) for one in asked if one.startswith("batch_size"))
    small = [f"sequences={3 * size}", f"validate_every={size}", "evaluation.sequences=2"]
    small += ["evaluation.kinds=[drawn]", "callbacks.pictures_every=null"]
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        folder = Path(place)

        def run(program: str, *more: str) -> int:
            return run_here(patch, folder, program, *more)

        assert run("run_train", *asked, *small, "name=whole") == 0
        node = f"trainer.callbacks=[{{_target_:test_soak.FailsOnce,mark:'{folder / 'mark'}'}}]"
        assert run("run_train", *asked, *small, "name=stopped", node) == 1
        assert run("run_train", *asked, *small, "name=stopped", node) == 0
        whole, stopped = (next((folder / "outputs" / n).glob("*/seed_*")) for n in
                          ("whole", "stopped"))  # fmt: skip
        assert_same_run(whole, stopped)
        assert run("run_eval", f"run={whole}", "sequences=2") == 0
