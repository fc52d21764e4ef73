"""A gradient that is not finite moves nothing, is counted, and ends the run when it goes on."""

from __future__ import annotations

import copy
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from faults import Spoilt
from runners import SMALL
from torch import Tensor, nn
from written import assert_same_tensors, checkpoint, event_steps, result, rows, untimed

import ntm
from ntm.folders.runs import RunFolder
from ntm.tasks import Copy, Goal
from ntm.training.data import SequenceData
from ntm.training.learner import Diverged, Learner
from ntm.training.record import Record

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


# --- Whatever else is not finite


def at_step(made: Learner, step: int, spoil) -> None:
    """Do something just before a step's batch goes through the network."""
    steps = iter(range(1000))

    def hook(module: nn.Module, _: tuple[Tensor, ...]) -> None:
        if module.training and next(steps) == step:
            spoil()

    made.network.register_forward_pre_hook(hook)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(("step", "place"), [(0, 0), (3, 1), (5, -1), (7, 2)])
def test_a_weight_that_is_not_finite_ends_the_run_at_that_step(step, place, value):
    made = learner()
    name, weight = list(made.network.named_parameters())[place]

    def spoil() -> None:
        with torch.no_grad():
            weight.view(-1)[weight.numel() // 2] = value

    at_step(made, step, spoil)
    with pytest.raises(Diverged, match=rf"at step {step}; the first .* is weight {name}$"):
        fit(made, sequences=32)
    assert made.snapshot is not None
    assert made.snapshot["step"] == step


@pytest.mark.parametrize(("step", "row"), [(0, 0), (2, 3), (6, 1)])
def test_logits_that_are_not_finite_say_in_which_sequence(step, row):
    """Batches are of four: row 3 of the third is sequence 12."""
    made = learner()
    calls = iter(range(1000))

    def hook(module: nn.Module, _: object, output: tuple[Tensor, object]) -> None:
        if module.training and next(calls) == step:
            with torch.no_grad():
                output[0][-1, row, 0] = torch.nan

    made.network.register_forward_hook(hook)
    asked = (
        rf"the loss is not finite, at step {step}; .* is logits, in sequence {4 * step + row + 1}$"
    )
    with pytest.raises(Diverged, match=asked):
        fit(made, sequences=32)


def test_inputs_that_are_not_finite_are_told_from_what_follows():
    made = learner()
    module = SequenceData(Spoilt(row=2, bits=2, min_length=1, max_length=3), 0, 4, 32, 32)
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    with pytest.raises(Diverged, match=r"step 0; .* is inputs, in sequence 3$"):
        trainer.fit(made, datamodule=module)


class Growing(ntm.LSTM):
    """A baseline whose logits overflow in single precision, and not in double, from a batch on."""

    from_call = 20
    calls = 0
    factor = 1e30

    def forward(self, inputs: Tensor, state=None):
        logits, state = super().forward(inputs, state)
        if self.training:
            type(self).calls += 1
            if self.calls >= self.from_call:
                logits = logits * self.factor * self.factor
        return logits, state


DIVERGING = [*RUN, "model.network._target_=test_skipping.Growing"]


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1e30, "Finite in double precision"), (1e300, "Not finite in double precision either")],
)
def test_a_run_that_diverges_keeps_what_was_good_and_the_step(
    factor, verdict, run_command, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(Growing, "calls", 0)
    monkeypatch.setattr(Growing, "factor", factor)
    assert run_command("run_train", *DIVERGING) == 1
    folder = tmp_path / "outputs" / "copy" / "lstm" / "seed_0"
    told = result(folder)
    assert told["status"] == "failed"
    # Six batches of 16 an interval, three intervals before: step 19 is the twentieth.
    assert "the loss is not finite, at step 19; the first" in told["reason"]
    assert "is logits, in sequence 305" in told["reason"]
    assert [int(row["sequences"]) for row in rows(folder)] == [96, 192, 288]
    kept = checkpoint(folder, "last")["state_dict"]
    assert all(torch.isfinite(weight).all() for weight in kept.values())
    assert f"replay={folder.relative_to(tmp_path)}" in (folder / "train.log").read_text()

    before = sorted(path.name for path in folder.rglob("*"))
    capfd.readouterr()
    asked = f"replay={folder}"
    assert run_command("run_train", asked) == 2
    assert "allow=[test_skipping.Growing]" in capfd.readouterr().err
    assert run_command("run_train", asked, "allow=[test_skipping.Growing]") == 0
    shown = capfd.readouterr().out
    assert "Step 19 again" in shown
    assert verdict in shown
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_step_of_the_machine_comes_out_again_as_it_was(run_command, tmp_path, monkeypatch, capfd):
    """Of an NTM with its price on effort: what spoils it is taken away, and loss is as it was."""
    losses = []
    real = Learner.training_step

    def spoilt(self, batch, batch_idx):
        loss = real(self, batch, batch_idx)
        losses.append(float(loss.detach()))
        if len(losses) == 9:
            self._skipped_in_a_row = self.give_up_after - 1
            next(self.network.parameters()).register_hook(lambda gradient: gradient * torch.nan)
        return loss

    monkeypatch.setattr(Learner, "training_step", spoilt)
    assert run_command("run_train", *SMALL) == 1
    capfd.readouterr()
    folder = tmp_path / "outputs" / "copy" / "ntm" / "seed_0"
    assert run_command("run_train", f"replay={folder}") == 0
    shown = capfd.readouterr().out
    assert "Finite in single precision" in shown
    assert shown.count(f"{losses[8]:.5g}"[:6]) == 2


def test_replay_of_a_run_that_went_well_is_refused(run_command, tmp_path, capfd):
    assert run_command("run_train", *RUN, "name=well") == 0
    capfd.readouterr()
    folder = tmp_path / "outputs" / "well" / "lstm" / "seed_0"
    for path in (folder, tmp_path / "nowhere"):
        assert run_command("run_train", f"replay={path}") == 2
        assert capfd.readouterr().err.startswith("replay must be a run")


# --- Finite, and worse than it was


def test_a_loss_above_that_of_guessing_is_told(run_command, tmp_path):
    steep = ["optimizer.lr=50", "optimizer.clip_norm=null", "optimizer.clip_factor=null"]
    run_command("run_train", *SMALL[2:], *PLAIN, *steep)
    log = (tmp_path / "outputs" / "copy" / "lstm" / "seed_0" / "train.log").read_text()
    assert re.search(r"worse than guessing after \d+ sequences: a loss of [1-9]", log)
    assert run_command("run_train", *SMALL[2:], *PLAIN, "name=usual") == 0
    log = (tmp_path / "outputs" / "usual" / "lstm" / "seed_0" / "train.log").read_text()
    assert "worse" not in log
    assert "no longer" not in log


PLAIN = ["model=lstm", "model.network.hidden_size=8", "model.network.num_layers=1"]


def test_a_relapse_is_told(tmp_path, caplog):
    record = Record(RunFolder(tmp_path), None, 1)
    goal = Goal("wrong_bits_per_sequence", 0.1)
    for achieved, told in [(5.0, 0), (0.05, 0), (0.09, 0), (3.25, 1), (3.0, 1), (0.0, 1), (0.1, 2)]:
        record._tell_if_worse(7000, achieved, goal, 0.1)
        record.history.append((7000, achieved))
        assert len(caplog.records) == told
    assert "no longer solved after 7,000 sequences: 3.25 wrong bits" in caplog.text
