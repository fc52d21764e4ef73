"""Lightning's loggers beside the project's own: each gets every validation and what it came to."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest
from pytorch_lightning.loggers import Logger
from runners import SMALL

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


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases(run_command, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    target = "pytorch_lightning.loggers.WandbLogger"
    assert run_command("run_train", *with_logger(target, save_dir="beside", project="p")) == 0
    assert list((tmp_path / "beside").rglob("*.wandb"))


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow(run_command, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs more than its client
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
