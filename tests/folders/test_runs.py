"""The run folder: written whole or not at all, and nothing in it twice."""

import csv
import errno
import fcntl
import io
import json
import os
import re
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from omegaconf import OmegaConf

from ntm.commands.configuration import ConfigurationError
from ntm.folders import runs
from ntm.folders.locks import Lock
from ntm.folders.runs import (
    RunFolder,
    append_row,
    in_words,
    kept_at,
    load_checkpoint,
    reached,
    read_rows,
    write_rows,
    write_whole,
    writing,
)
from ntm.tasks import kinds

CONFIG = OmegaConf.create({"seed": 0, "name": "copy", "task": {"bits": 8}, "label": "${name}!"})


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def begun(folder):
    folder.begin(CONFIG, resume=False)
    return folder


def names(path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


class TestWriting:
    def test_writes_all_and_makes_the_folder(self, tmp_path):
        write_whole(tmp_path / "a" / "b.txt", b"hello")
        assert (tmp_path / "a" / "b.txt").read_bytes() == b"hello"
        assert names(tmp_path) == {"a/b.txt"}

    @pytest.mark.parametrize("old", [None, b"old"], ids=["new", "existing"])
    def test_never_leaves_a_part(self, tmp_path, old):
        path = tmp_path / "file.bin"
        if old is not None:
            path.write_bytes(old)

        def write():
            with writing(path) as part:
                part.write_bytes(b"half of wh")
                # A reader that comes now sees what was there before.
                assert (path.read_bytes() if path.exists() else None) == old
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write()
        assert names(tmp_path) == (set() if old is None else {"file.bin"})
        assert old is None or path.read_bytes() == old

    def test_is_on_disk_before_it_has_its_name(self, tmp_path, monkeypatch):
        order = []
        sync, replace = runs.os.fsync, runs.os.replace
        monkeypatch.setattr(runs.os, "fsync", lambda f: (order.append("sync"), sync(f)))
        monkeypatch.setattr(runs.os, "replace", lambda *a: (order.append("name"), replace(*a)))
        write_whole(tmp_path / "x", b"1")
        assert order[:2] == ["sync", "name"]

    def test_part_lies_beside_its_target(self, tmp_path):
        """A rename is only whole within one file system."""
        with writing(tmp_path / "x.ckpt") as part:
            assert part.parent == tmp_path
            part.write_bytes(b"")


class TestRows:
    ROWS = (
        {"sequences": 1, "loss": 0.5, "note": "a,b"},
        {"sequences": 2, "loss": 0.25, "note": ""},
    )

    def test_appended_one_by_one(self, tmp_path):
        path = tmp_path / "metrics.csv"
        for row in self.ROWS:
            append_row(path, row)
        with open(path, newline="") as file:
            assert list(csv.reader(file)) == [
                ["sequences", "loss", "note"],
                ["1", "0.5", "a,b"],
                ["2", "0.25", ""],
            ]
        assert read_rows(path) == [{k: str(v) for k, v in row.items()} for row in self.ROWS]
        one_by_one = path.read_bytes()
        assert b"\r" not in one_by_one  # ends of lines as on any system
        write_rows(path, list(self.ROWS))
        assert path.read_bytes() == one_by_one

    @pytest.mark.parametrize("cut", [1, 2, 5])
    def test_a_last_line_cut_short_is_left_out(self, tmp_path, cut):
        path = tmp_path / "metrics.csv"
        for row in ({"sequences": 1, "loss": 0.5}, {"sequences": 20, "loss": 0.125}):
            append_row(path, row)
        path.write_bytes(path.read_bytes()[:-cut])
        assert read_rows(path) == [{"sequences": "1", "loss": "0.5"}]

    @pytest.mark.parametrize("text", ["", "sequ", "sequences,loss\n"], ids=["empty", "cut", "bare"])
    def test_no_row_yet(self, tmp_path, text):
        path = tmp_path / "metrics.csv"
        path.write_text(text)
        assert read_rows(path) == []

    def test_written_whole(self, tmp_path):
        path = tmp_path / "eval" / "lengths.csv"
        write_rows(path, list(self.ROWS))
        assert [row["note"] for row in read_rows(path)] == ["a,b", ""]
        write_rows(path, [], header=("a", "b"))
        assert path.read_text() == "a,b\n"

    def test_a_header_comes_again_after_all_rows_went(self, tmp_path):
        path = tmp_path / "metrics.csv"
        write_rows(path, [])
        append_row(path, {"sequences": 3})
        assert path.read_text() == "sequences\n3\n"

    def test_a_row_with_other_columns_keeps_those_that_were(self, tmp_path):
        path = tmp_path / "metrics.csv"
        append_row(path, {"sequences": 1, "loss": 0.5, "old": 7})
        append_row(path, {"sequences": 2, "loss": 0.25, "new": 9})
        append_row(path, {"sequences": 3, "loss": 0.125, "new": 8})
        assert read_rows(path) == [
            {"sequences": "1", "loss": "0.5", "new": "", "old": "7"},
            {"sequences": "2", "loss": "0.25", "new": "9", "old": ""},
            {"sequences": "3", "loss": "0.125", "new": "8", "old": ""},
        ]

    def test_numbers_keep_every_digit(self, tmp_path):
        path = tmp_path / "metrics.csv"
        append_row(path, {"loss": 0.1 + 0.2})
        assert float(read_rows(path)[0]["loss"]) == 0.1 + 0.2


FINAL = ("test/loss", "evaluation/wrong_bits", "_hparams_/session_start_info")


def write_events(folder: RunFolder, steps, tags=("val/loss",), final=None) -> None:
    """A file such as training writes: scalars and pictures, the results of the end last."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.path)) as writer:
        for step in steps:
            for tag in tags:
                writer.add_scalar(tag, step / 7, step)
        if final is not None:
            for tag in FINAL:
                writer.add_scalar(tag, 0.0, final)


def events(folder: RunFolder) -> list[tuple[str, int, float]]:
    """Everything with a tag in the folder, in the order of the files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    found = []
    for path in folder.events():
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                number = float(tensor_util.make_ndarray(value.tensor).ravel()[0])
                found.append((value.tag, event.step, number))
    return found


def last_record(content: bytes) -> int:
    """Where the last record of an event file begins; its framing read by hand."""
    start = at = 0
    while at < len(content):
        start = at
        (length,) = struct.unpack_from("<Q", content, at)
        at += 8 + 4 + length + 4
    assert at == len(content)
    return start


class TestForgetAfter:
    STEPS = (100, 200, 300, 400)

    def fill(self, folder):
        for step in self.STEPS:
            append_row(folder.metrics, {"sequences": step, "loss": step / 7})
            (folder.checkpoints / f"seq_{step}.ckpt").write_bytes(b"x")
        folder.last.write_bytes(b"last")
        folder.best.write_bytes(b"best")

    @pytest.mark.parametrize("after", [0, 99, 100, 250, 399, 400, 1000])
    def test_drops_later_records_and_no_others(self, begun, after):
        self.fill(begun)
        write_events(begun, self.STEPS)
        before = events(begun)
        begun.forget_after(after)
        kept = [step for step in self.STEPS if step <= after]
        assert [int(row["sequences"]) for row in read_rows(begun.metrics)] == kept
        assert [float(row["loss"]) for row in read_rows(begun.metrics)] == [s / 7 for s in kept]
        assert events(begun) == [event for event in before if event[1] <= after]
        assert [step for _, step, _ in events(begun)] == kept
        assert {p.name for p in begun.checkpoints.iterdir()} == {
            "last.ckpt",
            "best.ckpt",
            *(f"seq_{step}.ckpt" for step in kept),
        }

    def test_of_a_later_row_that_was_cut_short(self, begun):
        self.fill(begun)
        begun.metrics.write_bytes(begun.metrics.read_bytes()[:-4])
        begun.forget_after(400)
        append_row(begun.metrics, {"sequences": 400, "loss": 1.0})
        assert [int(row["sequences"]) for row in read_rows(begun.metrics)] == [100, 200, 300, 400]

    def test_lengths_of_numbers_do_not_matter(self, begun):
        """As numbers, 1000 comes after 200; as text it does not."""
        for step in (200, 1000):
            append_row(begun.metrics, {"sequences": step})
        begun.forget_after(200)
        assert [row["sequences"] for row in read_rows(begun.metrics)] == ["200"]

    @pytest.mark.parametrize("cut", [1, 4, 20, "length", "header"])
    def test_the_last_record_is_cut_short(self, begun, cut):
        write_events(begun, self.STEPS)
        (path,) = begun.events()
        content = path.read_bytes()
        end = {"length": last_record(content) + 5, "header": last_record(content) + 10}
        path.write_bytes(content[: end[cut]] if cut in end else content[:-cut])
        begun.forget_after(300)
        assert [step for _, step, _ in events(begun)] == [100, 200, 300]
        # What is left is whole: what is written next is found.
        (path,) = begun.events()
        content = path.read_bytes()
        last_record(content)

    @pytest.mark.parametrize("size", [0, 5], ids=["empty", "no record"])
    def test_a_file_that_has_nothing_yet(self, begun, size):
        path = begun.path / "events.out.tfevents.1.host.1.0"
        path.write_bytes(b"\0" * size)
        begun.forget_after(100)
        assert events(begun) == []

    def test_final_results_come_again(self, begun):
        write_events(begun, self.STEPS, final=200)
        assert {(tag, 200, 0.0) for tag in FINAL} <= {*events(begun)}
        begun.forget_after(400)
        assert [(tag, step) for tag, step, _ in events(begun)] == [
            ("val/loss", step) for step in self.STEPS
        ]

    def test_all_files_and_all_tags(self, begun):
        tags = ("train/loss", "val/loss", "val/accuracy")
        write_events(begun, (100, 200), tags)
        (first,) = begun.events()
        first.rename(first.with_name("events.out.tfevents.1.host.1.0"))
        write_events(begun, (300, 400), tags)
        assert len(begun.events()) == 2
        begun.forget_after(300)
        assert [(tag, step) for tag, step, _ in events(begun)] == [
            (tag, step) for step in (100, 200, 300) for tag in tags
        ]

    def test_files_keep_their_order_where_the_clock_was_set_back_between_them(self, begun):
        for stamp, step in ((3000000000, 100), (2000000000, 200), (1000000000, 300)):
            write_events(begun, (step,))
            (new,) = (path for path in begun.events() if path.suffix != ".earlier")
            new.rename(begun.path / f"events.out.tfevents.{stamp}.host.1.0")
            begun.forget_after(1000)
        assert [step for _, step, _ in events(begun)] == [100, 200, 300]

    def test_nothing_there(self, begun):
        begun.forget_after(100)
        assert names(begun.path) == {"config.yaml"}


class TestRefuse:
    def test_a_place_that_is_free(self, folder):
        folder.refuse_if_other(CONFIG)
        folder.path.mkdir()
        folder.refuse_if_other(CONFIG)
        (folder.path / "config.yaml.part").touch()  # all that a killed run had begun
        folder.refuse_if_other(CONFIG)

    def test_the_same_configuration(self, begun):
        begun.refuse_if_other(CONFIG)
        changed = CONFIG.copy()
        changed.name = "other"
        del changed["label"]  # follows the name
        changed.label = "copy!"
        begun.refuse_if_other(changed)

    def test_another_configuration(self, begun):
        changed = CONFIG.copy()
        changed.seed, changed.task = 1, {"bits": 4}
        with pytest.raises(ConfigurationError) as caught:
            begun.refuse_if_other(changed)
        assert str(caught.value) == (
            f"{begun.path} holds a run with another configuration; differing: seed, task.bits. "
            f"Set name=… to train beside it, init_from={begun.path} to start from its weights, "
            "or overwrite=true to start over"
        )

    def test_a_foreign_folder(self, folder):
        folder.path.mkdir()
        (folder.path / "thesis.txt").write_text("mine")
        with pytest.raises(ConfigurationError) as caught:
            folder.refuse_if_other(CONFIG)
        assert str(caught.value) == (
            f"folder must be free or of a run, got '{folder.path}', which holds other files; "
            "set name=… to use another"
        )
        assert names(folder.path) == {"thesis.txt"}

    def test_a_file_in_its_place(self, folder):
        folder.path.write_text("mine")
        said = re.escape(f"folder must be a folder, got the file {folder.path}")
        with pytest.raises(ConfigurationError, match=f"^{said}$"):
            folder.refuse_if_other(CONFIG)

    def test_nothing_is_written(self, folder):
        folder.refuse_if_other(CONFIG)
        assert not folder.path.exists()


class TestBegin:
    def test_writes_the_resolved_configuration(self, begun):
        assert begun.read_config() == {**CONFIG, "label": "copy!"}
        assert "${" not in begun.config.read_text()
        assert all(p.is_dir() for p in (begun.checkpoints, begun.evaluations.parent, begun.figures))

    def fill(self, folder):
        append_row(folder.metrics, {"sequences": 1})
        append_row(folder.evaluations, {"length": 1})
        write_whole(folder.last, b"x")
        write_whole(folder.figures / "length_1.png", b"x")
        write_events(folder, (1,))
        folder.log.write_text("said")
        folder.write_result(status=runs.FAILED)
        (folder.path / "notes.txt").write_text("mine")
        (folder.path / "mine").mkdir()
        (folder.path / "mine" / "plot.png").write_bytes(b"mine")

    def test_anew_clears_what_runs_write_and_nothing_else(self, begun):
        self.fill(begun)
        changed = CONFIG.copy()
        changed.seed = 5
        begun.begin(changed, resume=False)
        assert names(begun.path) == {"config.yaml", "notes.txt", "mine/plot.png"}
        assert begun.read_config().seed == 5
        assert begun.read_result() == {}

    def test_anew_where_an_earlier_run_had_just_begun(self, folder):
        folder.path.mkdir()
        folder.config.write_text("seed: 1\n")
        folder.begin(CONFIG, resume=False)
        assert folder.read_config().seed == 0

    def test_a_step_that_went_wrong_is_forgotten(self, begun):
        begun.diverged.touch()
        begun.begin(CONFIG, resume=True)
        assert not begun.diverged.exists()

    def test_resumed_keeps_all(self, begun):
        self.fill(begun)
        before = names(begun.path)
        begun.begin(CONFIG, resume=True)
        assert names(begun.path) == before
        assert begun.read_result()["status"] == "failed"

    @pytest.mark.parametrize("again", [False, True], ids=["first time", "over an earlier run"])
    def test_killed_while_it_begins_the_same_command_begins_again(self, folder, again, monkeypatch):
        if again:
            folder.begin(CONFIG, resume=False)
            self.fill(folder)
            (folder.path / "notes.txt").unlink()
            (folder.path / "mine" / "plot.png").unlink()
            (folder.path / "mine").rmdir()

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(runs, "write_whole", killed)
            with pytest.raises(KeyboardInterrupt):
                folder.begin(CONFIG, resume=False)
        folder.refuse_if_other(CONFIG)

    def test_a_folder_begun_by_nobody_keeps_its_files(self, folder):
        """Without a configuration, nothing in it was written by a run."""
        folder.path.mkdir()
        folder.log.write_text("mine")
        folder.begin(CONFIG, resume=False)
        assert folder.log.read_text() == "mine"


class TestResult:
    def test_entries_change_one_by_one(self, begun):
        assert begun.read_result() == {}
        begun.write_result(status="running", seed=0)
        begun.write_result(status="finished", reason=None)
        assert json.loads(begun.result.read_text()) == {
            "status": "finished",
            "seed": 0,
            "reason": None,
        }

    def test_of_several_failures_at_once_one_reason_stands(self, begun):
        together = threading.Barrier(8)

        def fail(number: int) -> str:
            together.wait()
            return begun.write_failure(f"reason {number}")

        with ThreadPoolExecutor(8) as pool:
            for _ in range(20):
                begun.write_result(status="running", reason=None)
                (stands,) = set(pool.map(fail, range(8)))
                assert begun.read_result() == {"status": "failed", "reason": stands}

    def test_where_nothing_can_be_held_a_failure_is_written_all_the_same(self, begun, monkeypatch):
        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        begun.write_result(status="running")
        assert begun.write_failure("first") == "first"
        assert begun.write_failure("second", seconds=2.0) == "first"
        assert begun.read_result() == {"status": "failed", "reason": "first", "seconds": 2.0}

    def test_people_can_read_it(self, begun):
        begun.write_result(status="running", seed=0)
        assert begun.result.read_text() == '{\n  "status": "running",\n  "seed": 0\n}\n'

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("[1, 2]", "it holds no names and values"),
            ("{}", "it holds no names and values"),
            ('{"a" 1}', "(Expecting ':' delimiter: line 1 column 6 (char 5))"),
        ],
    )
    def test_what_is_no_result_is_named(self, begun, text, why):
        begun.result.write_text(text)
        with pytest.raises(ConfigurationError) as caught:
            begun.read_result()
        told = f" {why};" if why.startswith("(") else f", {why};"
        assert str(caught.value) == (
            f"{begun.result} is damaged{told} overwrite=true starts the run over"
        )

    @pytest.mark.parametrize(
        ("metric", "said"),
        [("wrong_bits_per_sequence", "wrong bits"), ("bits_above_optimum", "bits above optimum")],
    )
    def test_what_a_run_reached_is_said_in_words(self, metric, said):
        assert in_words(metric) == said
        goal = {"metric": metric, "below": 1.0}
        assert reached({"loss": 0.5, metric: 0.25, "solved_when": goal}) == (said, 0.25)

    def test_a_run_of_before_was_to_have_few_wrong_bits(self):
        assert reached({"loss": 0.5, "wrong_bits_per_sequence": 3.0}) == ("wrong bits", 3.0)


class TestConfiguration:
    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("home: ${oc.env:HOME}\n", "it holds an interpolation, ${…}, which no run writes"),
            ("a: &x [1]\nb: *x\n", "it holds references, *…, which no run writes"),
            (runs.BEGINNING + "seed: 1\n", "it was cut short"),
        ],
    )
    def test_what_no_run_writes_is_refused(self, begun, text, why):
        begun.config.write_text(text)
        for read in (begun.read_config, begun._read_values):
            with pytest.raises(ConfigurationError) as caught:
                read()
            told = f"{begun.config} is damaged ({why}); overwrite=true starts the run over"
            assert str(caught.value) == told

    def test_a_star_alone_is_no_reference(self, begun):
        begun.config.write_text("area: 2 * 3\n")
        assert begun.read_config() == begun._read_values() == {"area": "2 * 3"}


class TestEvaluations:
    def test_none(self, begun):
        assert begun.read_evaluations() == []

    def test_by_number_and_kind(self, begun):
        row = {"length": "7", "kind": "ones", "wrong_bits_per_sequence": "0.5"}
        append_row(begun.evaluations, row)
        assert begun.read_evaluations() == [row]

    def test_those_of_before_are_of_sequences_as_drawn(self, begun):
        before = begun.evaluations.parent / "lengths.csv"
        for length in ("7", "8"):
            append_row(before, {"length": length, "wrong": "0.5", "seconds": "1"})
        rows = begun.read_evaluations()
        assert [list(row.items()) for row in rows] == [
            [("length", length), ("kind", "drawn"), ("wrong", "0.5"), ("seconds", "1")]
            for length in ("7", "8")
        ]
        append_row(begun.evaluations, {"length": "9", "kind": "ones"})
        assert begun.read_evaluations() == [{"length": "9", "kind": "ones"}]


class TestCheckpoints:
    def test_by_name(self, begun):
        begun.best.write_bytes(b"")
        assert begun.checkpoint("best") == begun.best

    def test_none_yet(self, begun):
        said = f"checkpoint must exist in {begun.path}, got 'best'; it has none yet"
        with pytest.raises(ConfigurationError, match=f"^{re.escape(said)}$"):
            begun.checkpoint("best")

    def test_another_one_is_named(self, begun):
        begun.last.write_bytes(b"")
        (begun.checkpoints / "seq_10.ckpt").write_bytes(b"")
        with pytest.raises(ConfigurationError, match=r"'best'; it has last, seq_10$"):
            begun.checkpoint("best")

    def test_names_tell_the_sequences(self, begun):
        assert kept_at(begun.checkpoints / "seq_12000.ckpt") == 12000

    def test_kept_ones_come_in_the_order_of_training(self, begun):
        for name in ("seq_1000.ckpt", "seq_200.ckpt", "last.ckpt", "seq_30.ckpt"):
            (begun.checkpoints / name).touch()
        assert [path.name for path in begun.kept()] == [f"seq_{n}.ckpt" for n in (30, 200, 1000)]

    def test_loads_plain_contents(self, begun):
        content = {"state_dict": {"network.w": torch.ones(2)}, "epoch": 3}
        torch.save(content, begun.last)
        loaded = load_checkpoint(begun.last)
        assert loaded["epoch"] == 3
        assert torch.equal(loaded["state_dict"]["network.w"], torch.ones(2))

    @pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "missing"])
    def test_damage_is_said_in_one_line(self, begun, damage):
        file = io.BytesIO()
        torch.save({"state_dict": {"w": torch.ones(1000)}}, file)
        content = {
            "garbage": b"this is no checkpoint\n" * 9,
            "empty": b"",
            "cut": file.getvalue()[:-300],
        }
        if damage != "missing":
            begun.last.write_bytes(content[damage])
        with pytest.raises(ConfigurationError) as caught:
            load_checkpoint(begun.last)
        reason = str(caught.value).removeprefix(f"checkpoint {begun.last} is damaged: ")
        assert len(reason.split()) > 2 or damage == "empty"
        assert "\n" not in reason

    def test_a_changed_part_is_named(self, begun):
        torch.save({"state_dict": {"w": torch.full((1000,), 0.1)}}, begun.last)
        content = begun.last.read_bytes()
        number = torch.tensor(0.1).numpy().tobytes()
        begun.last.write_bytes(content.replace(number, bytes(4), 1))
        with pytest.raises(
            ConfigurationError, match=r"its part \S+/data/0 is not what was written$"
        ):
            load_checkpoint(begun.last)

    @pytest.mark.parametrize("content", [{"weights": 1}, [1, 2]], ids=str)
    def test_a_file_of_something_else(self, begun, content):
        torch.save(content, begun.last)
        said = re.escape(f"checkpoint {begun.last} is not one of a run")
        with pytest.raises(ConfigurationError, match=f"^{said}$"):
            load_checkpoint(begun.last)

    def test_code_in_a_checkpoint_is_not_run(self, begun, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "evil"), "w"))

        torch.save({"state_dict": Evil()}, begun.last)
        said = re.escape(f"checkpoint {begun.last} is damaged: ")
        with pytest.raises(ConfigurationError, match=rf"^{said}[^.]+$"):  # one sentence of torch's
            load_checkpoint(begun.last)
        assert not (tmp_path / "evil").exists()


class TestLocks:
    def test_are_no_foreign_files(self, folder):
        with Lock(folder.path):
            (folder.path / ".lock.0123abcd.part").touch()  # of one that was killed meanwhile
            folder.refuse_if_other(CONFIG)
            (folder.path / "thesis.txt").touch()
            with pytest.raises(ConfigurationError, match="holds other files"):
                folder.refuse_if_other(CONFIG)

    def test_outlive_starting_over(self, folder):
        with Lock(folder.path) as lock:
            folder.begin(CONFIG, resume=False)
            folder.begin(CONFIG, resume=False)
            assert lock.holds()


class TestStanding:
    CONFIG = OmegaConf.create({"seed": 0, "overwrite": False})

    def test_of_a_free_folder(self, folder):
        assert folder.standing(self.CONFIG) == runs.START
        assert not folder.path.exists()

    def test_follows_the_run(self, folder):
        folder.begin(self.CONFIG, resume=False)
        assert folder.standing(self.CONFIG) == runs.START
        folder.last.touch()
        for status in (runs.RUNNING, runs.FAILED, runs.INTERRUPTED):
            folder.write_result(status=status)
            assert folder.standing(self.CONFIG) == runs.RESUME
        folder.write_result(status=runs.FINISHED)
        assert folder.standing(self.CONFIG) == runs.SKIP
        again = OmegaConf.merge(self.CONFIG, {"overwrite": True})
        assert folder.standing(again) == runs.OVER

    @pytest.mark.parametrize("name", ["last", "best", "seq_200"])
    def test_any_checkpoint_is_one_to_go_on_from(self, folder, name):
        folder.begin(self.CONFIG, resume=False)
        (folder.checkpoints / f"{name}.ckpt").touch()
        assert folder.standing(self.CONFIG) == runs.RESUME

    def test_refuses_another_configuration(self, folder):
        folder.begin(self.CONFIG, resume=False)
        with pytest.raises(ConfigurationError, match="differing: seed"):
            folder.standing(OmegaConf.merge(self.CONFIG, {"seed": 1}))

    def test_reads_every_kind_of_value_as_it_was_written(self, folder):
        values = [1, 1.0, 1e-5, 1e30, -3.0e-8, float("inf"), True, None, "", "a: b"]
        texts = [
            "1",
            "1.0",
            "1e-5",
            "true",
            "no",
            "off",
            "null",
            "~",
            "1_000",
            "0x10",
            "a\nb",
            "ü ",
        ]
        config = OmegaConf.create({"overwrite": False, "values": values, "texts": texts})
        folder.begin(config, resume=False)
        assert folder.standing(config) == runs.START


class TestExisting:
    def test_a_run(self, begun):
        assert RunFolder.existing(begun.path, "run").path == begun.path

    def test_no_folder(self, folder):
        gone = f"^init_from must be a run folder, got '{folder.path}', which does not exist$"
        with pytest.raises(ConfigurationError, match=gone):
            RunFolder.existing(folder.path, "init_from")

    def test_a_folder_that_is_no_run(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"^run must be .*has no config\.yaml$"):
            RunFolder.existing(tmp_path, "run")

    def test_naming_one_touches_nothing(self, folder):
        assert folder.last.name == "last.ckpt"
        assert not folder.path.exists()


class TestWritable:
    def test_what_can_be_written_to_is_let_be(self, tmp_path):
        runs.check_writable(tmp_path)
        runs.check_writable(tmp_path / "a" / "b")
        assert names(tmp_path) == set()

    def test_below_a_file_there_is_no_folder(self, tmp_path):
        (tmp_path / "file").touch()
        folder = tmp_path / "file" / "run"
        with pytest.raises(ConfigurationError) as caught:
            runs.check_writable(folder)
        assert str(caught.value) == (
            f"the results would go into {folder}, which cannot be written to "
            f"({tmp_path / 'file'} is no folder); folder=… puts them elsewhere"
        )

    @pytest.mark.parametrize("right", [os.W_OK, os.X_OK], ids=["write", "enter"])
    def test_a_folder_of_somebody_else(self, tmp_path, right, monkeypatch):
        """Asked of the system in its own words: to root nothing is read-only."""
        monkeypatch.setattr(os, "access", lambda _, rights: not rights & right)
        with pytest.raises(ConfigurationError) as caught:
            runs.check_writable(tmp_path / "run")
        assert f"({tmp_path} is read-only to this user)" in str(caught.value)


def test_where_each_file_is(tmp_path):
    run = RunFolder(tmp_path)
    places = {name: str(place.relative_to(tmp_path)) for name, place in vars(run).items()}
    assert places == {
        "path": ".",
        "config": "config.yaml",
        "metrics": "metrics.csv",
        "checkpoints": "checkpoints",
        "last": "checkpoints/last.ckpt",
        "best": "checkpoints/best.ckpt",
        "diverged": "checkpoints/diverged.ckpt",
        "evaluations": "eval/results.csv",
        "figures": "figures",
        "log": "train.log",
        "result": "result.json",
    }


def test_what_is_drawn_has_one_name():
    assert runs.DRAWN == kinds.DRAWN
