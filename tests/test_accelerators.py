"""Which accelerator is taken where several are there; they are made up, for none is here."""

from __future__ import annotations

import json

import pytest
import torch
from runners import SMALL
from torch import nn

from ntm import LSTM, NTM, accelerators
from ntm.kernels import engines

KEY = "trainer.accelerator"


def ntm(engine: str = "auto") -> NTM:
    return NTM(3, 2, 8, 4, engine=engine)


class Of(nn.Module):
    """Fast on what it names."""

    def __init__(self, *fast: str) -> None:
        super().__init__()
        self.fast = fast

    def is_fast_on(self, device: str, dtype: torch.dtype) -> bool:
        return device in self.fast


@pytest.fixture
def machine(monkeypatch):
    def has(*names: str) -> None:
        there = {name: lambda name=name: name in (*names, "cpu") for name in accelerators.AVAILABLE}
        monkeypatch.setattr(accelerators, "AVAILABLE", there)

    return has


@pytest.mark.parametrize(
    ("there", "network", "taken"),
    [
        ([], ntm(), "auto"),  # nothing to choose
        (["mps"], ntm(), "cpu"),
        (["xpu"], ntm(), "cpu"),
        (["mps"], LSTM(3, 2), "cpu"),
        (["cuda"], LSTM(3, 2), "cuda"),
        (["cuda"], Of("cuda", "cpu"), "cuda"),
        (["cuda", "mps"], Of("mps", "cpu"), "mps"),
        (["cuda"], Of(), "auto"),  # Lightning's choice: slow everywhere
        (["cuda"], nn.Linear(1, 1), "auto"),  # it does not say
        (["mps"], ntm("reference"), "auto"),
        (["mps"], ntm("fused"), "cpu"),
    ],
)
def test_auto_is_the_fastest(there, network, taken, machine):
    machine(*there)
    assert accelerators.choose(network, "auto", torch.float32, KEY)[0] == taken


@pytest.mark.parametrize("asked", ["cpu", "gpu", "mps", "abacus"])
def test_what_is_named_is_taken(asked, machine):
    machine("cuda", "mps")
    assert accelerators.choose(ntm(), asked, torch.float32, KEY) == (asked, None)


def test_in_a_precision_that_the_engine_has_not_it_is_lightnings_choice(machine):
    machine("mps")
    assert accelerators.choose(ntm(), "auto", torch.bfloat16, KEY) == ("auto", None)


@pytest.mark.parametrize(
    ("triton", "arguments", "taken"),
    [
        (True, {}, "cuda"),
        (False, {}, "cpu"),
        (True, {"memory_size": 4096}, "cpu"),  # larger than a GPU's program holds
        (True, {"engine": "fused"}, "cuda"),
        (True, {"engine": "reference"}, "auto"),
    ],
)
def test_a_gpu_is_taken_where_the_fused_engine_takes_the_network(
    triton, arguments, taken, machine, monkeypatch
):
    machine("cuda")
    monkeypatch.setitem(engines.INSTALLED, "triton", triton)
    monkeypatch.setitem(engines.FUSED, "cuda", engines.FUSED["cuda"]._replace(has_run=True))
    net = NTM(3, 2, word_size=4, **arguments)
    assert accelerators.choose(net, "auto", torch.float32, KEY)[0] == taken


def test_a_line_says_which_and_how_to_have_it_otherwise(machine):
    machine("mps")
    _, why = accelerators.choose(ntm(), "auto", torch.float32, KEY)
    assert why == (
        "trainer.accelerator auto: cpu, for this network has a fast engine there and none on mps; "
        "trainer.accelerator=mps takes it all the same"
    )
    machine("cuda")
    _, why = accelerators.choose(LSTM(3, 2), "auto", torch.float32, KEY)
    assert why == (
        "trainer.accelerator auto: cuda, the fastest for this network; "
        "trainer.accelerator=cpu goes without"
    )


def test_a_run_and_its_evaluation_say_so_and_are_those_of_the_cpu(
    machine, run_command, tmp_path, capfd
):
    assert run_command("run_train", *SMALL, "sequences=96", f"{KEY}=cpu", "name=named") == 0
    machine("mps")
    capfd.readouterr()
    assert run_command("run_train", *SMALL, "sequences=96", "name=chosen") == 0
    assert f"{KEY} auto: cpu, " in capfd.readouterr().err
    named, chosen = (tmp_path / "outputs" / name / "ntm" / "seed_0" for name in ("named", "chosen"))
    assert json.loads((chosen / "result.json").read_text())["accelerator"] == "cpu"
    weights = [
        torch.load(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (named, chosen)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert run_command("run_eval", f"run={chosen}", "at=[3]", "sequences=2") == 0
    assert "accelerator auto: cpu, " in capfd.readouterr().err
