"""Files of a run, cut at every hundredth of their length and with bytes changed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from ntm.commands.configuration import ConfigurationError, plain
from ntm.folders.runs import RunFolder, load_checkpoint, read_rows

CONFIG = {
    "seed": 3,
    "task": {"_target_": "ntm.tasks.Copy", "bits": 8},
    "model": {"name": "ntm", "network": {"memory_size": 128, "rate": 0.003, "text": "a: b # c"}},
    "evaluation": {"at": [10, 20], "kinds": ["drawn"], "sequences": 100},
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.begin(OmegaConf.create(CONFIG), resume=False)
    made.write_result(status="finished", seconds=12.5, stages=[{"ranges": {"length": [1, 20]}}])
    content = {"state_dict": {"network.w": torch.arange(300.0)}, "epoch": 3}
    torch.save(content, made.last)
    lines = ["sequences,seconds,val/loss", *(f"{at},{at / 7:.1f},0.{at}" for at in range(9))]
    made.metrics.write_text("\n".join(lines) + "\n")
    return made


READ: dict[str, tuple[Callable[[RunFolder], Path], Callable[[RunFolder], Any]]] = {
    "config.yaml": (lambda run: run.config, lambda run: plain(run.read_config())),
    "config.yaml, for many": (lambda run: run.config, lambda run: run._read_values()),
    "result.json": (lambda run: run.result, lambda run: run.read_result()),
    "last.ckpt": (lambda run: run.last, lambda run: load_checkpoint(run.last)),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def attempt(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """What was read, or how it was refused."""
    try:
        return read(), None
    except ConfigurationError as error:
        return None, str(error)


@pytest.mark.parametrize("name", READ)
def test_what_is_cut_is_recognised_and_named(name, folder):
    place, read = READ[name]
    path = place(folder)
    content = path.read_bytes()
    for percent in range(100):
        path.write_bytes(content[: len(content) * percent // 100])
        with pytest.raises(ConfigurationError, match=re.escape(str(path))) as caught:
            read(folder)
        assert "damaged" in str(caught.value), percent
        assert "\n" not in str(caught.value)
    path.write_bytes(content)
    read(folder)


@pytest.mark.parametrize("bits", [1, 8])
def test_a_checkpoint_with_bytes_changed_is_recognised_or_the_same(bits, folder):
    content = folder.last.read_bytes()
    whole = load_checkpoint(folder.last)
    drawn, noticed = random.Random(bits), 0
    for _ in range(300):
        changed = bytearray(content)
        changed[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8) if bits == 1 else 0xFF
        folder.last.write_bytes(changed)
        found, said = attempt(lambda: load_checkpoint(folder.last))
        noticed += said is not None
        assert str(folder.last) in said if said else same(found, whole)  # or nobody uses it
    assert noticed > 150


@pytest.mark.parametrize("name", ["config.yaml", "config.yaml, for many", "result.json"])
def test_text_with_bytes_changed_is_read_or_named(name, folder):
    """That a digit was another one nobody can tell; that it is no text of a run anybody can."""
    place, read = READ[name]
    path = place(folder)
    content = path.read_bytes()
    drawn = random.Random(7)
    for _ in range(500):
        changed = bytearray(content)
        changed[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
        path.write_bytes(changed)
        found, said = attempt(lambda: read(folder))
        assert str(path) in said if said else isinstance(found, dict)
        assert "\n" not in (said or "")


def test_rows_that_were_cut_are_left_out_and_the_others_are_whole(folder):
    content = folder.metrics.read_bytes()
    whole = read_rows(folder.metrics)
    for length in range(len(content)):
        folder.metrics.write_bytes(content[:length])
        found = read_rows(folder.metrics)
        assert found == whole[: len(found)]
        assert len(found) == max(content[:length].count(b"\n") - 1, 0)


def test_configurations_of_before_have_no_end_and_are_read(folder):
    text = json.dumps(CONFIG)
    folder.config.write_text(text)
    assert plain(folder.read_config()) == folder._read_values() == CONFIG
