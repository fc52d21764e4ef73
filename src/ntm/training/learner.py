"""The learner: loss, metrics and optimiser around a network; it cannot tell an NTM from an LSTM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ntm.checks import check_at_least
from ntm.metrics import Counts, SequenceMetrics, count
from ntm.tasks import Batch
from ntm.training.devices import in_any, whole_batch
from ntm.training.optimizers import DECAYS, check_schedule


class Diverged(Exception):
    """What is computed is no longer a number."""


def first_not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> tuple[str, Tensor] | None:
    """The first of named tensors that holds something else than finite numbers, and its name."""
    for name, tensor in tensors:
        if tensor is not None and not torch.isfinite(tensor).all():
            return name, tensor
    return None


class Penalty(Protocol):
    """What is held against a network at first, beside its errors."""

    until: float

    def __call__(self, network: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and penalties of any shape."""
        ...


class Learner(pl.LightningModule):
    """Trains any network that maps inputs (T, B, I) to (logits (T, B, O), state).

    Args:
        network: What learns.
        algorithm: Makes the optimiser of its parameters.
        decay: How the learning rate falls over the budget: ``none``, ``linear`` or ``cosine``.
        clip_value: Largest absolute value of a gradient's element, applied first; null for none.
        clip_norm: Largest norm of the whole gradient; null for none.
        clip_factor: Largest norm as a multiple of its own running average, where that is below
            ``clip_norm``; null for none. Once a task is solved gradients are small, and one hard
            sequence would otherwise undo what was learned. The multiple grows as the learning rate
            falls, for what a step can undo falls with it, and hard sequences are what is left to
            learn from.
        penalty: What is added to the loss at first: maps the network and inputs to logits and a
            penalty for each of any number of things, whose mean is added while less than
            ``penalty.until`` of the budget is spent; null for none.
        give_up_after: So many gradients in a row that are not finite end the run; until then such
            a step is skipped and counted. 1 makes the first one fatal.

    Raises:
        ValueError: An argument is out of range; the message begins with its name.

    """

    def __init__(
        self,
        network: nn.Module,
        algorithm: Callable[..., Optimizer],
        decay: str = "none",
        clip_value: float | None = None,
        clip_norm: float | None = None,
        clip_factor: float | None = None,
        penalty: Penalty | None = None,
        give_up_after: int = 10,
    ) -> None:
        super().__init__()
        check_at_least("give_up_after", give_up_after, 1)
        check_schedule(decay, clip_value, clip_norm, clip_factor)
        self.network = network
        self.algorithm = algorithm
        self.decay = decay
        self.clip_value = clip_value
        self.clip_norm = clip_norm
        self.clip_factor = clip_factor
        self.penalty = penalty
        self.give_up_after = give_up_after
        self.skipped_steps = 0
        """Steps not taken so far, for a gradient that is not finite."""
        self._skipped_in_a_row = 0
        self._budget = 1
        self.snapshot: dict[str, Any] | None = None
        """Of the step at which training diverged: what `ntm.training.replay` computes again."""
        self._at_hand: tuple[Batch, int, Tensor, Tensor] | None = None
        """The batch of the current step, its number, what was drawn before, and its logits."""
        self.average_norm: Tensor
        self.register_buffer("average_norm", torch.tensor(0.0))
        self.train_metrics = SequenceMetrics()
        self.val_metrics = SequenceMetrics()
        self.test_metrics = SequenceMetrics()

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (T, B, O) for inputs (T, B, I)."""
        logits, _ = self.network(inputs)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a training batch."""
        drawn = torch.get_rng_state()
        if self._is_penalised():
            assert self.penalty is not None
            logits, penalties = self.penalty(self.network, batch.inputs)
            loss = self._loss(logits, batch) + self._mean(penalties, torch.ones_like(penalties))
        else:
            logits = self(batch.inputs)
            loss = self._loss(logits, batch)
        self._at_hand = batch, batch_idx, drawn, logits.detach()
        # Under 16-mixed the loss scaler does it, and overflows on purpose to find its scale.
        if not self._scales() and in_any(self.trainer, not torch.isfinite(loss.detach())):
            raise self._diverged("the loss is not finite")
        return loss

    def _is_penalised(self) -> bool:
        return self.penalty is not None and self._spent() < self.penalty.until

    def _scales(self) -> bool:
        return str(self.trainer.precision) == "16-mixed"

    def _diverged(self, why: str) -> Diverged:
        """What to raise, which says where it began; keeps what the step can be repeated from.

        All processes of a run come here at the same step, and to the same.
        """
        assert self._at_hand is not None
        batch, batch_idx, drawn, logits = self._at_hand
        *parts, logits = whole_batch(self.trainer, [*batch, logits])
        batch = Batch(*parts)
        first = first_not_finite(
            [
                *batch._asdict().items(),
                *((f"weight {name}", p.detach()) for name, p in self.network.named_parameters()),
                *((f"buffer {name}", b) for name, b in self.network.named_buffers()),
                ("logits", logits),
                *((f"gradient of {name}", p.grad) for name, p in self.network.named_parameters()),
            ]
        )
        where = "" if first is None else f"; the first tensor that is not finite is {first[0]}"
        if first is not None and first[0] in ("logits", *batch._fields):
            bad = ~torch.isfinite(first[1]).transpose(0, 1).flatten(1).all(1)
            where += f", in sequence {self._number_of(batch_idx, int(bad.nonzero()[0])):,}"
        self.snapshot = {
            "reason": why + where,
            "step": self.trainer.global_step,
            "state_dict": self.state_dict(),
            "batch": dict(batch._asdict()),
            "drawn": drawn,
            "penalised": self._is_penalised(),
            "first_sequence": self._number_of(batch_idx, 0),
        }
        return Diverged(f"{why}, at step {self.trainer.global_step}{where}")

    def _number_of(self, batch_idx: int, row: int) -> int:
        """That of a sequence of a whole batch, counted from 1 over the whole run."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        batches = self.trainer.current_epoch * data.batches_per_epoch + batch_idx
        return batches * data.batch_size + row + 1

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """Count a validation batch; gives what was counted, for whoever counts differently."""
        return self._count(self(batch.inputs), batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a test batch."""
        self._count(self(batch.inputs), batch, self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        """Name the metrics of the interval that ends here."""
        if not self.trainer.sanity_checking:
            self._log("train", self.train_metrics)
        self._log("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Name the metrics of the test set."""
        self._log("test", self.test_metrics)

    def configure_optimizers(self) -> Any:
        """The optimiser, and its learning rate falling to the end of the budget."""
        optimizer = self.algorithm(self.parameters())
        # Under 16-mixed a fused one would unscale the gradients itself, after they were clipped.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        self._budget = steps = self._steps()
        decay = DECAYS[self.decay]
        schedule = LambdaLR(optimizer, lambda step: decay(min(step / steps, 1.0)))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip by value, then by norm, where asked to; drop a gradient that is not finite."""
        parameters: list[Tensor] = [p for p in self.parameters() if p.numel()]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        with torch.no_grad():  # lengths: of all that tell, the quickest to compute
            lengths = torch.stack(torch._foreach_norm(parameters))
        if not torch.isfinite(lengths).all() and first_not_finite(self.network.named_parameters()):
            raise self._diverged("a weight is not finite")
        if not self._scales() and self._drops(norm):
            return
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(self.parameters(), self.clip_value)
            norm = nn.utils.get_total_norm(gradients)
        if self.clip_norm is None and self.clip_factor is None:
            return
        group = optimizer.param_groups[0]
        limit = self._norm_limit(norm, group["lr"] / (group["initial_lr"] or 1.0))
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)

    def _drops(self, norm: Tensor) -> bool:
        """Take the gradient away if its norm is not finite: the optimiser then changes nothing.

        A head that is spread evenly multiplies rounding errors at every step (docs/recipe.md); on
        one sequence in many thousands they overflow on the way back.
        """
        if torch.isfinite(norm):
            self._skipped_in_a_row = 0
            return False
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= self.give_up_after:
            raise self._diverged(
                f"the gradient was not finite {self._skipped_in_a_row} times in a row "
                "(optimizer.give_up_after says how many are borne)"
            )
        for parameter in self.parameters():
            parameter.grad = None
        return True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the count of steps that were skipped."""
        checkpoint["skipped_steps"] = (self.skipped_steps, self._skipped_in_a_row)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped_steps, self._skipped_in_a_row = checkpoint.get("skipped_steps", (0, 0))

    def _norm_limit(self, norm: Tensor, rate: float) -> Tensor:
        """The largest norm allowed now, at a share of the full learning rate.

        Takes note of this norm, outliers held.
        """
        highest = torch.full_like(norm, math.inf if self.clip_norm is None else self.clip_norm)
        if self.clip_factor is None:
            return highest
        average = self.average_norm
        factor = self.clip_factor / max(rate, 1e-6)
        limit = torch.where(average > 0, (factor * average).minimum(highest), highest)
        seen = norm.minimum(2 * limit)
        after = torch.where(average > 0, torch.lerp(average, seen, 1 / 50), seen)
        self.average_norm.copy_(torch.where(torch.isfinite(norm), after, average))
        return limit

    def _steps(self) -> int:
        """Updates that the budget is worth.

        Lightning's own estimate takes every epoch for as long as the first. Where gradients of
        several batches are added up, an epoch ends with an update all the same.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        first, steps = 0, 0
        for epoch in range(data.epochs):
            batches = min(data.batches_per_epoch, data.batches - first)
            steps += math.ceil(batches / self._batches_a_step(epoch))
            first += batches
        return steps

    def _batches_a_step(self, epoch: int) -> int:
        """Batches whose gradients are added up."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                return callback.get_accumulate_grad_batches(epoch)
        return self.trainer.accumulate_grad_batches

    def _spent(self) -> float:
        """Share of the budget that is spent."""
        return self.trainer.global_step / self._budget

    def _count(self, logits: Tensor, batch: Batch, metrics: SequenceMetrics) -> Counts:
        counts = count(logits, batch)
        metrics.update(*(part.detach() for part in counts))
        return counts

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy per target bit of the whole batch, which is counted."""
        nats, _, bits = self._count(logits, batch, self.train_metrics)
        return self._mean(nats, bits)

    def _mean(self, values: Tensor, numbers: Tensor) -> Tensor:
        """Sum of values over sum of numbers, on however many devices they lie.

        Devices average their gradients, so each one's share is scaled up by their number.
        """
        if self.trainer.world_size == 1:
            return values.sum() / numbers.sum()
        total = self.trainer.strategy.reduce(numbers.sum(), reduce_op="sum")
        return values.sum() * self.trainer.world_size / total

    def _log(self, stage: str, metrics: SequenceMetrics) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        optimum = None if stage == "train" else data.optimum(stage)
        values = {f"{stage}/{name}": value for name, value in metrics.results(optimum).items()}
        # The run recorder writes them, with sequences as steps.
        self.log_dict(values, logger=False)
        metrics.reset()
