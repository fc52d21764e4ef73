"""What a run left in its folder, as tests compare it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader


def rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "metrics.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


def untimed(folder: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(folder)]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def checkpoint(folder: Path, name: str) -> dict:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def weights(folder: Path, name: str) -> dict:
    state = checkpoint(folder, name)["state_dict"]
    return {key: value for key, value in state.items() if key.startswith("network.")}


def event_steps(folder: Path, tag: str) -> list[int]:
    return [
        event.step
        for path in sorted(folder.glob("events.out.tfevents.*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == tag
    ]


def assert_same_tensors(one, other, path="") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same_tensors(one[key], other[key], f"{path}/{key}")
