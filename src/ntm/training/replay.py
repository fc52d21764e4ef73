"""The step at which a run's numbers went wrong, computed again.

In double precision beside single: what is finite there was lost to rounding or overflow; what is
not is in the data, in the weights, or in the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn

from ntm.commands.command import DONE
from ntm.commands.configuration import ConfigurationError, build
from ntm.commands.streams import show
from ntm.commands.trust import check_trusted
from ntm.folders.runs import RunFolder, load_checkpoint
from ntm.metrics import count
from ntm.tasks import Batch, Task
from ntm.training.learner import Penalty, first_not_finite
from ntm.views.evaluation import load_weights


class Replayed(NamedTuple):
    """What a step came to in one precision."""

    loss: float
    gradient: float
    """Its norm."""
    first: str | None
    """The first tensor that is not finite, in the order in which they are computed."""


def replay_job(path: str, allow: Collection[str] = ()) -> int:
    """Compute the step again, print what it came to, and return the exit status.

    Args:
        path: The run folder.
        allow: What of its classes is built beside what is trusted (`ntm.commands.trust`).

    Raises:
        ConfigurationError: It is no run folder, or of a run whose numbers did not go wrong.

    """
    folder = RunFolder.existing(path, "replay")
    if not folder.diverged.is_file():
        raise ConfigurationError(
            f"replay must be a run whose numbers went wrong, got {path}, which has no "
            f"{folder.diverged.relative_to(folder.path)}"
        )
    snapshot = load_checkpoint(folder.diverged)
    precisions = torch.float32, torch.float64
    found = {dtype: replay(folder, snapshot, dtype, allow) for dtype in precisions}
    drawn = Table(
        title=f"Step {snapshot['step']:,} again, from sequence {snapshot['first_sequence']:,} on",
        caption=f"then: {snapshot['reason']}",
    )
    for heading in ("precision", "loss", "gradient", "first not finite"):
        drawn.add_column(heading, no_wrap=True)
    for dtype, (loss, gradient, first) in found.items():
        name = str(dtype).removeprefix("torch.")
        drawn.add_row(name, f"{loss:.6g}", f"{gradient:.6g}", first or "none")
    show(drawn)
    print(_verdict(found[torch.float32], found[torch.float64]))
    return DONE


def _verdict(single: Replayed, double: Replayed) -> str:
    if single.first is None:
        return "Finite in single precision: the run had another precision, engine or device."
    if double.first is None:
        return "Finite in double precision: single precision overflowed, or rounding grew."
    return "Not finite in double precision either: a fault in the data, the weights or the network."


def replay(
    folder: RunFolder, snapshot: dict[str, Any], dtype: torch.dtype, allow: Collection[str] = ()
) -> Replayed:
    """Compute a diverged step in a precision, on the CPU.

    Args:
        folder: Of the run.
        snapshot: What its ``diverged.ckpt`` holds.
        dtype: Of the weights and of the batch.
        allow: See `replay_job`.

    """
    config = folder.read_config()
    penalised = config.model.get("penalty") if snapshot["penalised"] else None
    for key, node in (
        ("task", config.task),
        ("model.network", config.model.network),
        ("model.penalty", penalised),
    ):
        check_trusted(node, key, allow)
    task: Task = build(config.task, "task")
    sizes = {"input_size": task.input_size, "output_size": task.output_size}
    network: nn.Module = build(config.model.network, "model.network", **sizes)
    load_weights(network, snapshot, folder.diverged)
    network.to(dtype).train()
    torch.set_rng_state(snapshot["drawn"])
    batch = Batch(**{name: part.to(dtype) for name, part in snapshot["batch"].items()})
    penalty: Penalty | None = build(penalised, "model.penalty")
    loss, logits = _loss(network, batch, penalty)
    loss.backward()
    parameters = list(network.named_parameters())
    gradients = [p.grad for _, p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients) if gradients else torch.tensor(math.nan)
    first = first_not_finite(
        [
            *batch._asdict().items(),
            *((f"weight {name}", p.detach()) for name, p in parameters),
            ("logits", logits),
            ("loss", loss.detach()),
            *((f"gradient of {name}", p.grad) for name, p in parameters),
        ]
    )
    return Replayed(float(loss.detach()), float(norm), None if first is None else first[0])


def _loss(network: nn.Module, batch: Batch, penalty: Penalty | None) -> tuple[Tensor, Tensor]:
    """As the learner has it, and the logits."""
    if penalty is None:
        logits, _ = network(batch.inputs)
        added = logits.new_zeros(())
    else:
        logits, penalties = penalty(network, batch.inputs)
        added = penalties.mean()
    nats, _, bits = count(logits, batch)
    return nats.sum() / bits.sum() + added, logits.detach()
