"""Run folders as earlier versions left them: what is read is right, what is not is said in a line.

Each in earlier/ was made by the version that it is of, with its pictures and events left out:

first         9fd80f1, the first house: no locks, no price on effort
silence       aa4b9b8, copy with silence, which no task has any more
one_number    dde18a0, before the wings, and before a task had several numbers
points        c410671, points of several numbers, before kinds of sequence
kinds         0f99772, kinds of sequence, before free sharpening and forget gates that start lower
no_end_marks  f11da31, before a configuration ended with a mark
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from written import assert_same_tensors, result, rows, untimed, weights

import ntm

EARLIER = Path(__file__).parent / "earlier"
RUNS = sorted(str(path.parent.relative_to(EARLIER)) for path in EARLIER.rglob("config.yaml"))
REFUSED = {"silence/ntm/seed_0": "task.silence is unknown"}
"""What no task or network of today can be, and how that is said."""
READ = [name for name in RUNS if name not in REFUSED]

SIZES = [
    "model.network.memory_size=16",
    "model.network.word_size=8",
    "model.network.controller.hidden_size=16",
]
COPY = [
    "task.max_length=6",
    "task.mix=0",
    "evaluation.kinds=[drawn]",
    "evaluation.at=[3,6]",
    "evaluation.sequences=20",
    "sequences=480",
    "batch_size=16",
    "validate_every=96",
]
STAGED = ["curriculum=staged", "curriculum.upper=[2,4,null]"]


def evaluated(folder: Path) -> list[dict[str, str]]:
    """What was found at each point: by hand, for a run of before in its own file."""
    (path,) = (folder / "eval").glob("*.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an earlier run, at the place that its command would give it."""
    source = EARLIER / request.param
    config = source / "config.yaml"
    (line,) = [one for one in config.read_text().splitlines() if one.startswith("folder: ")]
    place = tmp_path / line.removeprefix("folder: ")
    shutil.copytree(source, place)
    return place


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_are_runs_of_six_versions():
    assert len({Path(name).parts[0] for name in RUNS}) == 6
    assert set(REFUSED) < set(RUNS)


@pytest.mark.parametrize("folder", READ, indirect=True)
@pytest.mark.parametrize("name", ["best", "last"])
def test_the_network_is_loaded_with_its_weights(name, folder):
    kept = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
    network = ntm.load(folder, name)
    assert_same_tensors(
        {f"network.{key}": value for key, value in network.state_dict().items()},
        {key: value for key, value in kept.items() if key.startswith("network.")},
    )
    assert sum(p.numel() for p in network.parameters()) == result(folder)["parameters"]


FINISHED = [
    name
    for name in READ
    if json.loads((EARLIER / name / "result.json").read_text())["status"] == "finished"
]


@pytest.mark.parametrize("folder", FINISHED, indirect=True)
def test_an_evaluation_finds_what_was_found_then(folder, run_command):
    """As exact as engines agree: to 1e-5 of the bits, and every wrong bit."""
    then = evaluated(folder)
    kinds = "all" if any(row.get("kind", "drawn") != "drawn" for row in then) else "[drawn]"
    assert run_command("run_eval", f"run={folder}", f"kinds={kinds}", "sequences=20") == 0
    with open(folder / "eval" / "results.csv", newline="") as file:
        now = list(csv.DictReader(file))
    assert len(now) == len(then)
    numbers = [key for key in ("length", "items", "steps", "repeats") if key in then[0]]
    assert numbers

    def point(row: dict[str, str]) -> tuple[str, ...]:
        return (*(row[key] for key in numbers), row.get("kind", "drawn"), row["checkpoint"])

    found = {point(row): row for row in now}
    assert len(found) == len(now)
    for row in then:
        for name in ("wrong_bits_per_sequence", "wrong_bits_sd", "bits_per_sequence", "exact"):
            expected = pytest.approx(float(row[name]), rel=1e-5)
            assert float(found[point(row)][name]) == expected, (point(row), name)
        assert found[point(row)]["sequences"] == row["sequences"]
        assert found[point(row)]["memory_size"] == row["memory_size"]


def test_all_of_them_are_compared(run_command, tmp_path):
    shutil.copytree(EARLIER, tmp_path / "runs")
    assert run_command("run_compare", "runs=runs", "folder=told") == 0
    told = json.loads((tmp_path / "told" / "comparison.json").read_text())
    found = {row["run"]: row for task in told["tasks"].values() for row in task["runs"]}
    assert sorted(found) == RUNS
    for name, row in found.items():
        expected = result(EARLIER / name)
        assert row["status"] == expected["status"]
        assert row["sequences"] == int(rows(EARLIER / name)[-1]["sequences"])
        for key in ("wrong_bits_per_sequence", "bits_per_sequence", "sequences_to_solve"):
            assert row[key] == expected.get(key), (name, key)
    assert "cannot be read" not in json.dumps(told)


@pytest.mark.parametrize("folder", REFUSED, indirect=True)
@pytest.mark.parametrize("program", ["run_eval", "run_train"])
def test_what_cannot_be_read_is_refused_in_one_line(program, folder, run_command, capfd):
    before = contents(folder)
    asked = [f"run={folder}"] if program == "run_eval" else ["engine=reference", *SIZES, *COPY]
    assert run_command(program, *asked) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert ("task.silence" in line) or ("is unknown" in line)
    assert contents(folder) == before


RECIPES = {
    "first": [
        "model.penalty=null", "model.sequences=20000", "optimizer.lr=0.003",
        "optimizer.algorithm.weight_decay=0.02", "~optimizer.algorithm.fused",
    ],
    "one_number": ["model.penalty.free=0", "model.sequences=30000", "optimizer.lr=0.003"],
    "points": ["model.penalty.free=0", "model.sequences=30000", "optimizer.lr=0.003"],
}  # fmt: skip
"""What was the default then."""
AS_ASKED = [*COPY, *STAGED, *SIZES, "engine=reference"]


def as_then(name: str) -> list[str]:
    """The command of a copy run of then, in the words of today."""
    forgets = "model.network.controller.forget_bias=0"
    return [*AS_ASKED, forgets, *RECIPES[Path(name).parts[0]]]


OF_THEN = [name for name in FINISHED if "/ntm/" in name and Path(name).parts[0] in RECIPES]


@pytest.mark.parametrize(
    ("folder", "name"), [(name, name) for name in OF_THEN], indirect=["folder"]
)
def test_the_same_command_leaves_a_finished_run_alone_and_another_is_refused(
    folder, name, run_command, capfd
):
    before = contents(folder)
    assert run_command("run_train", *as_then(name)) == 0
    assert "is finished and left alone" in capfd.readouterr().err
    assert run_command("run_train", *AS_ASKED) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "another configuration; differing: " in line
    assert "optimizer.lr" in line
    assert "trainer" not in line
    assert contents(folder) == before


STOPPED = [name for name in READ if name not in FINISHED]


@pytest.mark.parametrize(
    ("folder", "name"), [(name, name) for name in STOPPED], indirect=["folder"]
)
def test_the_same_command_goes_on_with_a_stopped_run(folder, name, run_command, capfd):
    """To no bits of then, but from its weights, with its records, in its stage."""
    before = untimed(folder)
    assert len(before) >= 4
    longer = ["sequences=1920", "name=stopped"]
    assert run_command("run_train", *as_then(name), *longer) == 0
    assert f"going on after {int(before[-1]['sequences']):,} sequences" in capfd.readouterr().err
    after = untimed(folder)
    assert [int(row["sequences"]) for row in after] == list(range(96, 1921, 96))
    for then, now in zip(before, after, strict=False):
        assert {key: now[key] for key in then} == then
    came_to = result(folder)
    assert came_to["status"] == "finished"
    assert came_to["seconds"] > float(rows(folder)[len(before) - 1]["seconds"])
    assert [stage["ranges"]["length"] for stage in came_to["stages"]] == [[1, 2], [1, 4], [1, 6]]
    # 1,920 by shares of 0.2, 0.3, 0.5, in whole intervals.
    assert [stage["sequences"] for stage in came_to["stages"]] == [384, 576, 960]


@pytest.mark.parametrize("folder", [n for n in READ if "/ntm/" in n], indirect=True)
def test_a_run_of_today_starts_from_its_weights(folder, run_command, tmp_path):
    # A learning rate of next to nothing shows the weights that it began with.
    slow = ["optimizer.lr=1e-30", "optimizer.algorithm.weight_decay=0", "name=later"]
    asked = [*COPY, *SIZES, *slow, "sequences=16", "validate_every=16", "engine=reference"]
    assert run_command("run_train", *asked, f"init_from={folder}") == 0
    later = tmp_path / "outputs" / "later" / "ntm" / "seed_0"
    assert_same_tensors(weights(folder, "best"), weights(later, "last"))
