"""Lightning's loggers beside the project's own: each gets every validation and what it came to."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytorch_lightning as pl
import yaml
from faults import faults
from pytorch_lightning.loggers import Logger
from runners import BESIDE, ROOT, SMALL
from written import event_steps, result, rows

TOLD: list[tuple[str, dict, int | None]] = []


class Bare(Logger):
    """As somebody writes one: the two methods that Lightning asks for, and nothing more."""

    name = "bare"
    version = 0

    def log_metrics(self, metrics, step=None):
        TOLD.append(("metrics", dict(metrics), step))

    def log_hyperparams(self, params):
        TOLD.append(("parameters", dict(params), None))


class Unreachable(Bare):
    def __init__(self):
        raise OSError("no server answers")


def with_logger(target: str, **arguments: str) -> list[str]:
    given = [f"+logger.own.{name}={value}" for name, value in arguments.items()]
    return [*SMALL, f"+logger.own._target_={target}", *given]


def test_csv(run_command, tmp_path):
    target = "pytorch_lightning.loggers.CSVLogger"
    assert run_command("run_train", *with_logger(target, save_dir="beside", name="a")) == 0
    (table,) = Path(tmp_path / "beside").rglob("metrics.csv")
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    named = {int(row["step"]): row for row in rows}
    assert {96, 192, 288, 384, 480} <= named.keys()
    assert float(named[96]["val/wrong_bits_per_sequence"]) > 0
    assert any(row.get("test/wrong_bits_per_sequence") for row in rows)
    assert (tmp_path / "outputs" / "copy" / "ntm" / "seed_0" / "metrics.csv").is_file()
    assert list((tmp_path / "outputs").rglob("events.out.tfevents.*"))


def test_a_second_tensorboard(run_command, tmp_path):
    target = "pytorch_lightning.loggers.TensorBoardLogger"
    assert run_command("run_train", *with_logger(target, save_dir="beside")) == 0
    assert list((tmp_path / "beside").rglob("events.out.tfevents.*"))


def test_one_of_ones_own(run_command):
    TOLD.clear()
    assert run_command("run_train", *with_logger("test_loggers.Bare")) == 0
    steps = [step for kind, told, step in TOLD if "val/loss" in told]
    assert steps == [96, 192, 288, 384, 480]
    (parameters,) = [told for kind, told, _ in TOLD if kind == "parameters"]
    assert parameters["model.network.memory_size"] == 16
    assert any("test/wrong_bits_per_sequence" in told for _, told, _ in TOLD)


@pytest.mark.loggers
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases(run_command, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    target = "pytorch_lightning.loggers.WandbLogger"
    assert run_command("run_train", *with_logger(target, save_dir="beside", project="p")) == 0
    assert list((tmp_path / "beside").rglob("*.wandb"))


@pytest.mark.loggers
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow(run_command, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs more than its client
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # afterwards as before: MLflow sets it
    target = "pytorch_lightning.loggers.MLFlowLogger"
    place = f"'file:{tmp_path}/beside'"
    assert run_command("run_train", *with_logger(target, tracking_uri=place)) == 0
    assert list((tmp_path / "beside").rglob("wrong_bits_per_sequence"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (with_logger("torch.nn.Identity"), "logger.own must be one of Lightning's loggers"),
        (with_logger("test_loggers.Unreachable"), "logger.own cannot be built: OSError: no server"),
        (
            with_logger(
                "pytorch_lightning.loggers.CSVLogger",
                save_dir="outputs/copy/ntm/seed_0", name="''", version="''",
            ),
            "logger.own must write elsewhere",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(asked, message, run_command, tmp_path, capfd):
    assert run_command("run_train", *asked) == 2
    err = capfd.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


# --- Services: Weights & Biases and MLflow


class Told(NamedTuple):
    """What a service has, read by its own reader and brought to one form."""

    parameters: dict[str, str]
    values: dict[str, list[tuple[int, float]]]
    """(sequences, value) of every metric, in the order in which it came."""
    pictures: list[tuple[str, int]]
    table: list[dict[str, str]]


PICTURED = [*SMALL, "callbacks.pictures_every=192", "logger=[tensorboard,wandb,mlflow]"]


def every_file(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed between a validation and its checkpoint, and went on; then again."""
    for package in ("wandb", "mlflow"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("logged")
    (folder / "killed").touch()
    left = ("MLFLOW_TRACKING_URI", "WANDB_SERVICE")  # by the clients in this process
    environment = {name: value for name, value in os.environ.items() if name not in left}
    environment |= {"WANDB_MODE": "offline", "PYTHONPATH": BESIDE}

    def train() -> int:
        asked = [sys.executable, str(ROOT / "run_train.py"), *PICTURED, faults(folder)]
        return subprocess.run(asked, cwd=folder, env=environment, check=False).returncode

    assert train() == -9
    assert len(rows(folder / "outputs" / "copy" / "ntm" / "seed_0")) == 3
    assert train() == 0
    before = every_file(folder)
    assert train() == 0  # nothing is left to do
    assert every_file(folder) == before
    return folder


def stored(path: Path) -> Iterator[bytes]:
    """What a .wandb file holds: LevelDB's log format, after seven bytes that name the file."""
    content, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(content):
        left = 32768 - at % 32768  # in its block; a head does not fit into fewer than seven bytes
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts.append(content[at + 7 : at + 7 + size])
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def from_wandb(folder: Path) -> Told:
    from wandb.proto.wandb_internal_pb2 import Record

    told = Told({}, {}, [], [])
    ids = set()
    for path in sorted(folder.glob("outputs/wandb/offline-run-*/*.wandb")):
        for data in stored(path):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                for item in record.run.config.update:
                    if item.key != "_wandb":
                        told.parameters[item.key] = str(json.loads(item.value_json))
            if record.HasField("history"):
                row: dict = {}
                for item in record.history.item:
                    *outer, last = list(item.nested_key) or [item.key]
                    inner = row.setdefault(outer[0], {}) if outer else row
                    inner[last] = json.loads(item.value_json)
                take(row, path.parent / "files", told)
    assert ids == {result(folder / "outputs/copy/ntm/seed_0")["logged"]["wandb"]["run"]}
    return told


def take(row: dict, files: Path, told: Told) -> None:
    """Add a row of Weights & Biases' history."""
    for key, value in row.items():
        if isinstance(value, (int, float)) and not key.startswith("_") and key != "sequences":
            told.values.setdefault(key, []).append((row["sequences"], value))
        elif isinstance(value, dict) and value["_type"] == "image-file":
            assert (files / value["path"]).read_bytes().startswith(b"\x89PNG")
            told.pictures.append((key, row["sequences"]))
        elif isinstance(value, dict) and value["_type"] == "table-file":
            table = json.loads((files / value["path"]).read_text())
            told.table.extend(dict(zip(table["columns"], r, strict=True)) for r in table["data"])


def from_mlflow(folder: Path) -> Told:
    from mlflow.tracking import MlflowClient

    client = MlflowClient((folder / "outputs" / "mlruns").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "copy"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    values = {
        key: [
            (point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)
        ]
        for key in run.data.metrics
    }
    images = [Path(a.path).name for a in client.list_artifacts(run.info.run_id, "images")]
    parts = [name.split("+") for name in images if name.endswith(".png")]
    pictures = [(name.replace("~", "/"), int(step)) for name, _, step, *_ in parts]
    table = client.download_artifacts(run.info.run_id, "eval/results.csv", str(folder))
    with open(table, newline="") as file:
        return Told(dict(run.data.params), values, pictures, list(csv.DictReader(file)))


def flat(values: dict, key: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{key}{name}.")
        else:
            yield f"{key}{name}", str(value)


def as_read(value: object) -> object:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return value or None


@pytest.mark.loggers
@pytest.mark.parametrize("read", [from_wandb, from_mlflow])
def test_a_service_has_what_the_run_folder_has_each_once(read, logged, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = logged / "outputs" / "copy" / "ntm" / "seed_0"
    told = read(logged)
    assert told.parameters == dict(flat(yaml.safe_load((folder / "config.yaml").read_text())))
    written = rows(folder)
    assert [int(row["sequences"]) for row in written] == [96, 192, 288, 384, 480]
    for name in set(written[0]) - {"sequences", "seconds"}:
        expected = [(int(row["sequences"]), float(row[name])) for row in written]
        assert told.values[name] == expected, name
    assert [at for at, _ in told.values["seconds"]] == [96, 192, 288, 384, 480]
    closing = {name for name in told.values if name.startswith(("test/", "evaluation/"))}
    assert {"test/loss", "evaluation/exact/length_3"} <= closing
    assert all([at for at, _ in told.values[name]] == [480] for name in closing)
    for name in ("answer/length_6", "inside/length_6"):
        steps = sorted(at for picture, at in told.pictures if picture == name)
        assert steps == event_steps(folder, name) == [96, 288, 480]
    assert len(told.pictures) == 6
    with open(folder / "eval" / "results.csv", newline="") as file:
        expected_rows = list(csv.DictReader(file))
    assert len(expected_rows) == 2
    assert [{k: as_read(v) for k, v in row.items()} for row in told.table] == [
        {k: as_read(v) for k, v in row.items()} for row in expected_rows
    ]


class Outage(pl.Callback):
    """The store is away for the second and third validation."""

    def __init__(self, store: str) -> None:
        self.store = Path(store)
        self.away = self.store.with_name("away")

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.current_epoch == 1:
            self.store.rename(self.away)
            self.store.touch()
        if trainer.current_epoch == 3:
            self.store.unlink()
            self.away.rename(self.store)


@pytest.mark.loggers
def test_a_service_that_is_silent_for_a_while_is_told_later(run_command, tmp_path):
    pytest.importorskip("mlflow")
    node = f"{{_target_:test_loggers.Outage,store:'{tmp_path}/outputs/mlruns'}}"
    assert run_command("run_train", *SMALL, "logger=mlflow", f"trainer.callbacks=[{node}]") == 0
    said = (tmp_path / "outputs/copy/ntm/seed_0/train.log").read_text()
    assert said.count("logger=mlflow does not answer") == 1
    assert "metrics.csv has it all" in said
    assert said.count("logger=mlflow answers again") == 1
    told = from_mlflow(tmp_path)
    assert [at for at, _ in told.values["val/loss"]] == [96, 192, 288, 384, 480]


@pytest.mark.loggers
def test_a_server_that_cannot_be_reached_at_the_beginning_is_refused(
    run_command, tmp_path, capfd, monkeypatch
):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where nothing listens
    assert run_command("run_train", *SMALL, "logger=mlflow") == 2
    err = capfd.readouterr().err
    assert "logger=mlflow does not take the run" in err
    assert "127.0.0.1" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed_names_its_install(
    package, run_command, monkeypatch, tmp_path, capfd
):
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    assert run_command("run_train", f"logger={package}") == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert f"logger.{package}" in err
    assert f"pip install -e '.[{package}]'" in err
    assert list(tmp_path.iterdir()) == []
