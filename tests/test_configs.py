"""Every configuration of the project composes, builds, and runs a batch of each kind."""

from __future__ import annotations

import itertools

import pytest
from runners import ROOT

from ntm import command, configuration

GROUPS = ("model", "task", "curriculum", "optimizer", "logger", "callbacks", "experiment")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml"))


EACH = [f"{group}={option}" for group in GROUPS for option in options(group)]
PAIRS = [
    [f"model={model}", f"optimizer={optimizer}"]
    for model, optimizer in itertools.product(options("model"), options("optimizer"))
]


def test_there_are_configurations_to_test():
    assert {"model=ntm", "model=lstm", "curriculum=staged", "task=copy"} <= set(EACH)


@pytest.mark.parametrize("overrides", PAIRS, ids=" ".join)
def test_every_pair_of_model_and_optimizer_composes(overrides):
    config = command.compose(ROOT / "configs", "train", overrides)
    configuration.check_values(config)
    assert configuration.plain(config)["folder"].startswith("outputs/copy/")


@pytest.mark.parametrize("override", EACH)
def test_every_configuration_runs_a_batch_of_each_kind(override, run_command, tmp_path):
    quick = ["batch_size=2", "trainer.fast_dev_run=true", "trainer.enable_model_summary=false"]
    assert run_command("run_train", override, *quick) == 0
    assert not (tmp_path / "outputs" / "copy").exists()
