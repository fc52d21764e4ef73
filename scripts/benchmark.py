"""Time and memory of training the NTM, against LSTMs and against its own reference loop.

    python scripts/benchmark.py
    python scripts/benchmark.py --tables growth memory
    python scripts/benchmark.py --tables all --repeats 100

Every time is the median over interleaved repeats of forward, backward, clipping and update; the
spread is the distance between the quartiles. Ratios compare within this one run. The kernels' tests
run first: without them no speed is printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import ntm
from ntm.machine import FeedforwardController, LSTMController
from ntm.tasks import (
    AssociativeRecall,
    Batch,
    Copy,
    DynamicNGrams,
    PrioritySort,
    RepeatCopy,
    Task,
)
from ntm.tasks.sampling import TRAINING, sample, sample_at

Step = Callable[[], None]
LENGTHS = (10, 30, 100, 300, 1000, 2000)
MEMORY_SIZES = (128, 256, 512, 1024, 2048, 4096)


class Gated(nn.Module):
    """A controller of a user's own: a GRU cell."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(input_size, 100)

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros."""
        return self.cell.weight_hh.new_zeros(batch_size, 100)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        state = self.cell(inputs, state)
        return state, state


CONTROLLERS: dict[str, Callable[..., nn.Module]] = {
    "LSTM": LSTMController,
    "feedforward": FeedforwardController,
    "LSTM, two layers": partial(LSTMController, num_layers=2),
    "own module (GRU cell)": Gated,
}


def training_step(make: Callable[[], nn.Module], length: int, batch_size: int) -> Step:
    """One step on the copy task as training does it."""
    return step_on(make, sample_at(Copy(), TRAINING, batch_size, (length,)))


def step_on(make: Callable[[], nn.Module], batch: Batch) -> Step:
    """One step on a batch as training does it."""
    torch.manual_seed(0)
    network = make()
    inputs, targets, _ = batch
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        logits, _ = network(inputs)
        F.binary_cross_entropy_with_logits(logits, targets).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def machine(**arguments: object) -> Callable[[], nn.Module]:
    """The NTM of the paper's size, under the fused engine unless told otherwise."""
    return partial(ntm.NTM, 9, 8, **{"engine": "fused", **arguments})


def measure(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every repeat.

    The steps take turns, so that drift meets all alike, and in another order each time: after a
    large network a small one finds nothing of its own in the processor's caches.
    """
    for step in steps.values():
        for _ in range(3):  # the first may compile
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for _ in range(repeats):
        for name in order.sample(list(steps), len(steps)):
            began = time.perf_counter()
            steps[name]()
            times[name].append(1e3 * (time.perf_counter() - began))
    return times


def told(values: list[float]) -> str:
    """Median and spread, as two cells of a table."""
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.2f} | {high - low:.2f}"


def ratio(values: list[float], of: list[float]) -> float:
    """Of the medians."""
    return statistics.median(values) / statistics.median(of)


def heading(title: str, *columns: str) -> None:
    """Begin a table."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def table_main(arguments: argparse.Namespace) -> None:
    """Training steps of all networks."""
    networks: dict[str, Callable[[], nn.Module]] = {
        "nn.LSTM(9, 100) + Linear": lambda: ntm.LSTM(9, 8, 100, 1, initial_state="zeros"),
        "LSTM baseline 3 x 256": lambda: ntm.LSTM(9, 8),
        "NTM reference": machine(engine="reference"),
        "NTM fused": machine(),
    }
    if arguments.compiled:
        networks["NTM compiled"] = machine(engine="compiled")
    columns = "length", "batch", "network", "ms per step", "spread", "over the first"
    heading("Training steps", *columns)
    for length in arguments.lengths:
        for B in arguments.batch_sizes:
            steps = {name: training_step(make, length, B) for name, make in networks.items()}
            times = measure(steps, arguments.repeats)
            first = next(iter(times.values()))
            for name, values in times.items():
                print(f"| {length} | {B} | {name} | {told(values)} | {ratio(values, first):.2f} |")


HARDEST: dict[Task, tuple[int, ...]] = {
    Copy(): (20,),
    RepeatCopy(): (10, 10),
    AssociativeRecall(): (6,),
    DynamicNGrams(): (200,),
    PrioritySort(): (20,),
}
"""The tasks, each at the hardest point that training draws."""


def table_tasks(arguments: argparse.Namespace) -> None:
    """The default machine on every task, and what drawing its batches takes."""
    columns = (
        "task", "batch", "time steps", "ms per step", "spread", "per time step, over copy",
        "over nn.LSTM(100)", "drawing, % of a step",
    )  # fmt: skip
    heading("Tasks, each at the hardest point in training", *columns)
    for B in arguments.batch_sizes:
        steps: dict[str, Step] = {}
        for task, point in HARDEST.items():
            batch = sample_at(task, TRAINING, B, point)
            sizes = task.input_size, task.output_size
            small = partial(ntm.LSTM, *sizes, 100, 1, initial_state="zeros")
            steps[task.name] = step_on(partial(ntm.NTM, *sizes, engine="fused"), batch)
            steps[f"{task.name}, LSTM"] = step_on(small, batch)
            steps[f"{task.name}, drawing"] = drawing(task, point, B)
        times = measure(steps, arguments.repeats)
        T = {task.name: len(sample_at(task, TRAINING, 1, point).inputs) for task, point in
             HARDEST.items()}  # fmt: skip
        for name in T:
            each = ratio(times[name], times["copy"]) * T["copy"] / T[name]
            lstm, draws = (times[f"{name}, {other}"] for other in ("LSTM", "drawing"))
            print(
                f"| {name} | {B} | {T[name]} | {told(times[name])} | {each:.2f} "
                f"| {ratio(times[name], lstm):.2f} | {100 * ratio(draws, times[name]):.1f} |"
            )


def drawing(task: Task, point: tuple[int, ...], batch_size: int) -> Step:
    """Drawing a batch as training does it."""
    ranges = tuple((value, value) for value in point)
    return lambda: void(sample(task, TRAINING, 0, batch_size, ranges))


def void(_result: object) -> None:
    """Let a result go."""


def table_threads(arguments: argparse.Namespace) -> None:
    """Two threads against one, and two processes against one."""
    columns = "batch", "threads", "ms per step", "spread", "times as fast as one"
    heading("Threads of one process, length 10", *columns)
    batch_sizes = [B for B in arguments.batch_sizes if B >= 8] or [8]
    for B in batch_sizes:
        step = training_step(machine(), 10, B)

        def with_threads(threads: int, step: Step = step) -> None:
            torch.set_num_threads(threads)
            step()

        steps = {str(n): partial(with_threads, n) for n in (1, 2)}
        times = measure(steps, arguments.repeats)
        torch.set_num_threads(arguments.threads)
        for name, values in times.items():
            print(f"| {B} | {name} | {told(values)} | {1 / ratio(values, times['1']):.2f} |")
    columns = "batch", "process", "alone, steps/s", "together, steps/s", "lost", "spread of lost"
    heading("Two processes of one thread, side by side, length 10", *columns)
    for B in batch_sizes:
        for process, (alone, together) in enumerate(side_by_side(B)):
            lost = [100 * (1 - t / a) for a, t in zip(alone, together, strict=True)]
            low, middle, high = statistics.quantiles(lost, n=4)
            rates = f"{statistics.median(alone):.0f} | {statistics.median(together):.0f}"
            print(f"| {B} | {process + 1} | {rates} | {middle:.0f} % | {high - low:.0f} % |")


def side_by_side(batch_size: int, rounds: int = 7) -> list[tuple[list[float], list[float]]]:
    """Steps a second of two processes: each alone, then both together, round after round."""
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, batch_size), daemon=True))
        processes[-1].start()
        ends.append(ours)
    for end in ends:
        end.recv()  # it is warm

    def rates(asked: list[Connection]) -> list[float]:
        for end in asked:
            end.send(0.5)
        return [end.recv() for end in asked]

    found: list[tuple[list[float], list[float]]] = [([], []), ([], [])]
    for _ in range(rounds):
        for one in range(2):
            found[one][0].extend(rates([ends[one]]))
        for one, rate in enumerate(rates(ends)):
            found[one][1].append(rate)
    for end, process in zip(ends, processes, strict=True):
        end.send(None)
        process.join()
    return found


def serve(connection: Connection, batch_size: int) -> None:
    """Train for as many seconds as asked, again and again, and say how many steps a second."""
    torch.set_num_threads(1)
    step = training_step(machine(), 10, batch_size)
    for _ in range(3):
        step()
    connection.send("warm")
    while (seconds := connection.recv()) is not None:
        began, done = time.perf_counter(), 0
        while time.perf_counter() < began + seconds:
            step()
            done += 1
        connection.send(done / (time.perf_counter() - began))


def table_growth(arguments: argparse.Namespace) -> None:
    """Time by sequence length and by number of locations."""
    repeats = max(5, arguments.repeats // 4)
    heading("By length, batch 8, N 128", "length", "ms per step", "spread", "ms per time step")
    times = measure({str(n): training_step(machine(), n, 8) for n in LENGTHS}, repeats)
    for length, values in zip(LENGTHS, times.values(), strict=True):
        each = statistics.median(values) / (2 * length + 1)
        print(f"| {length} | {told(values)} | {each:.3f} |")
    columns = "N", "ms per step", "spread", "µs per location"
    heading("By number of locations, batch 8, length 10", *columns)
    steps = {str(N): training_step(machine(memory_size=N), 10, 8) for N in MEMORY_SIZES}
    by_size = measure(steps, repeats)
    for N, values in zip(MEMORY_SIZES, by_size.values(), strict=True):
        print(f"| {N} | {told(values)} | {1e3 * statistics.median(values) / N:.1f} |")
    if arguments.chart is not None:
        chart_growth(times, by_size, arguments.chart)


def chart_growth(
    by_length: dict[str, list[float]], by_size: dict[str, list[float]], path: Path
) -> None:
    """Draw the median times, each beside a line of time that grows in proportion."""
    from ntm.views import figures  # a machine with a device alone may have nothing to draw with

    panels = []
    for name, times in (("length", by_length), ("locations", by_size)):
        x = np.array([float(number) for number in times])
        quartiles = [statistics.quantiles(values, n=4) for values in times.values()]
        low, middle, high = np.array(quartiles).T
        straight = middle[-1] * x / x[-1]
        curves = [
            figures.Curve("a training step, median and quartiles", 0, 0, x, middle, low, high),
            figures.Curve("in proportion to the last", 6, 1, x, straight, weight="thin"),
        ]
        title = f"by {name}, batch 8"
        panels.append(figures.Panel(title, name, "ms", "log", curves, log_x=True))
    path.write_bytes(figures.png(figures.draw_curves(panels, "Time of a training step")))


def table_memory(arguments: argparse.Namespace) -> None:
    """Memory of training, whole and by segments, against one memory kept per time step."""
    columns = (
        "length", "engine", "segment", "most held, MB", "over one memory a time step",
        "ms per step", "spread", "over whole",
    )  # fmt: skip
    heading("Memory of training, batch 8", *columns)
    for length in (10, 100, 1000):
        T = 2 * length + 1
        one_memory_a_step = T * 8 * 128 * 20 * 4
        machines: dict[str, dict[str, object]] = {"fused | none": {}}
        if length > 10:
            segment = arguments.segment or round(T**0.5)
            machines[f"fused | {segment}"] = {"segment": segment}
        if length < 1000:
            machines["reference | none"] = {"engine": "reference"}
        steps = {name: training_step(machine(**kind), length, 8) for name, kind in machines.items()}
        times = measure(steps, max(5, arguments.repeats // 6))
        for name, values in times.items():
            held = most_bytes(steps[name])
            print(
                f"| {length} | {name} | {held / 1e6:.2f} | {held / one_memory_a_step:.2f} "
                f"| {told(values)} | {ratio(values, times['fused | none']):.2f} |"
            )


def most_bytes(step: Step) -> int:
    """What torch holds at most at once in a step, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def table_controllers(arguments: argparse.Namespace) -> None:
    """The fused engine against the reference, with every kind of controller."""
    columns = (
        "controller", "reference, ms per step", "spread", "fused, ms per step", "spread",
        "times as fast",
    )  # fmt: skip
    heading("Controllers, batch 8, length 10", *columns)
    for name, controller in CONTROLLERS.items():
        steps = {
            engine: training_step(machine(controller=controller, engine=engine), 10, 8)
            for engine in ("reference", "fused")
        }
        reference, by_fused = measure(steps, arguments.repeats).values()
        faster = ratio(reference, by_fused)
        print(f"| {name} | {told(reference)} | {told(by_fused)} | {faster:.1f} |")


def table_run(arguments: argparse.Namespace) -> None:
    """The default command, whole, and where its time goes."""
    columns = "sequences a second in training", "part", "seconds", "% of the run"
    heading("python run_train.py model=ntm, seed 100", *columns)
    here = Path(__file__).resolve().parent.parent
    command = [sys.executable, str(here / "run_train.py"), "model=ntm", "seed=100"]
    command.append(f"threads={arguments.threads}")
    with tempfile.TemporaryDirectory() as place:
        began = datetime.now()
        subprocess.run(command, cwd=place, check=True, capture_output=True)
        ended = datetime.now()
        (result,) = Path(place).rglob("result.json")
        told_of = json.loads(result.read_text())
        said = (result.parent / "train.log").read_text().splitlines()
    first, last = (
        _at(line) for line in (said[0], [one for one in said if "validation" in one][-1])
    )
    training = told_of["sequences"] / told_of["sequences_per_second"]
    whole = (ended - began).total_seconds()
    parts = {
        "start, to the first step": (first - began).total_seconds(),
        "training steps": training,
        "validation, checkpoints and pictures": (last - first).total_seconds() - training,
        "closing evaluation and its pictures": (ended - last).total_seconds(),
        "the whole": whole,
    }
    for name, seconds in parts.items():
        rate = told_of["sequences_per_second"] if name == "training steps" else ""
        print(f"| {rate} | {name} | {seconds:.1f} | {100 * seconds / whole:.0f} |")


def _at(line: str) -> datetime:
    """When a line of train.log was written; the first is of the first step."""
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")


FIRST_USE = """
import time
import torch, ntm
from ntm.machine import FeedforwardController, LSTMController
torch.set_num_threads(%d)
net = ntm.NTM(9, 8, controller=%s, engine="fused")
inputs = torch.zeros(3, 2, 9)
began = time.perf_counter()
net(inputs)[0].sum().backward()
first = time.perf_counter() - began
began = time.perf_counter()
net(inputs)[0].sum().backward()
print(first - (time.perf_counter() - began))
"""


def table_compile(arguments: argparse.Namespace) -> None:
    """What the first use on a machine costs, and the first use in a later process."""
    columns = "controller", "first on a machine, s", "first in a later process, s"
    heading("First use, float32: seconds beyond a later step", *columns)
    kinds = {
        "LSTM": "LSTMController",
        "feedforward": "FeedforwardController",
        "any other": "torch.nn.Linear(29, 100)",
    }
    for name, controller in kinds.items():
        with tempfile.TemporaryDirectory() as cache:
            took = [first_use(controller, cache, arguments.threads) for _ in range(4)]
        print(f"| {name} | {took[0]:.1f} | {statistics.median(took[1:]):.2f} |")


def first_use(controller: str, cache: str, threads: int) -> float:
    """Seconds that a process of its own spends before its first training step can run."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USE % (threads, controller)],
        env=os.environ | {"XDG_CACHE_HOME": cache},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout)


TABLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "main": table_main,
    "tasks": table_tasks,
    "threads": table_threads,
    "controllers": table_controllers,
    "growth": table_growth,
    "memory": table_memory,
    "compile": table_compile,
    "run": table_run,
}
DEFAULT = ["main", "threads", "controllers"]


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def parsed() -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tables",
        nargs="+",
        default=DEFAULT,
        choices=[*TABLES, "all"],
        help=f"default: {' '.join(DEFAULT)}",
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--lengths", type=int, nargs="+", default=[10], help="of the main table")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--segment", type=int, help="of the memory table; default: root of T")
    parser.add_argument("--chart", type=Path, help="also draw the growth tables: a PNG file")
    parser.add_argument(
        "--compiled", action="store_true", help="engine=compiled in the main table: minutes more"
    )
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    arguments = parsed()
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "tests/kernels"]
    if (
        subprocess.run(tests, cwd=Path(__file__).resolve().parent.parent, check=False).returncode
        != 0
    ):
        sys.exit("the kernels' tests fail: no speed is printed for an engine that is wrong")

    torch.set_num_threads(arguments.threads)
    print(f"{processor()}, {os.cpu_count()} cores, {platform.system()}, ", end="")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, ", end="")
    print(f"numba {version('numba')}, threads {arguments.threads}, repeats {arguments.repeats}")
    for name in TABLES if "all" in arguments.tables else arguments.tables:
        TABLES[name](arguments)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
