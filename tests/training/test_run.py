"""Whole runs through the real command: they learn, go on where they stopped, and repeat."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from faults import Faults, faults, hold, release, wait_until_held
from runners import BESIDE, SMALL, finish, run_here, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from written import assert_same_tensors, checkpoint, event_steps, result, rows, untimed, weights

import ntm
from ntm.commands.configuration import ConfigurationError
from ntm.kernels.compiling import kernels
from ntm.training.record import Record

STAGED = ["curriculum=staged", "curriculum.upper=[2,4,null]"]
DROPOUT = ["model.network.controller.dropout=0.1"]


@pytest.mark.slow
def test_the_default_run_solves_copy_and_leaves_a_complete_folder(tmp_path):
    status, out, err = finish(tmp_path, "run_train", "model=ntm")
    assert status == 0, err
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    came_to = result(folder)
    assert came_to["status"] == "finished"
    assert came_to["sequences_to_solve"] is not None
    assert came_to["sequences_to_solve"] <= came_to["sequences"]
    assert came_to["wrong_bits_per_sequence"] < 0.1
    validations = [float(row["val/wrong_bits_per_sequence"]) for row in rows(folder)]
    assert validations[0] > 20
    assert validations[-1] < 0.1
    for name in ("config.yaml", "train.log", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        assert (folder / name).stat().st_size > 0
    table = list(csv.DictReader((folder / "eval/results.csv").open()))
    lengths = {row["length"]: row for row in table if row["kind"] == "drawn"}
    assert lengths.keys() == {"10", "20", "30", "50", "80", "120"}
    assert float(lengths["20"]["wrong_bits_per_sequence"]) < 0.5
    for length in lengths:
        assert (folder / "figures" / f"length_{length}.png").stat().st_size > 0
    for kind in ntm.tasks.Copy.kinds:
        assert [row["length"] for row in table if row["kind"] == kind] == [*lengths]
        assert f"│ {kind} " in out
    assert (folder / "figures" / "kinds.png").stat().st_size > 0
    assert event_steps(folder, "evaluation/exact/length_20/zeros") == [came_to["sequences"]]
    assert "tensorboard --logdir" in out
    assert "engine auto: fused, whole sequences at once" in (folder / "train.log").read_text()
    steps = [int(row["sequences"]) for row in rows(folder)]
    assert event_steps(folder, "val/wrong_bits_per_sequence") == steps


@pytest.mark.parametrize(
    "curriculum",
    [pytest.param([], marks=pytest.mark.soak), pytest.param(STAGED, marks=pytest.mark.slow)],
    ids=["none", "staged"],
)
def test_a_killed_run_goes_on_to_the_same_bits(curriculum, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", BESIDE)
    overrides = [*SMALL, *DROPOUT, *curriculum, faults(tmp_path)]
    status, _, err = finish(tmp_path, "run_train", *overrides, "name=whole")
    assert status == 0, err
    whole = tmp_path / "outputs" / "whole" / "ntm" / "seed_0"

    killed = tmp_path / "outputs" / "killed" / "ntm" / "seed_0"
    hold(tmp_path, after=2)
    process = start(tmp_path, "run_train", *overrides, "name=killed")
    wait_until_held(tmp_path, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    release(tmp_path)
    assert result(killed)["status"] == "running"
    assert len(rows(killed)) == 2

    status, _, err = finish(tmp_path, "run_train", *overrides, "name=killed")
    assert status == 0, err
    assert "going on after" in err
    assert untimed(killed) == untimed(whole)
    for name in ("last", "best"):
        one, other = checkpoint(whole, name), checkpoint(killed, name)
        assert_same_tensors(one["state_dict"], other["state_dict"])
        assert_same_tensors(one["optimizer_states"][0], other["optimizer_states"][0])
    steps = [int(row["sequences"]) for row in rows(whole)]
    for tag in ("val/loss", "train/loss"):
        assert event_steps(killed, tag) == steps
    timeless = ("seconds", "sequences_per_second", "name")
    same = {key: value for key, value in result(whole).items() if key not in timeless}
    assert same == {key: value for key, value in result(killed).items() if key not in timeless}


@pytest.fixture(scope="module", params=[("192", "seq_384"), ("null", "best")], ids=str)
def keeping(request, tmp_path_factory) -> tuple[str, str, Path]:
    """What a run keeps, from where it would go on without its last checkpoint, and its folder."""
    kept, goes_on = request.param
    place = tmp_path_factory.mktemp("keeping")
    with pytest.MonkeyPatch.context() as patch:
        assert run_here(patch, place, "run_train", *SMALL, f"callbacks.keep_every={kept}") == 0
    return kept, goes_on, place / "outputs"


@pytest.mark.parametrize("harm", ["missing", "cut", "flipped"])
def test_the_next_older_checkpoint_takes_the_place_of_a_damaged_one(
    harm, keeping, run_command, tmp_path, capfd
):
    kept, goes_on, outputs = keeping
    shutil.copytree(outputs, tmp_path / "outputs")
    asked = [*SMALL, f"callbacks.keep_every={kept}"]
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    whole, before = untimed(folder), checkpoint(folder, "last")
    last = folder / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0x55
    last.unlink()
    if harm != "missing":
        last.write_bytes(content if harm == "flipped" else content[:-1000])
    told = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(told | {"status": "running"}))
    capfd.readouterr()
    assert run_command("run_train", *asked) == 0
    said = capfd.readouterr().err
    assert f"last.ckpt is {'missing' if harm == 'missing' else 'damaged'}: an older" in said
    assert f"from outputs/copy/ntm/seed_0/checkpoints/{goes_on}.ckpt" in said
    assert untimed(folder) == whole
    assert_same_tensors(checkpoint(folder, "last")["state_dict"], before["state_dict"])


@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_the_last_checkpoint_stands_for_a_best_one_that_is_lost(
    harm, keeping, run_command, tmp_path, capfd
):
    """Even where no validation is left that could be better."""
    kept, _, outputs = keeping
    shutil.copytree(outputs, tmp_path / "outputs")
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    best = folder / "checkpoints" / "best.ckpt"
    content = best.read_bytes()
    best.unlink()
    if harm == "cut":
        best.write_bytes(content[:-1000])
    told = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(told | {"status": "running"}))
    capfd.readouterr()
    assert run_command("run_train", *SMALL, f"callbacks.keep_every={kept}") == 0
    said = capfd.readouterr().err
    assert f"best.ckpt is {'missing' if harm == 'missing' else 'damaged'}: outputs/copy" in said
    assert result(folder)["status"] == "finished"
    assert_same_tensors(weights(folder, "best"), weights(folder, "last"))


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_in_another_precision_too_a_run_goes_on_to_the_same_bits(
    precision, run_command, tmp_path, monkeypatch
):
    asked = [*SMALL, *DROPOUT, f"trainer.precision={precision}"]
    assert run_command("run_train", *asked, "name=whole") == 0
    stopped = tmp_path / "outputs" / "stopped" / "ntm" / "seed_0"
    monkeypatch.setattr(Faults, "on_train_epoch_end", _fails_after_two, raising=False)
    assert run_command("run_train", *asked, "name=stopped", faults(tmp_path)) == 1
    assert len(rows(stopped)) == 2
    monkeypatch.delattr(Faults, "on_train_epoch_end")
    assert run_command("run_train", *asked, "name=stopped", faults(tmp_path)) == 0
    whole = tmp_path / "outputs" / "whole" / "ntm" / "seed_0"
    assert untimed(stopped) == untimed(whole)
    assert_same_tensors(checkpoint(whole, "last")["state_dict"],
                        checkpoint(stopped, "last")["state_dict"])  # fmt: skip


DAY = 24 * 3600.0


def test_a_clock_that_is_set_back_changes_no_number_and_no_order(
    run_command, tmp_path, monkeypatch
):
    """By a day in the second interval, and by another before the run goes on."""
    asked = [*SMALL, "callbacks.keep_every=96"]
    assert run_command("run_train", *asked, "name=whole") == 0
    now, back = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() - back[0])
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    folder = tmp_path / "outputs" / "stopped" / "ntm" / "seed_0"

    def set_back(_: object, trainer: pl.Trainer, *__: object) -> None:
        if trainer.current_epoch == 1:
            back[0] = DAY

    monkeypatch.setattr(Faults, "on_train_epoch_start", set_back)
    monkeypatch.setattr(Faults, "on_train_epoch_end", _fails_after_two, raising=False)
    assert run_command("run_train", *asked, "name=stopped", faults(tmp_path)) == 1
    assert len(rows(folder)) == 2
    oldest = folder / "checkpoints" / "seq_96.ckpt"
    os.utime(oldest, (now() + DAY,) * 2)  # who went by the clock would take this one
    back[0] = 2 * DAY
    monkeypatch.delattr(Faults, "on_train_epoch_end")
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert run_command("run_train", *asked, "name=stopped", faults(tmp_path)) == 0
    whole = tmp_path / "outputs" / "whole" / "ntm" / "seed_0"
    assert untimed(folder) == untimed(whole)
    assert_same_tensors(
        checkpoint(folder, "last")["state_dict"], checkpoint(whole, "last")["state_dict"]
    )
    assert "going on after 192 sequences" in (folder / "train.log").read_text()
    seconds = [float(row["seconds"]) for row in rows(folder)]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] < DAY / 2
    assert seconds[-1] <= result(folder)["seconds"] < DAY / 2
    assert result(folder)["sequences_per_second"] > 0
    assert event_steps(folder, "val/loss") == [96, 192, 288, 384, 480]
    assert not list(folder.glob(".*"))


def _fails_after_two(_: object, trainer: pl.Trainer, *__: object) -> None:
    if trainer.current_epoch == 2:
        raise RuntimeError("no luck today")


@pytest.mark.parametrize("moment", ["on_train_batch_start", "on_test_start"])
def test_a_folder_that_is_removed_meanwhile_ends_the_run_and_stays_away(
    moment, run_command, tmp_path, monkeypatch, capfd
):
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"

    def removed(_: object, trainer: pl.Trainer, *__: object) -> None:
        if trainer.current_epoch > 1 and folder.exists():
            shutil.rmtree(folder)

    monkeypatch.setattr(Faults, moment, removed, raising=False)
    assert run_command("run_train", *SMALL, faults(tmp_path)) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "seed_0 was removed while this run was at it; the same command starts it again" in last
    assert not folder.exists()


def test_interrupting_says_where_it_goes_on_and_keeps_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", BESIDE)
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    asked = [*SMALL, faults(tmp_path)]
    hold(tmp_path, after=1)
    process = start(tmp_path, "run_train", *asked)
    wait_until_held(tmp_path, process)
    process.send_signal(signal.SIGINT)
    release(tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "last.ckpt" in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert result(folder)["status"] == "interrupted"
    came_to = result(folder)
    assert came_to["seconds"] >= float(rows(folder)[-1]["seconds"])
    # As if an hour had gone by between the last checkpoint and the interruption.
    (folder / "result.json").write_text(json.dumps(came_to | {"seconds": 3600.0}))
    status, _, err = finish(tmp_path, "run_train", *asked)
    assert status == 0, err
    assert 3601 < result(folder)["seconds"] < 4200
    assert result(folder)["status"] == "finished"
    assert [int(row["sequences"]) for row in rows(folder)] == [96, 192, 288, 384, 480]


def test_a_finished_run_of_before_is_recognised_and_evaluated(run_command, tmp_path, capfd):
    """As version 0 of the folder had it: other names in its configuration, its own table."""
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    as_then = ["curriculum=staged", "curriculum.upper=[3,5,null]", "task.mix=0.0"]
    as_then += ["model.network.controller.forget_bias=0.0", "model.penalty.free=0.0"]
    assert run_command("run_train", *SMALL, *as_then) == 0
    config = folder / "config.yaml"
    text = config.read_text()
    for now, before in (
        ("ntm.training.Curriculum", "ntm.curriculum.Curriculum"),
        ("  at:\n", "  lengths:\n"),
        ("  grow: null\n", ""),
        ("  give_up_after: 10\n", ""),
        ("  mix: 0.0\n", ""),
        ("      forget_bias: 0.0\n", ""),
        ("    free: 0.0\n", ""),
        ("  kinds:\n  - drawn\n", ""),
    ):
        assert text.count(now) == 1
        text = text.replace(now, before)
    config.write_text(text)
    table = folder / "eval" / "results.csv"
    with open(table, newline="") as file:
        given = list(csv.DictReader(file))
    kept = [c for c in given[0] if c not in ("kind", "bits_above_optimum")]
    lines = [",".join(kept), *(",".join(row[column] for column in kept) for row in given)]
    (folder / "eval" / "lengths.csv").write_text("\n".join(lines) + "\n")
    table.unlink()
    told = result(folder)
    for stage in told["stages"]:
        stage["range"] = stage.pop("ranges")["length"]
    del told["solved_when"], told["skipped_steps"]
    (folder / "result.json").write_text(json.dumps(told))

    assert run_command("run_train", *SMALL, *as_then, "evaluation.kinds=all") == 0
    assert "finished and left alone" in capfd.readouterr().err
    assert run_command("run_eval", f"run={folder}", "at=[4]", "sequences=2") == 0
    with open(table, newline="") as file:
        lengths = [row["length"] for row in csv.DictReader(file)]
    assert lengths == ["3", "4", "6"]
    assert run_command("run_compare", f"runs={folder.parent.parent}") == 0


def test_a_finished_run_is_left_alone_and_overwrite_starts_over(run_command, tmp_path, capfd):
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    assert run_command("run_train", *SMALL) == 0
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert run_command("run_train", *SMALL) == 0
    assert "finished and left alone" in capfd.readouterr().err
    assert written == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    before = checkpoint(folder, "last")
    (folder / "notes.txt").write_text("mine")
    assert run_command("run_train", *SMALL, "overwrite=true") == 0
    assert len(rows(folder)) == 5
    assert_same_tensors(before["state_dict"], checkpoint(folder, "last")["state_dict"])
    assert (folder / "notes.txt").read_text() == "mine"


def test_seeds_differ_and_seed_zero_repeats(run_command, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run_command("run_train", *SMALL, "sequences=96", f"seed={seed}", f"name={name}") == 0
    a, b, c = (
        untimed(tmp_path / "outputs" / name / "ntm" / f"seed_{seed}")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=lstm"],
        ["model=ntm_feedforward", "model.network.controller.num_layers=3"],
        ["optimizer=graves_rmsprop"],
        ["task.mixed_lengths=true", "num_workers=2"],
        ["trainer.precision=bf16-mixed"],
        ["trainer.precision=64-true"],
        ["trainer.precision=bf16-true"],
        ["trainer.precision=16-true"],
        ["trainer.accumulate_grad_batches=2"],
        ["logger=none"],
        ["model.network.initial_memory=learned", "model.network.initial_weighting=learned"],
        ["model.network.num_read_heads=2", "model.network.read_first=false"],
        ["trainer.callbacks=[{_target_:pytorch_lightning.callbacks.LearningRateMonitor}]"],
    ],
    ids=lambda overrides: " ".join(overrides)[:60],
)
def test_settings_train_to_a_finished_run(overrides, run_command, tmp_path):
    small = [o for o in SMALL if "lstm" not in overrides[0] or not o.startswith("model.network")]
    drawn = ["sequences=96", "callbacks.figures=true"]
    assert run_command("run_train", *small, *drawn, *overrides) == 0
    (path,) = tmp_path.glob("outputs/copy/*/seed_0")
    assert result(path)["status"] == "finished"
    assert (path / "figures" / "length_6.png").stat().st_size > 0
    # Nothing is learned in so few: a bit is paid for each of the 28 of a sequence.
    assert 20 < result(path)["bits_per_sequence"] < 32
    assert 8 < result(path)["wrong_bits_per_sequence"] < 20


@pytest.mark.parametrize(("usual", "said"), [(1440, False), (1443, True)], ids=str)
def test_a_budget_that_is_too_short_is_said_in_one_line(usual, said, run_command, tmp_path, capfd):
    assert run_command("run_train", *SMALL, f"model.sequences={usual}") == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "less than a third" in line]
    assert len(lines) == said
    if said:
        assert "sequences=480 " in lines[0]
        assert "(1443)" in lines[0]
        assert lines[0].endswith("sequences=481 or more, or more steps by batch_size=2")
    log = (tmp_path / "outputs" / "copy" / "ntm" / "seed_0" / "train.log").read_text()
    assert ("less than a third" in log) == said


@pytest.mark.parametrize("start", ["uniform", "learned"])
def test_a_start_that_is_often_not_learned_is_said_in_one_line(start, run_command, capfd):
    asked = ["model.network.initial_memory=random", f"model.network.initial_weighting={start}"]
    assert run_command("run_train", *SMALL, "sequences=96", *asked) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "often not learned" in line]
    assert len(lines) == (start == "uniform")


def test_smaller_batches_are_no_advice_where_there_are_such(run_command, capfd):
    tiny = ["sequences=8", "batch_size=2", "validate_every=8"]
    assert run_command("run_train", *SMALL, *tiny) == 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "less than a third" in line]
    assert line.endswith("or more")


def test_the_engine_is_loaded_before_training_is_timed(run_command, monkeypatch):
    loaded, begin = [], Record.on_train_epoch_start

    def begin_watched(*arguments) -> None:
        loaded.append(kernels.cache_info().misses)
        begin(*arguments)

    monkeypatch.setattr(Record, "on_train_epoch_start", begin_watched)
    kernels.cache_clear()
    assert run_command("run_train", *SMALL) == 0
    assert set(loaded) == {1}
    assert kernels.cache_info().misses == 1


def test_pictures_are_drawn_as_training_goes_on(run_command, tmp_path):
    assert run_command("run_train", *SMALL, "callbacks.pictures_every=192") == 0
    (path,) = tmp_path.glob("outputs/copy/*/seed_0")
    events = EventAccumulator(str(path), {"images": 0}).Reload()
    assert events.Tags()["images"] == ["answer/length_6", "inside/length_6"]
    for tag in ("answer/length_6", "inside/length_6"):
        shown = events.Images(tag)
        assert [image.step for image in shown] == [96, 288, 480]
        assert all(image.width > 100 and image.height > 100 for image in shown)


def test_fast_dev_run_leaves_no_folder(run_command, tmp_path):
    assert run_command("run_train", *SMALL, "trainer.fast_dev_run=true") == 0
    assert not (tmp_path / "outputs" / "copy").exists()


def test_kept_checkpoints_are_the_newest_and_load(run_command, tmp_path):
    overrides = ["callbacks.keep_every=96", "callbacks.keep_last=2"]
    assert run_command("run_train", *SMALL, *overrides) == 0
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    kept = sorted(path.stem for path in (folder / "checkpoints").glob("seq_*.ckpt"))
    assert kept == ["seq_384", "seq_480"]
    assert_same_tensors(
        checkpoint(folder, "seq_480")["state_dict"], checkpoint(folder, "last")["state_dict"]
    )


def test_stages_can_be_run_by_hand_one_after_another(run_command, tmp_path):
    first = [*SMALL, *STAGED, "sequences=96", "curriculum.stage=1", "name=first"]
    assert run_command("run_train", *first) == 0
    came_from = tmp_path / "outputs" / "first" / "ntm" / "seed_0"
    assert [stage["ranges"] for stage in result(came_from)["stages"]] == [{"length": [1, 2]}]
    second = [*SMALL, *STAGED, "sequences=96", "curriculum.stage=2", "name=second"]
    # A learning rate of next to nothing shows the weights that it began with.
    slow = ["optimizer.lr=1e-30", "optimizer.algorithm.weight_decay=0"]
    assert run_command("run_train", *second, *slow, f"init_from={came_from}") == 0
    folder = tmp_path / "outputs" / "second" / "ntm" / "seed_0"
    assert [stage["ranges"] for stage in result(folder)["stages"]] == [{"length": [1, 4]}]
    assert_same_tensors(weights(came_from, "best"), weights(folder, "last"))


def test_validation_metrics_belong_to_the_checkpoint_they_name(run_command, tmp_path):
    assert run_command("run_train", *SMALL) == 0
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    scores = [(float(r["val/wrong_bits_per_sequence"]), float(r["val/loss"])) for r in rows(folder)]
    best = checkpoint(folder, "best")
    assert best["epoch"] == max(i for i, score in enumerate(scores) if score == min(scores))
    for name in ("best", "last"):  # by its name, or by its path
        found = ntm.load(folder / "checkpoints" / f"{name}.ckpt").state_dict()
        assert_same_tensors(ntm.load(folder, name).state_dict(), found)
    with pytest.raises(ConfigurationError, match="'other'; it has best, last"):
        ntm.load(folder / "checkpoints" / "other.ckpt")
    from ntm.metrics import SequenceMetrics, count
    from ntm.tasks import Copy
    from ntm.tasks.sampling import VALIDATION, VALIDATION_SEQUENCES, fixed_set

    net, metrics = ntm.load(folder), SequenceMetrics()
    with torch.no_grad():
        for batch in fixed_set(Copy(max_length=6), VALIDATION, VALIDATION_SEQUENCES):
            metrics.update(*count(net(batch.inputs)[0], batch))
    again = metrics.compute()
    assert float(again["loss"]) == pytest.approx(min(scores)[1], rel=1e-6)
    assert float(again["wrong_bits_per_sequence"]) == pytest.approx(min(scores)[0], rel=1e-6)


def test_evaluating_merges_rows_and_draws(run_command, tmp_path, capsys):
    assert run_command("run_train", *SMALL, "sequences=96") == 0
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    run = f"run={folder}"
    assert not list((folder / "figures").iterdir())  # callbacks.figures=false
    # What trained may not run where it is evaluated.
    text = (folder / "config.yaml").read_text().replace("engine: fused", "engine: compiled")
    assert "engine: compiled" in text
    (folder / "config.yaml").write_text(text)
    assert ntm.load(folder).engine == "auto"
    assert run_command("run_eval", run, "lengths=[3,9]", "memory_size=40", "sequences=3") == 0
    assert run_command("run_eval", run, "lengths=[3]", "checkpoint=last", "sequences=2") == 0
    assert run_command("run_eval", run, "lengths=[3]", "sequences=2") == 0
    table = list(csv.DictReader((folder / "eval" / "results.csv").open()))
    assert [
        (row["length"], row["memory_size"], row["checkpoint"], row["sequences"]) for row in table
    ] == [
        ("3", "16", "best", "2"),
        ("6", "16", "best", "4"),
        ("3", "40", "best", "3"),
        ("9", "40", "best", "3"),
        ("3", "16", "last", "2"),
    ]
    assert "wrong bits" in capsys.readouterr().out
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {"length_9_memory_40.png", "length_3_last.png", "inside_length_3_memory_40.png"} <= names


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_a_run_is_evaluated_in_the_precision_that_it_was_trained_in(
    precision, run_command, tmp_path
):
    """Its own evaluation, which had the network as training left it, is found again to the bit."""
    small = [*SMALL, "sequences=96", f"trainer.precision={precision}"]
    assert run_command("run_train", *small) == 0
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    found = (folder / "eval" / "results.csv").read_text()
    expected = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision, torch.float32)
    assert {weight.dtype for weight in ntm.load(folder).parameters()} == {expected}
    assert run_command("run_eval", f"run={folder}", "sequences=4", "kinds=[drawn]") == 0
    assert (folder / "eval" / "results.csv").read_text() == found
    # A run that starts from it in its precision has its weights, not rounded ones.
    slow = ["optimizer.lr=1e-300", "optimizer.algorithm.weight_decay=0", "name=from_it"]
    assert run_command("run_train", *small, *slow, f"init_from={folder}") == 0
    later = tmp_path / "outputs" / "from_it" / "ntm" / "seed_0"
    assert_same_tensors(weights(folder, "best"), weights(later, "last"))


def test_evaluating_kinds_of_sequence(run_command, tmp_path, capsys):
    assert run_command("run_train", *SMALL, "sequences=96") == 0
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    run = f"run={folder}"
    figures = {path.name for path in (folder / "figures").iterdir()}
    capsys.readouterr()
    assert run_command("run_eval", run, "at=[3]", "kinds=[zeros]", "sequences=2") == 0
    assert "zeros" in capsys.readouterr().out
    drawn = {path.name for path in (folder / "figures").iterdir()} - figures
    assert drawn == {"length_3_zeros.png", "inside_length_3_zeros.png"}
    assert run_command("run_eval", run, "at=[3,5]", "kinds=all", "sequences=3") == 0
    table = list(csv.DictReader((folder / "eval" / "results.csv").open()))
    found = {(row["kind"], row["length"]): row["sequences"] for row in table}
    assert len(found) == len(table)
    kinds = [row["kind"] for row in table]
    assert kinds[:3] == ["drawn"] * 3  # what the paper has comes first
    assert kinds[3:] == sorted(kinds[3:])
    assert found.pop(("drawn", "6")) == "4"
    assert set(found) == {(k, n) for k in ntm.tasks.Copy.kinds for n in ("3", "5")}
    assert set(found.values()) == {"3"}
    assert (folder / "figures" / "kinds.png").stat().st_size > 0
    assert "silent_pair" in capsys.readouterr().out


def test_a_sweep_trains_every_job(run_command, tmp_path):
    assert run_command("run_train", "-m", *SMALL, "sequences=96", "seed=range(2)") == 0
    for seed in range(2):
        folder = tmp_path / "outputs" / "copy" / "ntm" / f"seed_{seed}"
        assert result(folder)["status"] == "finished"
        assert result(folder)["seed"] == seed


@pytest.mark.parametrize("model", ["ntm", "lstm"])
def test_hyperparameters_and_final_metrics_are_for_the_hparams_tab(model, run_command, tmp_path):
    small = [o for o in SMALL if model == "ntm" or not o.startswith("model.network")]
    assert run_command("run_train", *small, "sequences=96", f"model={model}") == 0
    (folder,) = tmp_path.glob("outputs/copy/*/seed_0")
    assert event_steps(folder, "_hparams_/session_start_info") == [96]
    assert event_steps(folder, "test/wrong_bits_per_sequence") == [96]
