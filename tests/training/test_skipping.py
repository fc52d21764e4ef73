"""A gradient that is not finite moves nothing, is counted, and ends the run when it goes on."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from runners import SMALL
from torch import Tensor, nn
from written import assert_same_tensors, checkpoint, event_steps, result, rows, untimed

import ntm
from ntm.tasks import Copy
from ntm.training.data import SequenceData
from ntm.training.learner import Diverged, Learner

TASK = Copy(bits=2, min_length=1, max_length=3)


class Overflow(torch.autograd.Function):
    """The identity, whose gradient is not finite where it is told so."""

    @staticmethod
    def forward(ctx, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient * ctx.factor, None


class Overflowing(ntm.LSTM):
    """A baseline whose gradient overflows on some batches, which their inputs decide."""

    every = 3
    fails_at: int | None = None
    calls = 0

    def forward(self, inputs: Tensor, state=None):
        logits, state = super().forward(inputs, state)
        if self.training:
            type(self).calls += 1
            if self.calls == self.fails_at:
                raise RuntimeError("no luck today")
        bad = self.training and int(inputs.sum()) % self.every == 0
        return Overflow.apply(logits, float("inf") if bad else 1.0), state


class Kept(pl.Callback):
    """Everything that a step may move, after each step."""

    def __init__(self) -> None:
        self.states: list[dict] = []

    def on_train_batch_end(self, trainer, pl_module, *_: object) -> None:
        state = {
            "learner": pl_module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict()["state"],
        }
        self.states.append(copy.deepcopy(state))


def fit(learner: Learner, sequences: int, **changes) -> Kept:
    kept = Kept()
    module = SequenceData(TASK, seed=0, batch_size=4, sequences=sequences, validate_every=sequences)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "limit_val_batches": 1,
        "callbacks": [kept],
    }
    pl.Trainer(max_epochs=1, **quiet | changes).fit(learner, datamodule=module)
    return kept


def learner(**arguments) -> Learner:
    torch.manual_seed(0)
    network = ntm.LSTM(TASK.input_size, TASK.output_size, hidden_size=4, num_layers=1)
    adamw = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    return Learner(network, adamw, clip_norm=1.0, clip_factor=2.0, **arguments)


def overflow_at(made: Learner, bad: set[int], value: float) -> None:
    """Put a value into one weight's gradient at some steps."""
    steps = iter(range(1000))

    def hook(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        if next(steps) in bad:
            gradient.view(-1)[0] = value
        return gradient

    next(made.network.parameters()).register_hook(hook)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_step_that_is_skipped_moves_nothing(value):
    made = learner()
    overflow_at(made, {3, 5}, value)
    states = fit(made, sequences=32).states
    for step in range(1, 8):
        before, after = states[step - 1], states[step]
        weight = next(name for name in after["learner"] if "weight_ih" in name)
        if step in (3, 5):
            assert_same_tensors(before["learner"] | counts(after), after["learner"])
            assert_same_tensors(before["optimizer"], after["optimizer"])
        else:
            assert not torch.equal(before["learner"][weight], after["learner"][weight])
    assert made.skipped_steps == 2
    assert all(torch.isfinite(p).all() for p in made.parameters())


def counts(state: dict) -> dict:
    """What is counted in a step whether or not it is taken."""
    return {name: value for name, value in state["learner"].items() if "metrics" in name}


def test_so_many_in_a_row_end_the_run_and_one_in_between_does_not():
    made = learner(give_up_after=3)
    overflow_at(made, {0, 1, 3, 4, 6}, float("inf"))
    fit(made, sequences=32)
    assert made.skipped_steps == 5
    made = learner(give_up_after=3)
    overflow_at(made, {2, 3, 4}, float("inf"))
    with pytest.raises(Diverged, match=r"not finite 3 times in a row.*give_up_after"):
        fit(made, sequences=32)


def test_the_first_one_may_be_fatal():
    made = learner(give_up_after=1)
    overflow_at(made, {2}, float("nan"))
    with pytest.raises(Diverged, match="1 times in a row"):
        fit(made, sequences=32)
    with pytest.raises(ValueError, match=r"^give_up_after must be at least 1, got 0"):
        Learner(nn.Linear(1, 1), torch.optim.SGD, give_up_after=0)


def test_under_16_bits_overflows_are_the_scalers():
    """It looks for its scale by overflowing, and skips the step by itself."""
    made = learner(give_up_after=1)
    made.trainer = SimpleNamespace(precision="16-mixed", global_step=0)
    weight = next(made.network.parameters())
    weight.grad = torch.full_like(weight, torch.inf)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    made.configure_gradient_clipping(optimizer)
    assert made.skipped_steps == 0
    assert weight.grad is not None
    assert made.average_norm.item() == 0


RUN = [
    *SMALL[2:],
    "model=lstm",
    "model.network._target_=test_skipping.Overflowing",
    "model.network.hidden_size=8",
    "model.network.num_layers=1",
]


def test_a_run_counts_them_and_goes_on_to_the_same_bits(run_command, tmp_path, monkeypatch, capfd):
    def folder(name: str) -> Path:
        return tmp_path / "outputs" / name / "lstm" / "seed_0"

    assert run_command("run_train", *RUN, "name=whole") == 0
    whole = folder("whole")
    skipped = [int(row["train/skipped_steps"]) for row in rows(whole)]
    assert skipped == sorted(skipped)
    assert 0 < skipped[0] < skipped[-1]
    assert result(whole)["skipped_steps"] == skipped[-1]
    assert event_steps(whole, "train/skipped_steps") == [96, 192, 288, 384, 480]
    assert f"{skipped[-1]} steps, gradient not finite" in capfd.readouterr().out

    monkeypatch.setattr(Overflowing, "fails_at", Overflowing.calls + 20)
    assert run_command("run_train", *RUN, "name=broken") == 1
    broken = folder("broken")
    assert 0 < len(rows(broken)) < 5
    assert run_command("run_train", *RUN, "name=broken") == 0
    assert untimed(broken) == untimed(whole)
    one, other = checkpoint(whole, "last"), checkpoint(broken, "last")
    assert_same_tensors(one["state_dict"], other["state_dict"])
    assert one["skipped_steps"] == other["skipped_steps"]


def test_a_run_that_cannot_go_on_says_why(run_command, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Overflowing, "every", 1)
    assert run_command("run_train", *RUN, "optimizer.give_up_after=4") == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "not finite 4 times in a row" in last
    told = result(tmp_path / "outputs" / "copy" / "lstm" / "seed_0")
    assert told["status"] == "failed"
    assert "optimizer.give_up_after" in told["reason"]
