"""The learner around either network: its loss, its names, its clipping."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.plugins import MixedPrecision
from torch import nn

from ntm import LSTM, NTM, LSTMController
from ntm.tasks import Batch, Copy
from ntm.tasks.sampling import rows, sample
from ntm.training.data import SequenceData
from ntm.training.learner import Learner

torch.set_num_threads(1)
BITS = 2
TASK = Copy(BITS, 1, 2)
MIXED = Copy(BITS, 1, 4, mixed_lengths=True)
SGD = partial(torch.optim.SGD, lr=0.1)


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "lstm":
        return LSTM(BITS + 1, BITS, hidden_size=4, num_layers=1)
    controller = partial(LSTMController, hidden_size=4)
    return NTM(BITS + 1, BITS, memory_size=5, word_size=3, controller=controller)


def data(task: Copy = TASK, **changes) -> SequenceData:
    return SequenceData(
        task, **{"seed": 0, "batch_size": 4, "sequences": 8, "validate_every": 8} | changes
    )


def trainer(module: SequenceData, **changes) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "reload_dataloaders_every_n_epochs": 1,
    }
    return pl.Trainer(max_epochs=module.epochs, **quiet | changes)


def fit(learner: Learner, module: SequenceData, **changes) -> pl.Trainer:
    made = trainer(module, **changes)
    made.fit(learner, datamodule=module)
    return made


class Processes:
    """Stands in for a trainer of several processes, whose sum of target bits is known."""

    precision = "32-true"

    @staticmethod
    def reduce_boolean_decision(here: bool, **_: bool) -> bool:
        return here

    def __init__(self, world_size: int = 1, total: float = 0.0) -> None:
        self.world_size = world_size
        self.total = total
        self.strategy = self

    def reduce(self, value: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        assert value.item() < self.total
        return torch.full_like(value, self.total)


def plain_loss(logits: torch.Tensor, batch: Batch) -> tuple[float, int]:
    """(nats, target bits) of a batch, by loops."""
    nats, bits = 0.0, 0
    for step, targets, due in zip(
        logits.tolist(), batch.targets.tolist(), batch.mask.tolist(), strict=True
    ):
        for row, (outputs, wanted) in enumerate(zip(step, targets, strict=True)):
            for logit, target in zip(outputs, wanted, strict=True):
                if due[row]:
                    probability = 1 / (1 + math.exp(-logit))
                    nats -= math.log(probability if target else 1 - probability)
                    bits += 1
    return nats, bits


class Held:
    """A penalty of 3 for the first sequence, 1 for every other, times the network's one weight."""

    def __init__(self, until: float) -> None:
        self.until = until

    def __call__(self, net: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = next(net.parameters()).sum()
        return net(inputs)[0], weight * torch.tensor([3.0] + [1.0] * (inputs.shape[1] - 1))


@pytest.mark.parametrize("name", ["ntm", "lstm"])
class TestBothNetworks:
    @pytest.mark.parametrize(("until", "held"), [(0.0, []), (0.5, [0]), (1.0, [0, 1])])
    def test_a_penalty_is_added_until_its_share_of_the_budget(self, name, until, held):
        added = []

        class Learning(Learner):
            def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
                loss = super().training_step(batch, batch_idx)
                nats, bits = plain_loss(self(batch.inputs), batch)
                weight = next(self.network.parameters()).sum().item()
                added.append((loss.item() - nats / bits, weight * (3 + 1 + 1 + 1) / 4))
                return loss

        fit(Learning(network(name), partial(torch.optim.SGD, lr=0.0), penalty=Held(until)), data())
        assert len(added) == 2
        for step, (more, whole) in enumerate(added):
            assert more == pytest.approx(whole if step in held else 0.0, abs=1e-5)

    def test_what_is_measured_is_the_loss_without_a_penalty(self, name):
        still = partial(torch.optim.SGD, lr=0.0)
        plain = fit(Learner(network(name), still), data()).callback_metrics
        held = fit(Learner(network(name), still, penalty=Held(1.0)), data()).callback_metrics
        assert held == plain

    def test_loss_is_cross_entropy_per_target_bit(self, name):
        learner, alone = Learner(network(name), SGD), Processes()
        learner.trainer = alone
        batch = sample(MIXED, 0, 0, 6, ((1, 4),))
        nats, bits = plain_loss(learner(batch.inputs), batch)
        assert learner.training_step(batch, 0).item() == pytest.approx(nats / bits, rel=1e-5)

    @pytest.mark.parametrize("world_size", [2, 3])
    def test_processes_together_have_the_gradient_of_the_whole_batch(self, name, world_size):
        """Rows of unlike lengths: a mean of the processes' own losses would be another."""
        batch = sample(MIXED, 0, 0, 6, ((1, 4),))
        learner, trainers = Learner(network(name), SGD), []

        def gradients(part: Batch, made: Processes) -> list[torch.Tensor]:
            trainers.append(made)  # Lightning holds it by a weak reference
            learner.trainer = made
            learner.zero_grad()
            learner.training_step(part, 0).backward()
            return [p.grad.clone() for p in learner.parameters() if p.grad is not None]

        whole = gradients(batch, Processes())
        total = float(batch.mask.sum() * BITS)
        shares = [
            gradients(rows(batch, rank, world_size), Processes(world_size, total))
            for rank in range(world_size)
        ]
        for wanted, *parts in zip(whole, *shares, strict=True):
            torch.testing.assert_close(sum(parts) / world_size, wanted, atol=1e-6, rtol=1e-4)

    def test_trains_and_names_what_it_measures(self, name):
        learner = Learner(network(name), SGD)
        before = {key: value.clone() for key, value in learner.network.state_dict().items()}
        made = fit(learner, data())
        assert set(made.callback_metrics) == {
            f"{stage}/{metric}"
            for stage in ("train", "val")
            for metric in ("loss", "bits_per_sequence", "wrong_bits_per_sequence", "accuracy")
        }
        assert made.global_step == 2
        after = learner.network.state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in before)

    def test_test_set(self, name):
        learner, module = Learner(network(name), SGD), data(Copy(BITS, 1, 1))
        made = trainer(module)
        made.test(learner, datamodule=module, verbose=False)
        values = {key: float(value) for key, value in made.callback_metrics.items()}
        assert set(values) == {
            "test/loss",
            "test/bits_per_sequence",
            "test/wrong_bits_per_sequence",
            "test/accuracy",
        }
        batch = next(iter(module.test_dataloader()))
        nats, bits = plain_loss(learner(batch.inputs), batch)
        assert values["test/loss"] == pytest.approx(nats / bits, rel=1e-4)


def test_logged_numbers_are_those_of_the_whole_interval():
    """Without learning, so that the network that logged them is still there to ask."""
    learner, module = Learner(network("lstm"), partial(torch.optim.SGD, lr=0.0)), data(MIXED)
    logged = {key: float(value) for key, value in fit(learner, module).callback_metrics.items()}
    for stage, batches in (
        ("train", [sample(MIXED, 0, k, 4, ((1, 4),)) for k in range(2)]),
        ("val", list(module.val_dataloader())),
    ):
        counted = [plain_loss(learner(batch.inputs), batch) for batch in batches]
        nats, bits = (sum(column) for column in zip(*counted, strict=True))
        sequences = sum(batch.inputs.shape[1] for batch in batches)
        assert logged[f"{stage}/loss"] == pytest.approx(nats / bits, rel=1e-4)
        per_sequence = nats / math.log(2) / sequences
        assert logged[f"{stage}/bits_per_sequence"] == pytest.approx(per_sequence, rel=1e-4)


def test_an_interval_forgets_the_one_before():
    learner, module = Learner(network("lstm"), partial(torch.optim.SGD, lr=0.0)), data(sequences=16)
    logged = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            logged.append(float(trainer.callback_metrics["train/loss"]))

    fit(learner, module, callbacks=[Watch()])
    for epoch, value in enumerate(logged):
        batches = [sample(TASK, 0, k, 4, ((1, 2),)) for k in (2 * epoch, 2 * epoch + 1)]
        counted = [plain_loss(learner(batch.inputs), batch) for batch in batches]
        nats, bits = (sum(column) for column in zip(*counted, strict=True))
        assert value == pytest.approx(nats / bits, rel=1e-4)
    assert len(logged) == 2


def test_a_sanity_check_logs_no_training():
    made = fit(Learner(network("lstm"), SGD), data(), num_sanity_val_steps=1)
    assert math.isfinite(made.callback_metrics["train/loss"])


class TestClipping:
    GRADIENT = (3.0, -4.0, 0.5)

    @staticmethod
    def optimizer(parameters, rates=(1.0,)):
        """An optimiser whose learning rate has come to the last of these shares of its full one."""
        made = torch.optim.SGD(parameters, lr=0.5)
        schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: rates[step])
        for _ in rates[1:]:
            made.step()
            schedule.step()
        return made

    @staticmethod
    def learner(network: nn.Module, **arguments) -> Learner:
        """In training, which says its precision and how far it is."""
        made = Learner(network, SGD, **arguments)
        made.trainer = SimpleNamespace(precision="32-true", global_step=7)
        return made

    @pytest.mark.parametrize("rate", [1.0, 0.25])
    def test_by_a_multiple_of_the_running_average_that_grows_as_the_rate_falls(self, rate):
        learner = self.learner(nn.Linear(1, 1, bias=False), clip_norm=5.0, clip_factor=2.0)
        weight = learner.network.weight
        optimizer = self.optimizer([weight], (1.0, rate))
        average = None
        for norm in (1.0, 1.5, 40.0, 1.0, 0.1, 9.0, 9.0):
            weight.grad = torch.tensor([[-norm]])
            learner.configure_gradient_clipping(optimizer)
            limit = 5.0 if average is None else min(5.0, 2 * average / rate)
            seen = min(norm, 2 * limit)
            average = seen if average is None else average + (seen - average) / 50
            assert -weight.grad.item() == pytest.approx(min(norm, limit), rel=1e-5)
            assert learner.average_norm.item() == pytest.approx(average, rel=1e-5)

    def test_the_running_average_is_in_the_checkpoint(self):
        learner = self.learner(nn.Linear(1, 1, bias=False), clip_factor=2.0)
        learner.network.weight.grad = torch.tensor([[3.0]])
        learner.configure_gradient_clipping(self.optimizer(learner.parameters()))
        assert learner.state_dict()["average_norm"].item() == pytest.approx(3.0)

    def clipped(self, **clips) -> list[float]:
        learner = self.learner(nn.Linear(3, 1, bias=False), **clips)
        weight = learner.network.weight
        weight.grad = torch.tensor([self.GRADIENT])
        learner.configure_gradient_clipping(self.optimizer(learner.parameters()))
        return weight.grad[0].tolist()

    def by_hand(self, clip_value=None, clip_norm=None) -> list[float]:
        gradient = list(self.GRADIENT)
        if clip_value is not None:
            gradient = [max(-clip_value, min(clip_value, g)) for g in gradient]
        norm = math.sqrt(sum(g * g for g in gradient))
        if clip_norm is not None and norm > clip_norm:
            gradient = [g * clip_norm / norm for g in gradient]
        return gradient

    @pytest.mark.parametrize(
        "clips",
        [
            {},
            {"clip_value": 1.0},
            {"clip_norm": 0.5},
            {"clip_value": 1.0, "clip_norm": 0.5},
            {"clip_value": 10.0, "clip_norm": 100.0},
        ],
        ids=str,
    )
    def test_by_value_then_by_norm(self, clips):
        assert self.clipped(**clips) == pytest.approx(self.by_hand(**clips), rel=1e-4)

    def test_happens_in_training(self):
        """At a rate of 1, a step is as long as the clipped gradient."""
        learner = Learner(network("lstm"), partial(torch.optim.SGD, lr=1.0), clip_norm=1e-3)
        before = nn.utils.parameters_to_vector(learner.parameters()).detach().clone()
        fit(learner, data(sequences=4))
        moved = nn.utils.parameters_to_vector(learner.parameters()).detach() - before
        assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)

    def test_of_16_bit_gradients_under_a_fused_optimiser(self):
        """They come scaled, and such an optimiser would scale them back by itself, too late."""
        fused = partial(torch.optim.AdamW, fused=True)
        averages = []
        for scaled in (False, True):
            learner = Learner(network("ntm"), fused, clip_norm=1.0, clip_factor=2.0)
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            half = MixedPrecision("16-mixed", "cpu", scaler)
            fit(learner, data(sequences=4), **{"plugins": half} if scaled else {})
            averages.append(learner.average_norm.item())
        assert averages[1] == pytest.approx(averages[0], rel=0.01)

    @pytest.mark.parametrize("name", ["clip_value", "clip_norm"])
    @pytest.mark.parametrize("value", [0.0, -1.0])
    def test_refuses_by_name(self, name, value):
        with pytest.raises(ValueError, match=rf"^{name} must .*got"):
            Learner(nn.Linear(1, 1), SGD, **{name: value})


class TestDecay:
    @pytest.mark.parametrize(
        ("decay", "expected"),
        [
            ("none", [1.0, 1.0, 1.0, 1.0]),
            ("linear", [1.0, 0.75, 0.5, 0.25]),
            ("cosine", [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]),
        ],
    )
    def test_over_the_whole_budget(self, decay, expected):
        rates = []

        class Watch(pl.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        learner = Learner(network("lstm"), partial(torch.optim.SGD, lr=2.0), decay)
        # Four batches in two intervals, the second shorter.
        fit(learner, data(sequences=16, validate_every=12), callbacks=[Watch()])
        assert rates == pytest.approx([2 * factor for factor in expected])

    @pytest.mark.parametrize(
        ("added_up", "steps"),
        [
            ({"accumulate_grad_batches": 2}, 3),
            ({"accumulate_grad_batches": 3}, 2),
            ({"accumulate_grad_batches": 100}, 2),
            ({"by_epoch": {1: 2}}, 4),
            ({"by_epoch": {0: 3, 1: 1}}, 2),
        ],
        ids=str,
    )
    def test_counts_the_steps_that_are_taken(self, added_up, steps):
        rates = []

        class Watch(pl.Callback):
            def on_before_optimizer_step(self, trainer, pl_module, optimizer):
                rates.append(optimizer.param_groups[0]["lr"])

        learner = Learner(network("lstm"), partial(torch.optim.SGD, lr=2.0), "linear")
        added_up = dict(added_up)
        by_epoch = added_up.pop("by_epoch", None)
        own = [GradientAccumulationScheduler(by_epoch)] if by_epoch else []
        # Four batches in two intervals, the first of three.
        four = data(sequences=16, validate_every=12)
        trainer = fit(learner, four, **added_up | {"callbacks": [Watch(), *own]})
        assert trainer.global_step == steps
        assert rates == pytest.approx([2 * (1 - step / steps) for step in range(steps)])
        assert trainer.optimizers[0].param_groups[0]["lr"] == 0

    def test_refuses_by_name(self):
        with pytest.raises(ValueError, match=r"^decay must be one of none, linear, cosine, got"):
            Learner(nn.Linear(1, 1), SGD, "exponential")
