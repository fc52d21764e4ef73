"""A trained run at any lengths and memory size: its table and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from ntm.commands.command import DONE
from ntm.commands.configuration import (
    ConfigurationError,
    build,
    check_evaluation,
    one_line,
    quiet_lightning,
)
from ntm.folders.runs import RunFolder, load_checkpoint, read_rows, write_rows, write_whole
from ntm.machine import NTM
from ntm.tasks import Task
from ntm.views import figures
from ntm.views.probing import evaluate, inside, inside_difficulty


def load(run: str | Path, checkpoint: str = "best") -> nn.Module:
    """A trained network from its run folder, ready to be used.

    Args:
        run: The folder, ``outputs/<name>/<model>/seed_<seed>``.
        checkpoint: ``best`` or ``last``.

    Raises:
        ConfigurationError: There is no such run or checkpoint, or it is damaged.

    """
    folder = RunFolder.existing(run, "run")
    _, network = restore(folder, checkpoint)
    return network


def restore(folder: RunFolder, checkpoint: str) -> tuple[Task, nn.Module]:
    """The task of a run and its network at a checkpoint, in evaluation mode on the CPU."""
    weights = load_checkpoint(folder.checkpoint(checkpoint))
    config = folder.read_config()
    task: Task = build(config.task, "task")
    if "engine" in config.model.network:  # that of the training machine may not run on this one
        config.model.network.engine = "auto"
    network: nn.Module = build(
        config.model.network,
        "model.network",
        input_size=task.input_size,
        output_size=task.output_size,
    )
    load_weights(network, weights, folder.checkpoint(checkpoint))
    return task, network.eval()


def load_weights(network: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into a network.

    Raises:
        ConfigurationError: The weights are those of another network.

    """
    prefix = "network."
    weights = {
        name.removeprefix(prefix): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(one_line(error).split()[:40])
        raise ConfigurationError(
            f"checkpoint {path} is of another network than {type(network).__name__}: {reason}"
        ) from error


def evaluate_run(config: DictConfig) -> list[dict[str, Any]]:
    """Evaluate a run as `configs/eval.yaml` says; writes its table and pictures.

    Raises:
        ConfigurationError: The run, its checkpoint or a value cannot be used; nothing is written.

    """
    check_evaluation(config)
    torch.set_num_threads(config.threads)
    folder = RunFolder.existing(config.run, "run")
    lengths = config.lengths
    if lengths is None:
        lengths = folder.read_config().evaluation.lengths
    task, network = restore(folder, config.checkpoint)
    resize_memory(network, config.memory_size)
    network.to(_device(config.accelerator))
    return write_evaluation(folder, network, task, lengths, config.sequences, config.checkpoint)


def evaluate_job(config: DictConfig) -> int:
    """Evaluate a run, print its table, and return the exit status of the command.

    Raises:
        ConfigurationError: The run, its checkpoint or a value cannot be used; nothing is written.

    """
    rows = evaluate_run(config)
    console = Console()
    console.print(table(rows))
    folder = RunFolder(config.run)
    console.print(f"Table and pictures: {folder.lengths}, {folder.figures}", soft_wrap=True)
    return DONE


def _device(accelerator: str) -> torch.device:
    """The device that Lightning takes for the name of an accelerator."""
    from pytorch_lightning import Trainer

    quiet_lightning()
    try:
        trainer = Trainer(accelerator=accelerator, devices=1, logger=False)
    except Exception as error:
        raise ConfigurationError(f"accelerator: {one_line(error)}") from error
    return trainer.strategy.root_device


def write_evaluation(
    folder: RunFolder,
    network: nn.Module,
    task: Task,
    lengths: Sequence[int],
    sequences: int,
    checkpoint: str,
) -> list[dict[str, Any]]:
    """Evaluate a network, and put rows into eval/lengths.csv and pictures into figures/."""
    results, answers = evaluate(network, task, lengths, sequences)
    rows = [_with_checkpoint(row, checkpoint) for row in results]
    merge_lengths(folder.lengths, rows)
    setting = _setting(folder, network, checkpoint)
    for length, answer in answers.items():
        figure = figures.draw_answer(answer, f"{task.name}, {task.difficulty} {length}")
        name = f"{task.difficulty}_{length}{setting}.png"
        write_whole(folder.figures / name, figures.png(figure))
    length = inside_difficulty(task, lengths)
    seen = inside(network, task, length)
    if seen is not None:
        figure = figures.draw_inside(
            seen, f"Inside the machine: {task.name}, {task.difficulty} {length}"
        )
        name = f"inside_{task.difficulty}_{length}{setting}.png"
        write_whole(folder.figures / name, figures.png(figure))
    return rows


def resize_memory(network: nn.Module, memory_size: int | None) -> None:
    """Change the memory of a network, if asked to.

    Raises:
        ConfigurationError: The network has no memory, or one that cannot have this size.

    """
    if memory_size is None:
        return
    if not isinstance(network, NTM):
        raise ConfigurationError(
            f"memory_size must be null for {type(network).__name__}, which has no memory, "
            f"got {memory_size}"
        )
    try:
        network.resize_memory(memory_size)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def merge_lengths(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows into eval/lengths.csv; a row takes the place of one with the same setting."""
    identity = list(rows[0])[:3]

    def setting(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[column]) for column in identity)

    def order(row: dict[str, Any]) -> tuple[str, int, int]:
        length, memory_size, checkpoint = setting(row)
        return checkpoint, int(memory_size or 0), int(length)

    kept = {setting(row): row for row in (read_rows(path) if path.is_file() else [])}
    kept |= {setting(row): row for row in rows}
    write_rows(path, sorted(kept.values(), key=order), header=rows[0])


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of eval/lengths.csv as a table for a terminal of 80 columns."""
    checkpoints = sorted({str(row["checkpoint"]) for row in rows})
    drawn = Table(title=f"Fresh sequences, {' and '.join(checkpoints)}.ckpt")
    difficulty = next(iter(rows[0]))
    headings = [difficulty, "memory", "sequences", "wrong bits", "± sd", "bits", "right", "exact"]
    for heading in headings:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        drawn.add_row(
            *(str(row[name]) for name in (difficulty, "memory_size", "sequences")),
            f"{float(row['wrong_bits_per_sequence']):.2f}",
            f"{float(row['wrong_bits_sd']):.2f}",
            f"{float(row['bits_per_sequence']):.2f}",
            f"{100 * float(row['accuracy']):.2f}%",
            f"{100 * float(row['exact']):.0f}%",
        )
    return drawn


def _with_checkpoint(row: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """The row with its checkpoint as third column."""
    columns = list(row.items())
    return dict([*columns[:2], ("checkpoint", checkpoint), *columns[2:]])


def _setting(folder: RunFolder, network: nn.Module, checkpoint: str) -> str:
    """What a picture's name says of a setting other than best.ckpt with memory as trained."""
    resized = ""
    if isinstance(network, NTM):
        trained = folder.read_config().model.network.get("memory_size", network.memory_size)
        resized = f"_memory_{network.memory_size}" if network.memory_size != trained else ""
    return resized + ("" if checkpoint == "best" else f"_{checkpoint}")
