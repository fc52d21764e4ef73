"""A trained network at any point and memory size: numbers, and arrays to draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ntm.commands.configuration import ConfigurationError
from ntm.machine import NTM
from ntm.metrics import count, wrong_bits
from ntm.tasks import Batch, Point, Task
from ntm.tasks.kinds import DRAWN
from ntm.tasks.sampling import EVALUATION, sample_at

STEPS_AT_ONCE = 256
"""Time steps per call of the network; the state goes from one call to the next."""
ELEMENTS_AT_ONCE = 4_000_000
"""Elements of memory, over the sequences run side by side."""


class Answer(NamedTuple):
    """One sequence's answer, steps where none is due left out."""

    target: np.ndarray
    """(answers, O), 0 or 1."""
    output: np.ndarray
    """(answers, O), probabilities."""
    wrong: np.ndarray
    """(answers, O), True where the output is on the wrong side of 0.5."""


class Inside(NamedTuple):
    """What a machine did over one sequence."""

    inputs: np.ndarray
    """(T, I)."""
    outputs: np.ndarray
    """(T, O), probabilities."""
    adds: np.ndarray
    """(T, W, M)."""
    write_weightings: np.ndarray
    """(T, W, N)."""
    memory: np.ndarray
    """After each step, (T, N, M)."""
    read_weightings: np.ndarray
    """(T, R, N)."""
    reads: np.ndarray
    """(T, R, M)."""


@torch.no_grad()
def evaluate(
    network: nn.Module, task: Task, points: Sequence[Point], sequences: int, kind: str = DRAWN
) -> tuple[list[dict[str, Any]], dict[Point, Answer]]:
    """Run a network on fresh sequences of a kind at each point.

    The sequences are the same for every network. Memory use does not grow with their length beyond
    that of the sequences themselves.

    Args:
        network: Maps inputs and a state to logits and a state; evaluated as it stands.
        task: Draws the sequences.
        points: Where; see `Task.point`.
        sequences: How many of each, at least 1.
        kind: One of the task's.

    Returns:
        One row for each point, by the columns of eval/results.csv but ``checkpoint``, and the
        answer to its first sequence. What a task does not have is "".

    Raises:
        ConfigurationError: The task has no such sequences at a point.

    """
    rows, answers = [], {}
    for point in points:
        batch = _sequences(task, sequences, point, kind)
        with _evaluating(network):
            logits = torch.cat([_run(network, part) for part in _parts(network, batch)], dim=1)
        nats, wrong, bits = (part.double() for part in count(logits, batch))
        paid, optimum = (nats.mean() / np.log(2)).item(), task.optimum(batch)
        rows.append(
            {
                **task.named(point),
                "kind": kind,
                "memory_size": network.memory_size if isinstance(network, NTM) else "",
                "sequences": sequences,
                "wrong_bits_per_sequence": wrong.mean().item(),
                "wrong_bits_sd": wrong.std(correction=0).item(),
                "bits_per_sequence": paid,
                "bits_above_optimum": "" if optimum is None else paid - optimum.mean().item(),
                "accuracy": 1 - (wrong.sum() / bits.sum()).item(),
                "exact": (wrong == 0).double().mean().item(),
                **{
                    f"wrong_{name}_bits": wrong_bits(*_only(logits, batch, part))
                    .double()
                    .mean()
                    .item()
                    for name, part in task.parts.items()
                },
            }
        )
        answers[point] = answer(logits[:, 0], batch)
    return rows, answers


def _sequences(task: Task, sequences: int, point: Point, kind: str) -> Batch:
    try:
        return sample_at(task, EVALUATION, sequences, point, kind)
    except ValueError as error:
        raise ConfigurationError(f"{kind} at {task.label(point)}: {error}") from error


def answer(logits: Tensor, batch: Batch) -> Answer:
    """The answer to the first sequence of a batch, from its logits (T, O)."""
    due = batch.mask[:, 0] > 0
    output = torch.sigmoid(logits[due].float()).numpy()
    target = batch.targets[due, 0].numpy()
    # By the logits: in single precision a small one is already 0.5 as a probability.
    return Answer(target, output, (logits[due] > 0).numpy() != (target > 0.5))


def _only(logits: Tensor, batch: Batch, part: slice) -> tuple[Tensor, Batch]:
    """Some output channels, and what they should be."""
    return logits[..., part], batch._replace(targets=batch.targets[..., part])


def inside(network: nn.Module, task: Task, point: Point, kind: str = DRAWN) -> Inside | None:
    """What the network does over one sequence; None if it has no memory to look into."""
    if not isinstance(network, NTM):
        return None
    batch = sample_at(task, EVALUATION, 1, point, kind)
    with _evaluating(network):
        trace = network.trace(batch.inputs.to(next(network.parameters())))
    one = {name: value[:, 0].float().cpu().numpy() for name, value in trace._asdict().items()}
    return Inside(
        inputs=batch.inputs[:, 0].numpy(),
        outputs=torch.sigmoid(torch.from_numpy(one["logits"])).numpy(),
        adds=one["adds"],
        write_weightings=one["write_weightings"],
        memory=one["memory"],
        read_weightings=one["read_weightings"],
        reads=one["reads"],
    )


def point_inside(task: Task, points: Sequence[Point]) -> Point:
    """The point to look inside at: the hardest given that was trained on, else the task's.

    A picture of a longer sequence has more steps than pixels, and its memories fill a gigabyte.
    """
    hardest = tuple(high for _, high in task.ranges)
    trained = [
        point
        for point in points
        if all(at <= high for at, high in zip(point, hardest, strict=True))
    ]
    return max(trained, default=hardest)


def point_name(task: Task, point: Point) -> str:
    """A point in the name of a file or tag: ``length_20_repeats_10``."""
    return "_".join(f"{name}_{value}" for name, value in task.named(point).items())


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Every part of the network in evaluation mode, and afterwards as it was."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _parts(network: nn.Module, batch: Batch) -> Iterator[Batch]:
    """The batch in pieces whose memories fit."""
    each = network.memory_size * network.layout.word_size if isinstance(network, NTM) else 1
    count = max(1, ELEMENTS_AT_ONCE // each)
    for start in range(0, batch.inputs.shape[1], count):
        yield Batch(*(part[:, start : start + count] for part in batch))


def _run(network: nn.Module, batch: Batch) -> Tensor:
    """Logits (T, B, O) on the CPU, a stretch of time at a time."""
    like = next(network.parameters())
    state, logits = None, []
    for inputs in batch.inputs.split(STEPS_AT_ONCE):
        part, state = network(inputs.to(like), state)
        logits.append(part.cpu())
    return torch.cat(logits)
