"""What a configuration builds of torch alone; it is refused before Lightning, which loads long."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from ntm.commands.configuration import ConfigurationError, build, check_values, one_line
from ntm.machine.ntm import ENGINES
from ntm.tasks import Task
from ntm.training.curriculum import Curriculum
from ntm.training.optimizers import check_schedule
from ntm.views.asked import evaluation_kinds, evaluation_points


@dataclass
class Parts:
    """What a run is made of, before anything trains it."""

    task: Task
    network: nn.Module
    algorithm: Callable[..., Optimizer]
    """Makes the optimiser of a network's parameters."""
    penalty: Any
    """A `ntm.training.learner.Penalty`; None for none."""
    curriculum: Curriculum
    points: list[Any]
    """Of the closing evaluation, as are the kinds."""
    kinds: list[str]


def build_parts(config: DictConfig) -> Parts:
    """Build them from the configuration of `configs/train.yaml`; seeds torch.

    Raises:
        ConfigurationError: A value cannot be; the message names its key.

    """
    check_values(config)
    if config.engine not in ENGINES:
        raise ConfigurationError(
            f"engine must be one of {', '.join(ENGINES)}, got {config.engine!r}"
        )
    task: Task = build(config.task, "task")
    torch.manual_seed(config.seed)
    network: nn.Module = build(
        config.model.network,
        "model.network",
        input_size=task.input_size,
        output_size=task.output_size,
    )
    penalty = build(config.model.get("penalty"), "model.penalty")
    curriculum: Curriculum = build(
        config.curriculum,
        "curriculum",
        numbers=task.numbers,
        goal=task.solved,
        sequences=math.ceil(config.sequences / config.batch_size) * config.batch_size,
    )
    points = evaluation_points(task, config.evaluation.at, "evaluation.at")
    kinds = evaluation_kinds(task, config.evaluation.kinds, "evaluation.kinds")
    # Last: an optimiser has torch load its compiler, which takes as long as torch.
    return Parts(task, network, _algorithm(config.optimizer), penalty, curriculum, points, kinds)


def _algorithm(optimizer: DictConfig) -> Callable[..., Optimizer]:
    try:
        check_schedule(
            optimizer.decay, optimizer.clip_value, optimizer.clip_norm, optimizer.clip_factor
        )
    except ValueError as error:
        raise ConfigurationError(f"optimizer.{one_line(error)}") from error
    algorithm: Callable[..., Optimizer] = build(optimizer.algorithm, "optimizer.algorithm")
    try:
        algorithm([nn.Parameter(torch.zeros(1))])
    except Exception as error:  # whatever it does not take
        raise ConfigurationError(f"optimizer.algorithm: {one_line(error)}") from error
    return algorithm
