"""Wrong commands: status 2, one line that names the key, nothing written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runners import ROOT, SMALL, finish, run_here

from ntm.commands import command
from ntm.training.sweeps import Plan

WRONG = {
    "unknown key": (["sede=1"], ["sede", "'1'", "seed"]),
    "unknown key below": (["model.network.memory=3"], ["model.network.memory", "memory_size"]),
    "unknown key with plus": (["+trainer.foo=1"], ["trainer", "foo"]),
    "unknown argument with plus": (["+model.network.foo=1"], ["model.network.foo", "word_size"]),
    "wrong type of a number": (["seed=abc"], ["seed", "abc", "Integer"]),
    "fraction for a whole number": (["model.network.memory_size=1.5"], ["memory_size", "1.5"]),
    "text for a number": (["model.network.memory_size=big"], ["memory_size", "int", "big"]),
    "text for a learning rate": (["optimizer.lr=fast"], ["optimizer.lr", "fast"]),
    "text for a truth": (["deterministic=maybe"], ["deterministic", "maybe"]),
    "negative seed": (["seed=-1"], ["seed", "at least 0", "-1"]),
    "no budget": (["sequences=0"], ["sequences", "at least 1", "0"]),
    "no batch": (["batch_size=0"], ["batch_size", "at least 1", "0"]),
    "no interval": (["validate_every=0"], ["validate_every", "at least 1", "0"]),
    "no thread": (["threads=0"], ["threads", "at least 1", "0"]),
    "empty range of lengths": (
        ["task.min_length=5", "task.max_length=4"],
        ["task.max_length", "4"],
    ),
    "empty range of repeats": (
        ["task=repeat_copy", "~task.max_length", "+task.max_length=6", "task.min_repeats=11"],
        ["task.max_repeats", "11", "10"],
    ),
    "a number the task does not have in a stage": (
        ["curriculum=staged", "~curriculum.upper", "+curriculum.upper={items: [2, 3, null]}"],
        ["curriculum.upper", "items", "length"],
    ),
    "names in place of a list": (
        ["curriculum=staged", "curriculum.upper={length: [2, 3, null]}"],
        ["'~curriculum.upper' '+curriculum.upper={length: [2, 3, null]}'"],
    ),
    "negative length": (["task.min_length=-2"], ["task.min_length", "at least 1", "-2"]),
    "no bits": (["task.bits=0"], ["task.bits", "at least 1", "0"]),
    "memory of no rows": (["model.network.memory_size=0"], ["model.network.memory_size", "0"]),
    "shifts wider than memory": (
        ["model.network.memory_size=4", "model.network.shift_range=2"],
        ["model.network.shift_range", "4", "2"],
    ),
    "no read head": (["model.network.num_read_heads=0"], ["model.network.num_read_heads", "1"]),
    "no write head": (["model.network.num_write_heads=0"], ["model.network.num_write_heads", "1"]),
    "no hidden unit": (
        ["model.network.controller.hidden_size=0"],
        ["model.network.controller.hidden_size", "at least 1", "0"],
    ),
    "unknown scheme": (
        ["model.network.initial_memory=zero"],
        ["model.network.initial_memory", "constant, random, learned", "zero"],
    ),
    "unknown model": (["model=foo"], ["model", "lstm, ntm", "foo"]),
    "unknown task": (["task=foo"], ["task", "copy", "foo"]),
    "no task at all": (["task=null"], ["task=null"]),
    "unknown engine": (["engine=warp"], ["engine", "auto, reference", "warp"]),
    "unknown engine without an NTM": (["model=lstm", "engine=warp"], ["engine", "warp"]),
    "stage beyond the last": (
        ["curriculum=staged", "curriculum.stage=4", "task.max_length=20"],
        ["curriculum.stage", "at most 3", "4"],
    ),
    "stages beyond the task": (
        ["curriculum=staged", "task.max_length=8"],
        ["curriculum.upper", "8"],
    ),
    "negative learning rate": (["optimizer.lr=-1"], ["optimizer.lr", "-1"]),
    "one beta": (["optimizer.algorithm.betas=[0.9]"], ["optimizer.algorithm", "index"]),
    "an optimizer in one call and in several": (
        ["+optimizer.algorithm.foreach=true"],
        ["optimizer.algorithm", "foreach", "fused"],
    ),
    "unknown decay": (["optimizer.decay=slow"], ["optimizer.decay", "cosine", "slow"]),
    "clipping to nothing": (["optimizer.clip_norm=0"], ["optimizer.clip_norm", "0"]),
    "unknown option": (["--foo"], ["--foo", "--help"]),
    "a logger of the Trainer's": (["trainer.logger=true"], ["trainer.logger", "false", "logger="]),
    "time": (["trainer.max_time=00:00:01:00"], ["trainer.max_time", "timeout"]),
    "epochs": (["trainer.max_epochs=3"], ["trainer.max_epochs", "sequences"]),
    "epochs with plus": (["+trainer.max_epochs=3"], ["trainer.max_epochs", "sequences"]),
    "validation interval": (["trainer.val_check_interval=3"], ["validate_every"]),
    "clipping by the trainer": (["trainer.gradient_clip_val=1"], ["optimizer.clip_norm"]),
    "unknown accelerator": (["trainer.accelerator=abacus"], ["trainer", "abacus"]),
    "wrong type for the trainer": (["trainer.num_nodes=many"], ["trainer.num_nodes", "many"]),
    "no points": (["evaluation.at=[]"], ["evaluation.at", "[]"]),
    "a point that is none": (["evaluation.at=[0]"], ["evaluation.at", "length", "at least 1"]),
    "a number of another task": (
        ["evaluation.at=[{items: 3}]"],
        ["evaluation.at", "length", "items"],
    ),
    "a kind that is none": (
        ["evaluation.kinds=[drawn,odd]"],
        ["evaluation.kinds", "odd", "sparse"],
    ),
    "no kinds": (["evaluation.kinds=[]"], ["evaluation.kinds", "all", "[]"]),
    "more than all are mixed": (["task.mix=1.5"], ["task.mix", "share", "1.5"]),
    "nothing kept": (["callbacks.keep_last=0"], ["callbacks.keep_last", "at least 1", "0"]),
    "name of no folder": (["name=a/b"], ["name", "a/b"]),
    "unreadable override": (["seed"], ["seed"]),
    "weights from nowhere": (["init_from=outputs/none"], ["init_from", "outputs/none"]),
    "a key of another place": (["hidden_size=20"], ["hidden_size", "model.network.controller."]),
    "a rate in the wrong place": (["lr=0.1"], ["'optimizer.lr'"]),
    "misspelt size of memory": (["model.network.wordsize=3"], ["wordsize", "'word_size'"]),
    "misspelt group": (["optimiser=adam"], ["optimiser", "'optimizer'"]),
    "misspelt argument of the trainer": (["trainer.precison=16"], ["precison", "'precision'"]),
    "misspelt callback": (["callbacks.keep_evry=3"], ["keep_evry", "'keep_every'"]),
    "misspelt part of the controller": (
        ["model.network.controller.hidden=3"],
        ["controller.hidden ", "'hidden_size'"],
    ),
    "unknown argument of a logger": (["logger.tensorboard.foo=1"], ["foo", "save_dir"]),
    "half a seed": (["seed=0.5"], ["seed", "0.5", "Integer"]),
    "a budget in powers of ten": (["sequences=1e3"], ["sequences", "1000.0", "Integer"]),
    "an interval of letters": (["validate_every=x"], ["validate_every", "x", "Integer"]),
    "bits of letters": (["task.bits=eight"], ["task.bits", "int", "eight"]),
    "negative workers": (["num_workers=-1"], ["num_workers", "at least 0", "-1"]),
    "negative shifts": (["model.network.shift_range=-1"], ["shift_range", "at least 0", "-1"]),
    "no words": (["model.network.word_size=0"], ["word_size", "at least 1", "0"]),
    "unknown activation": (
        ["model.network.key_activation=swish"],
        ["key_activation", "identity, tanh, sigmoid, relu", "swish"],
    ),
    "unknown weighting": (
        ["model.network.initial_weighting=last"],
        ["initial_weighting", "first_location, uniform, learned", "last"],
    ),
    "all drops out": (["model.network.controller.dropout=1.0"], ["dropout", "[0, 1)", "1"]),
    "no layers": (["model.network.controller.num_layers=0"], ["num_layers", "at least 1", "0"]),
    "segments of nothing": (["model.network.segment=0"], ["segment", "at least 1", "0"]),
    "a stage without stages": (["curriculum.stage=2"], ["curriculum.stage", "at most 1", "2"]),
    "unknown experiment": (["experiment=nothing"], ["experiment", "graves2014_copy", "nothing"]),
    "unknown optimizer": (["optimizer=adm"], ["optimizer", "adam", "adm"]),
    "unknown curriculum": (["curriculum=steep"], ["curriculum", "staged", "steep"]),
    "clipping below nothing": (["optimizer.clip_value=-1"], ["optimizer.clip_value", "above 0"]),
    "giving up at once": (["optimizer.give_up_after=0"], ["give_up_after", "at least 1", "0"]),
    "more than the whole budget": (["model.penalty.until=2"], ["penalty.until", "share", "2"]),
    "a negative price": (["model.penalty.writing=-1"], ["penalty.writing", "at least 0", "-1"]),
    "no device": (["trainer.devices=0"], ["trainer", "devices", "0"]),
    "an accelerator that is not there": (["trainer.accelerator=tpu"], ["trainer: "]),
    "a strategy that changes training": (
        ["trainer.strategy=ddp_spawn"],
        ["strategy", "auto or ddp"],
    ),
    "unknown precision": (["trainer.precision=17"], ["trainer.precision", "one of", "17"]),
    "no context": (["task=dynamic_ngrams", "~task.max_length", "task.context=0"], ["context"]),
    "weights from a folder of none": (["init_from=."], ["init_from", "no config.yaml"]),
    "a step of no run": (["replay=nowhere"], ["replay", "nowhere", "does not exist"]),
    "a step of a folder of none": (["replay=."], ["replay", "no config.yaml"]),
    "evaluation of nothing": (["evaluation.sequences=0"], ["evaluation.sequences", "at least 1"]),
    "one wrong job of a sweep": (["-m", "seed=0,1,-1"], ["seed", "at least 0", "-1"]),
}


def on_a_small_run(overrides: list[str]) -> list[str]:
    """After those of a small run; a sweep's -m comes first."""
    sweep = overrides[:1] if overrides[0] == "-m" else []
    return [*sweep, *SMALL[2:], *overrides[len(sweep) :]]


@pytest.mark.parametrize(("overrides", "words"), WRONG.values(), ids=WRONG)
def test_wrong_training_is_one_line_and_writes_nothing(
    overrides, words, run_command, tmp_path, capsys
):
    assert run_command("run_train", *on_a_small_run(overrides)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "Traceback" not in line
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained run; copy it before you change it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        assert run_here(patch, folder, "run_train", *SMALL, "sequences=96") == 0
    return folder / "outputs" / "copy" / "ntm" / "seed_0"


WRONG_EVALUATIONS = {
    "no run": ([], ["run"]),
    "no such folder": (["run=nowhere"], ["run", "nowhere", "does not exist"]),
    "folder without a run": (["run=."], ["run", "config.yaml"]),
    "no lengths": (["run=RUN", "lengths=[]"], ["lengths", "[]"]),
    "negative length": (["run=RUN", "lengths=[5,-1]"], ["lengths", "-1"]),
    "lengths of a wrong type": (["run=RUN", "lengths=[a]"], ["lengths", "a"]),
    "no points": (["run=RUN", "at=[]"], ["at", "[]"]),
    "a point that is none": (["run=RUN", "at=[{length: long}]"], ["at", "length", "long"]),
    "a point of another task": (
        ["run=RUN", "at=[{length: 5, repeats: 2}]"],
        ["at", "a point of copy", "length", "repeats"],
    ),
    "a point below the least": (["run=RUN", "at=[0]"], ["at", "length", "at least 1", "0"]),
    "points that are no list": (["run=RUN", "at=5"], ["at", "list", "5"]),
    "a kind that is none": (["run=RUN", "kinds=[odd]"], ["kinds", "odd", "silent_pair"]),
    "a kind of another task": (["run=RUN", "kinds=[tied]"], ["kinds", "tied", "copy"]),
    "kinds that are no list": (["run=RUN", "kinds=zeros"], ["kinds", "all or a list", "zeros"]),
    "no sequences": (["run=RUN", "sequences=0"], ["sequences", "at least 1", "0"]),
    "unknown checkpoint": (
        ["run=RUN", "checkpoint=worst"],
        ["checkpoint", "best or last", "worst"],
    ),
    "memory of no rows": (["run=RUN", "memory_size=0"], ["memory_size", "at least 1", "0"]),
    "memory narrower than shifts": (["run=RUN", "memory_size=2"], ["shift_range", "2"]),
    "unknown accelerator": (["run=RUN", "accelerator=abacus"], ["accelerator", "abacus"]),
    "allowed by number": (["run=RUN", "allow=3"], ["allow", "names", "3"]),
    "misspelt": (["run=RUN", "memorysize=20"], ["memorysize", "'memory_size'"]),
}


@pytest.mark.parametrize(("overrides", "words"), WRONG_EVALUATIONS.values(), ids=WRONG_EVALUATIONS)
def test_wrong_evaluation_is_one_line_and_writes_nothing(
    overrides, words, trained, run_command, tmp_path, capsys
):
    before = (trained / "eval" / "results.csv").read_bytes()
    overrides = [override.replace("RUN", str(trained)) for override in overrides]
    assert run_command("run_eval", *overrides) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "Traceback" not in line
    for word in words:
        assert word in line
    assert (trained / "eval" / "results.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] in ([], ["outputs"])


@pytest.mark.parametrize("harm", ["missing", "cut", "garbage"])
@pytest.mark.parametrize("program", ["run_eval", "run_train"])
def test_a_missing_or_damaged_checkpoint_is_said(
    harm, program, trained, run_command, tmp_path, capsys
):
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    shutil.copytree(trained, folder)
    name = "best" if program == "run_eval" else "last"
    checkpoint = folder / "checkpoints" / f"{name}.ckpt"
    whole = checkpoint.read_bytes()
    for path in (checkpoint, folder / "checkpoints" / "best.ckpt"):  # none is left to go on from
        path.unlink(missing_ok=True)
        if harm != "missing":
            path.write_bytes(whole[: len(whole) // 2] if harm == "cut" else b"no checkpoint")
    result = folder / "result.json"
    result.write_text(result.read_text().replace("finished", "running"))
    if program == "run_eval":
        status = run_command("run_eval", f"run={folder}")
    elif harm == "missing":
        return  # a run without a checkpoint begins again
    else:
        status = run_command("run_train", *SMALL, "sequences=96")
    assert status == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"{name}" in line
    assert ("is damaged" in line) == (harm != "missing")
    assert checkpoint.exists() == (harm != "missing")
    assert (folder / "metrics.csv").read_bytes() == (trained / "metrics.csv").read_bytes()


def test_evaluating_an_lstm_with_another_memory_is_refused(run_command, capsys):
    small = [override for override in SMALL if "memory_size" not in override]
    small = [override.replace("controller.", "") for override in small]
    assert run_command("run_train", *small, "model=lstm", "sequences=96") == 0
    capsys.readouterr()
    run = "outputs/copy/lstm/seed_0"
    assert run_command("run_eval", f"run={run}", "memory_size=20") == 2
    assert "memory_size must be null for LSTM" in capsys.readouterr().err


def test_sequences_that_cannot_be_are_refused_in_one_line(run_command, capsys):
    small = [override for override in SMALL if "task." not in override and ".at" not in override]
    assert run_command("run_train", "task=associative_recall", *small, "sequences=96") == 0
    folder = Path("outputs/associative_recall/ntm/seed_0")
    before = (folder / "eval" / "results.csv").read_bytes()
    capsys.readouterr()
    asked = ["at=[3000]", "kinds=[one_hot]", "sequences=2"]
    assert run_command("run_eval", f"run={folder}", *asked) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "one_hot at items 3000: items must be few enough" in line
    assert (folder / "eval" / "results.csv").read_bytes() == before


def test_another_configuration_is_refused_with_the_ways_out(trained, run_command, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "outputs" / "copy" / "ntm" / "seed_0")
    assert run_command("run_train", *SMALL, "sequences=96", "optimizer.lr=0.5") == 2
    line = capsys.readouterr().err
    assert "optimizer.lr" in line
    for way in ("name=", "init_from=", "overwrite=true"):
        assert way in line


def test_a_folder_of_something_else_is_not_touched(run_command, tmp_path, capsys):
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    assert run_command("run_train", *SMALL, "overwrite=true") == 2
    assert "thesis" not in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_failing_run_says_why_and_leaves_the_reason(run_command, tmp_path, capsys):
    # A learning rate that no training survives.
    status = run_command("run_train", *SMALL, "optimizer.lr=1e30", "optimizer.clip_norm=null")
    assert status == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "failed" in last
    result = json.loads((tmp_path / "outputs/copy/ntm/seed_0/result.json").read_text())
    assert result["status"] == "failed"
    assert result["reason"] in last


@pytest.mark.parametrize(
    ("program", "arguments", "unloaded"),
    [
        ("run_train", ["--help"], "torch"),
        ("run_train", ["sede=1"], "torch"),
        ("run_train", ["model=foo"], "torch"),
        ("run_compare", ["runs=nowhere"], "torch"),
        ("run_train", ["model.network.memory_size=0"], "torch._dynamo"),
        ("run_train", ["evaluation.at=[0]"], "torch._dynamo"),
        ("run_train", ["optimizer.algorithm.betas=[0.9]"], "pytorch_lightning"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_before_what_loads_long(program, arguments, unloaded, tmp_path):
    code = (
        "import sys, runpy, atexit\n"
        f"atexit.register(lambda: print({unloaded!r} in sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['{program}.py', *{arguments!r}]\n"
        f"runpy.run_path({str(ROOT / f'{program}.py')!r}, run_name='__main__')\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stderr.strip().endswith("False"), done.stderr
    assert done.returncode == (0 if arguments == ["--help"] else 2)
    assert time.monotonic() - began < 30  # hangs are caught; speed is measured elsewhere
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "given",
    [[], ["-m"], ["hydra.verbose=[x]"], ["-m", "hydra.verbose=[x]"]],
    ids=["a run", "a sweep", "a run by Hydra", "a sweep by Hydra"],
)
def test_a_job_gets_its_configuration_as_the_command_line_has_it(given, monkeypatch, tmp_path):
    """Whatever its check makes of it."""
    monkeypatch.chdir(tmp_path)
    jobs = []

    def check(config):
        config.engine = "settled"

    def job(config, _):
        jobs.append((config.engine, config.seed))
        return command.DONE

    monkeypatch.setattr(sys, "argv", ["run_train.py", *given, "seed=7"])
    assert command.main(ROOT / "configs", "train", check, job) == 0
    assert jobs == [("auto", 7)]


@pytest.mark.parametrize(
    ("given", "asks"),
    [([], False), (["seed=1"], False), (["+hydra.x=1"], True), (["--config-name", "x"], True)],
    ids=str,
)
def test_what_is_asked_of_hydra_goes_to_hydra(given, asks, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_train.py", *given])
    assert command._sets_hydra(command._arguments()) == asks


def folder_of_ones_own(place: Path) -> Path:
    """Configurations beside the project's, one of which says what a sweep is over."""
    mine = place / "mine"
    (mine / "experiment").mkdir(parents=True)
    (mine / "experiment" / "short.yaml").write_text("# @package _global_\nsequences: 123\n")
    (mine / "experiment" / "grid.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 3,4\n"
        "      optimizer.lr: 1e-3,3e-3\n"
    )
    return mine


def run_jobs(monkeypatch: pytest.MonkeyPatch, *given: str, check=lambda _: None, ready=None):
    """The exit status of a command, and (sequences, seed, lr, working folder) of its jobs."""
    jobs = []

    def job(config, _):
        jobs.append((config.sequences, config.seed, config.optimizer.lr, os.getcwd()))
        return command.DONE

    monkeypatch.setattr(sys, "argv", ["run_train.py", *given])
    return command.main(ROOT / "configs", "train", check, job, ready=ready), jobs


@pytest.mark.parametrize("way", ["absolute", "relative", "key"])
@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_configurations_of_ones_own_are_found(way, sweep, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    mine = folder_of_ones_own(tmp_path)
    given = {
        "absolute": ["--config-dir", str(mine)],
        "relative": ["--config-dir", "mine"],
        "key": [f"hydra.searchpath=[file://{mine}]"],
    }[way]
    checked = []
    status, jobs = run_jobs(
        monkeypatch, *sweep, *given, "experiment=short", "seed=5", check=checked.append
    )
    assert status == 0
    assert [job[:2] for job in jobs] == [(123, 5)]
    assert [config.sequences for config in checked] == [123]


def test_a_folder_of_configurations_that_is_none_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_jobs(monkeypatch, "--config-dir", "mine", "seed=1") == (command.WRONG, [])
    assert capsys.readouterr().err == "--config-dir must be a folder, got mine\n"


def test_what_a_configuration_sweeps_over_is_checked_before_anything_starts(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    folder_of_ones_own(tmp_path)
    given = ["--config-dir", "mine", "-m", "experiment=grid"]
    status, jobs = run_jobs(monkeypatch, *given)
    assert status == 0
    assert [job[1:3] for job in jobs] == [(3, 1e-3), (3, 3e-3), (4, 1e-3), (4, 3e-3)]
    plan = Plan()
    status, jobs = run_jobs(monkeypatch, *given, check=plan.add, ready=plan.settle)
    assert (status, jobs) == (command.WRONG, [])
    assert "optimizer.lr=0.001 and optimizer.lr=0.003 would share" in capsys.readouterr().err


def test_two_ways_to_write_a_folder_are_one(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    plan = Plan()
    given = ["-m", "folder=outputs/x,outputs/./x"]
    status, jobs = run_jobs(monkeypatch, *given, check=plan.add, ready=plan.settle)
    assert (status, jobs) == (command.WRONG, [])
    assert "is the folder of two runs" in capsys.readouterr().err


def test_hydras_own_folder_for_a_job_moves_no_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for sweep in ([], ["-m"]):
        status, jobs = run_jobs(monkeypatch, *sweep, "hydra.job.chdir=true", "seed=1")
        assert status == 0
        assert [job[3] for job in jobs] == [str(tmp_path)]
        assert "where the command began" in capsys.readouterr().err


def test_a_link_to_a_command_finds_its_configurations(tmp_path):
    for name in ("run_train.py", "scripts/multiple_train.sh"):
        link = tmp_path / Path(name).name
        link.symlink_to(ROOT / name)
        program = [sys.executable] if name.endswith(".py") else ["bash"]
        done = subprocess.run(
            [*program, str(link), *(["--cfg", "job"] if program != ["bash"] else ["--help"])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "model" in done.stdout


def test_jobs_that_differ_in_the_seed_are_composed_once(monkeypatch):
    composed, jobs, compose = [], [], command.compose

    def counted(*given, with_hydra=False):
        composed.extend([] if with_hydra else [given])
        return compose(*given, with_hydra=with_hydra)

    def job(config, _):
        jobs.append((config.optimizer.lr, config.seed))
        return command.DONE

    monkeypatch.setattr(command, "compose", counted)
    monkeypatch.setattr(sys, "argv", ["run_train.py", "-m", "seed=1,2,3", "optimizer.lr=0.1,0.2"])
    assert command.main(ROOT / "configs", "train", lambda _: None, job) == 0
    assert sorted(jobs) == [(rate, seed) for rate in (0.1, 0.2) for seed in (1, 2, 3)]
    assert len(composed) == 2


WRONG_COMMANDS = [
    (["optimizer.lr=${nothing}"], "Interpolation key 'nothing' not found"),
    (["name=${task.nothing}"], "nothing"),
    (["seed=18446744073709551616"], "seed must be at most 18446744073709551615, got"),
    (["trainer.accumulate_grad_batches={0: 4}"], "must be of type int, got {0: 4}"),
    (["trainer.log_every_n_steps={every: 4}"], "trainer.log_every_n_steps must be of type"),
    (["trainer.limit_val_batches=2"], "trainer.limit_val_batches is governed by another key"),
    (["trainer.limit_test_batches=0"], "trainer.limit_test_batches is governed by another key"),
    (["evaluation.at=[3,", "6]"], "quote it, as 'evaluation.at=[3, 6]'"),
    (["curriculum={_target_:", "ntm.X}"], "quote it, as 'curriculum={_target_: ntm.X}'"),
    (["name=a=b"], "has two equals signs: quote the value"),
    (["name=a", "b"], "'b' is no override: each is key=value"),
    (["trainer.callbacks=[{_target_:pytorch_lightning.callbacks.Timer,duration:{ages:1}}]"],
     "trainer.callbacks"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "told"), WRONG_COMMANDS, ids=lambda one: str(one)[:50])
def test_what_is_wrong_is_one_line_and_status_2(given, told, monkeypatch, tmp_path, capfd):
    assert run_here(monkeypatch, tmp_path, "run_train", *SMALL, *given) == 2
    err = capfd.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.soak
def test_every_wrong_command_ends_in_five_seconds(trained, tmp_path):
    """Each in a process of its own, from its start to its end."""
    commands = [("run_train", [*SMALL, *given]) for given, _ in WRONG_COMMANDS]
    commands += [("run_train", on_a_small_run(given)) for given, _ in WRONG.values()]
    for given, _ in WRONG_EVALUATIONS.values():
        commands.append(("run_eval", [one.replace("RUN", str(trained)) for one in given]))
    took = {}
    for program, given in commands:
        began = time.monotonic()
        status, _, err = finish(tmp_path, program, *given)
        took[f"{program} {shlex.join(given)}"] = time.monotonic() - began
        assert (status, err.count("\n")) == (2, 1), err
        assert "Traceback" not in err
        assert not list(tmp_path.iterdir())
    slowest = max(took, key=took.__getitem__)
    print(f"{len(took)} commands, the slowest {took[slowest]:.1f} s", end=" ")
    assert took[slowest] < 5, slowest


@pytest.mark.parametrize("content", ["", "\x00\x01: [", "[1, 2]", "seed: [0\ntask"], ids=repr)
@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
def test_a_damaged_file_of_a_run_is_named_in_one_line(
    name, content, trained, monkeypatch, tmp_path, capfd
):
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    shutil.copytree(trained, folder)
    (folder / name).write_text(content)
    capfd.readouterr()
    commands = [("run_train", [*SMALL, "sequences=96"])]
    if name == "config.yaml":
        commands.append(("run_eval", [f"run={folder}", "at=[3]"]))
    for program, given in commands:
        status = run_here(monkeypatch, tmp_path, program, *given)
        err = capfd.readouterr().err
        assert status == 2, err
        assert f"{name} is damaged" in err
        assert len(err.splitlines()) == 1
        assert (folder / name).read_text() == content
    again = [*SMALL, "sequences=96", "overwrite=true"]
    assert run_here(monkeypatch, tmp_path, "run_train", *again) == 0


def small_run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    assert run_here(monkeypatch, folder, "run_train", *SMALL, "sequences=16") == 0
    return folder / "outputs" / "copy" / "ntm" / "seed_0"


@pytest.mark.parametrize("program", ["run_eval", "run_compare"])
def test_results_that_cannot_be_written_are_refused_before_they_are_computed(
    program, monkeypatch, tmp_path, capfd
):
    run = small_run(monkeypatch, tmp_path)
    place = {"run_eval": run / "eval", "run_compare": run.parent.parent / "comparison"}[program]
    given = {
        "run_eval": [f"run={run}", "at=[3]"], "run_compare": [f"runs={run.parent.parent}"]
    }[program]  # fmt: skip
    if place.exists():
        shutil.rmtree(place)
    place.write_text("in the way")  # even root cannot write into it
    capfd.readouterr()
    assert run_here(monkeypatch, tmp_path, program, *given) == 2
    out, err = capfd.readouterr()
    assert "folder=… puts them elsewhere" in err
    assert str(place.name) in err
    assert len(err.splitlines()) == 1
    assert not out
    place.unlink() if program == "run_eval" else None
    assert run_here(monkeypatch, tmp_path, program, *given, "folder=elsewhere/deep") == 0
    made = {path.name for path in (tmp_path / "elsewhere" / "deep").iterdir()}
    assert made >= ({"eval", "figures"} if program == "run_eval" else {"report.html", "means"})
    if program == "run_eval":
        assert not place.exists()
    assert "elsewhere/deep" in capfd.readouterr().out


NOBODY = """
import pwd, runpy, sys
def unknown(user):
    raise KeyError(user)
pwd.getpwuid = unknown
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_user_without_a_home_or_an_entry_in_the_password_file_trains(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    environment["TMPDIR"] = str(tmp_path)
    asked = [str(ROOT / "run_train.py"), "model=lstm", "model.network.hidden_size=8"]
    asked += ["sequences=16", "validate_every=16", "evaluation.sequences=1"]
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, *asked],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not [*tmp_path.glob("matplotlib-*")]  # nothing is left behind


def in_the_way(folder: Path) -> None:
    (folder / "outputs").write_text("in the way")  # even root cannot write into it


def read_only(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is read-only to root")
    folder.chmod(0o555)


@pytest.mark.parametrize("more", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
@pytest.mark.parametrize("obstacle", [in_the_way, read_only])
def test_a_run_that_cannot_be_written_is_refused_before_it_starts(
    obstacle, more, monkeypatch, tmp_path, capfd
):
    here = tmp_path / "here"
    here.mkdir()
    obstacle(here)
    try:
        assert run_here(monkeypatch, here, "run_train", *more, *SMALL) == 2
        _, err = capfd.readouterr()
        assert len(err.splitlines()) == 1
        assert "outputs/copy/ntm/seed_0, which cannot be written to" in err
        assert "folder=… puts them elsewhere" in err
        elsewhere = f"folder={tmp_path}/elsewhere/${{seed}}"
        asked = [*more, *SMALL, "sequences=16", elsewhere]
        assert run_here(monkeypatch, here, "run_train", *asked) == 0
        assert (tmp_path / "elsewhere" / "0" / "result.json").is_file()
    finally:
        here.chmod(0o755)


def test_a_finished_run_is_left_alone_where_nothing_can_be_written(monkeypatch, tmp_path, capfd):
    if os.geteuid() == 0:
        pytest.skip("nothing is read-only to root")
    run = small_run(monkeypatch, tmp_path)
    run.chmod(0o555)
    try:
        assert run_here(monkeypatch, tmp_path, "run_train", *SMALL, "sequences=16") == 0
        assert run_here(monkeypatch, tmp_path, "run_train", *SMALL, "overwrite=true") == 2
        assert "cannot be written to" in capfd.readouterr().err
    finally:
        run.chmod(0o755)


@pytest.mark.parametrize("program", ["run_eval", "run_compare"])
def test_a_disk_that_is_full_at_the_end_costs_no_table(program, monkeypatch, tmp_path, capfd):
    from ntm.comparison import report
    from ntm.views import evaluation

    run = small_run(monkeypatch, tmp_path)
    given = {
        "run_eval": [f"run={run}", "at=[3]"], "run_compare": [f"runs={run.parent.parent}"]
    }[program]  # fmt: skip

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "write_rows", full)
    monkeypatch.setattr(report, "write_rows", full)
    capfd.readouterr()
    assert run_here(monkeypatch, tmp_path, program, *given) == 1
    out, err = capfd.readouterr()
    assert "wrong bits" in out
    assert "No space left" in err
    assert "Traceback" not in err


STRANGE = "a [bold]b[red] it's = {x}, $HOME"


def test_what_is_printed_to_be_copied_works_when_copied(monkeypatch, tmp_path, capfd):
    place = tmp_path / STRANGE
    place.mkdir()
    run = f"'{place}/run'".replace("it's", "it\\'s")  # as Hydra quotes
    small = [*SMALL, "sequences=16"]
    assert run_here(monkeypatch, tmp_path, "run_train", *small, f"folder={run}") == 0
    out = capfd.readouterr().out
    (shown,) = [line for line in out.splitlines() if "tensorboard --logdir" in line]
    assert shlex.split(shown.partition("--logdir ")[2]) == [str(tmp_path)]
    assert run_here(monkeypatch, tmp_path, "run_train", *small, f"folder={run}", "seed=1") == 2
    err = capfd.readouterr().err
    (word,) = shlex.split(err.partition("beside it, ")[2].partition(" to start from")[0])
    other = ["name=other", word]
    assert run_here(monkeypatch, tmp_path, "run_train", *small, *other) == 0
    capfd.readouterr()
    assert run_here(monkeypatch, tmp_path, "run_eval", f"run={run}", "at=[3]") == 0
    assert STRANGE in capfd.readouterr().out
    assert (
        run_here(monkeypatch, tmp_path, "run_compare", f"runs='{place}'".replace("it's", "it\\'s"))
        == 0
    )
    out = capfd.readouterr().out
    assert "[bold]" in out
    (shown,) = [line for line in out.splitlines() if "tensorboard --logdir" in line]
    assert shlex.split(shown.partition("--logdir ")[2]) == [str(place)]
