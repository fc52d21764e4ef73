"""scripts/search.py: seeds grouped, resumed to the same trials, hopeless trials stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
from runners import ROOT, SMALL
from written import result, rows

from ntm.comparison.reading import find_runs, read_run

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.loggers

RATE = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
ASKED = [*SMALL, RATE, "logger=none", "trials=2", "seeds=0-1"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "search.py"), *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def storage(folder: Path) -> optuna.storages.JournalStorage:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "search.journal"))
    return optuna.storages.JournalStorage(backend)


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="search", storage=storage(folder)).trials


def told(folder: Path) -> list[tuple]:
    return [
        (trial.number, trial.state, trial.params, trial.value, trial.user_attrs)
        for trial in trials(folder)
    ]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    search = start(folder, *ASKED)
    out, err = search.communicate(timeout=1800)
    assert search.returncode == 0, err
    assert "The best: python run_train.py" in out
    return folder / "outputs" / "search"


def best_validation(folder: Path) -> float:
    return min(float(row["val/wrong_bits_per_sequence"]) for row in rows(folder))


def test_a_trial_is_the_median_over_its_seeds(searched):
    assert [trial.number for trial in trials(searched)] == [0, 1]
    for trial in trials(searched):
        runs = [searched / f"trial_{trial.number:03d}" / f"seed_{seed}" for seed in (0, 1)]
        values = [best_validation(run) for run in runs]
        assert values[0] != values[1]
        assert trial.value == median(values)
        assert trial.user_attrs == {"seed 0": values[0], "seed 1": values[1]}


def test_its_runs_are_run_folders_that_a_comparison_reads(searched):
    paths = find_runs(str(searched))
    assert len(paths) == 4
    notes: list[str] = []
    read = [run for path in paths if (run := read_run(path, path.name, notes)) is not None]
    assert not notes
    assert [run.finished for run in read] == [True] * 4
    rates = {run.config.optimizer.lr for run in read}
    assert rates == {trial.params["optimizer.lr"] for trial in trials(searched)}


def test_a_killed_search_goes_on_to_the_same_trials(searched, tmp_path):
    search = start(tmp_path, *ASKED)
    here = tmp_path / "outputs" / "search"
    second = here / "trial_000" / "seed_1"
    while search.poll() is None and not rows(second):
        time.sleep(0.02)
    os.kill(search.pid, signal.SIGKILL)
    search.communicate()
    left = result(second)["status"]
    (before,) = trials(here)
    assert before.state == optuna.trial.TrialState.RUNNING
    first = (here / "trial_000" / "seed_0" / "train.log").read_text()

    # Two processes share what is left.
    both = [start(tmp_path, *ASKED), start(tmp_path, *ASKED)]
    for process in both:
        _, err = process.communicate(timeout=1800)
        assert process.returncode == 0, err
    assert left == "running"  # its run ended with it
    assert told(here) == told(searched)
    assert (here / "trial_000" / "seed_0" / "train.log").read_text() == first


def test_a_hopeless_trial_is_stopped_in_its_first_seed(tmp_path):
    here = tmp_path / "outputs" / "search"
    here.mkdir(parents=True)
    study = optuna.create_study(study_name="search", storage=storage(here))
    space = {"optimizer.lr": optuna.distributions.FloatDistribution(1e-12, 1e-11, log=True)}
    for _ in range(4):  # trials that were better at every validation
        study.add_trial(
            optuna.trial.create_trial(
                params={"optimizer.lr": 1e-12},
                distributions=space,
                value=0.5,
                intermediate_values=dict.fromkeys(range(1, 11), 1.0),
            )
        )
    asked = [*SMALL, "optimizer.lr=tag(log,interval(1e-12,1e-11))", "trials=5", "seeds=0-1"]
    search = start(tmp_path, *asked, "sequences=96000", "validate_every=9600")
    out, err = search.communicate(timeout=1800)
    assert search.returncode == 0, err
    *_, last = trials(here)
    assert last.state == optuna.trial.TrialState.PRUNED
    run = here / "trial_004" / "seed_0"
    assert result(run)["status"] == "interrupted"
    assert len(rows(run)) < 10
    assert not (here / "trial_004" / "seed_1").exists()
    assert "trial 4" in err
    assert "worse than the median" in out


WRONG = {
    "nothing searched": (["model=lstm"], "one key or more must be searched"),
    "trials": ([RATE, "trials=few"], "trials must be a number of at least 1, got 'few'"),
    "seeds": ([RATE, "seeds=3-1"], "seeds must be such as 0-9 or 1,4,7, got '3-1'"),
    "seed": ([RATE, "seed=1,2"], "seed is not searched"),
    "backwards": (["optimizer.lr=interval(1,0)"], "optimizer.lr"),
    "log of nothing": (["optimizer.lr=tag(log,interval(0,1))"], "optimizer.lr cannot be searched"),
    "unknown key": (["optimizer.rate=interval(1e-4,1e-2)"], "optimizer.rate is no key"),
    "unknown value": (["task=choice(copy,chess)"], "task must be one of"),
    "beyond what can be": (["optimizer.lr=interval(-1.0,1.0)"], "optimizer.lr must be above 0"),
    "grammar": (["optimizer.lr=interval(1e-4"], "optimizer.lr=interval(1e-4"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_command_is_one_line(words, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import search

    assert search.main(words) == 2
    err = capfd.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_another_search_in_its_folder_is_refused(searched, monkeypatch, capfd):
    monkeypatch.chdir(searched.parent.parent)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import search

    before = told(searched)
    assert search.main([*ASKED, "batch_size=8"]) == 2
    err = capfd.readouterr().err
    assert "holds a search with other overrides" in err
    assert len(err.splitlines()) == 1
    assert told(searched) == before
