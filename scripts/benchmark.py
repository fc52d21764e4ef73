"""Time a training step of the NTM against LSTMs, in one process.

    python scripts/benchmark.py
    python scripts/benchmark.py --batch-sizes 8 --lengths 10 100 --repeats 50

Every row is the median over interleaved repeats of forward, backward, clipping and update; the
spread is the distance between the quartiles. Ratios compare within this one run. The kernels' tests
run first: without them no speed is printed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ntm
from ntm.data import TRAINING, sample
from ntm.tasks import Copy


def networks() -> dict[str, Callable[[], nn.Module]]:
    """What is timed; the first is what the others are compared with."""
    return {
        "nn.LSTM(9, 100) + Linear": lambda: ntm.LSTM(9, 8, 100, 1, initial_state="zeros"),
        "LSTM baseline 3 x 256": lambda: ntm.LSTM(9, 8),
        "NTM reference": lambda: ntm.NTM(9, 8, engine="reference"),
        "NTM fused": lambda: ntm.NTM(9, 8, engine="fused"),
    }


def training_step(network: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """One step as training does it."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        logits, _ = network(inputs)
        F.binary_cross_entropy_with_logits(logits, targets).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def measure(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every repeat; the networks take turns, so that drift meets all alike."""
    for step in steps.values():
        for _ in range(3):  # the first may compile
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - began))
    return times


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--lengths", type=int, nargs="+", default=[10])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    tests = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "tests/kernels"]
    if subprocess.run(tests, cwd=Path(__file__).parent.parent, check=False).returncode != 0:
        sys.exit("the kernels' tests fail: no speed is printed for an engine that is wrong")

    torch.set_num_threads(arguments.threads)
    print(f"{processor()}, {platform.system()}, Python {platform.python_version()}, ", end="")
    print(f"torch {torch.__version__}, threads {arguments.threads}\n")
    print("| length | batch | network | ms per step | spread | over the first |")
    print("|---|---|---|---|---|---|")
    for length in arguments.lengths:
        for batch_size in arguments.batch_sizes:
            batch = sample(Copy(), TRAINING, 0, batch_size, (length, length))
            steps = {}
            for name, make in networks().items():
                torch.manual_seed(0)
                steps[name] = training_step(make(), batch.inputs, batch.targets)
            times = measure(steps, arguments.repeats)
            first = statistics.median(next(iter(times.values())))
            for name, values in times.items():
                median = statistics.median(values)
                low, _, high = statistics.quantiles(values, n=4)
                print(
                    f"| {length} | {batch_size} | {name} | {median:.2f} | {high - low:.2f} "
                    f"| {median / first:.1f} |"
                )


if __name__ == "__main__":
    main()
