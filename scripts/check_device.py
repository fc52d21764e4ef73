"""The fused engine on a device: is it right, does it repeat, how fast is it. One run, one page.

    python scripts/check_device.py                      # on the GPU, under eight minutes
    python scripts/check_device.py --dry                # on the CPU, tiny: does the check run
    python scripts/check_device.py --page devices.json >docs/results/devices.md

Needs torch and what src/ntm imports below training: neither Hydra nor the network. Writes
devices.json after every step, so what was found is kept when a later one fails or the time is up;
says at the end what failed. Exit status: 0 all that ran is right, 1 something is not, 2 the command
is wrong.

Time is the median over repeats of forward, backward, clipping and update, read off the device's own
clock where it has one; ratios compare within one run.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmark import step_on
from torch import Tensor, nn
from torch.nn import functional as F

import ntm
from ntm.machine import NTM, EffortPenalty, FeedforwardController, LSTMController
from ntm.tasks import Batch, Copy
from ntm.tasks.sampling import TRAINING, VALIDATION, fixed_set, sample, sample_at

LENGTH = 20
"""Of the copies that are timed: the longest in training."""
BATCH_SIZES = (1, 8, 32, 128, 512, 2048)
SLOWEST = 5.0
"""Seconds that the repeats of one network at one batch may take."""
MOST_OFF = 16
"""Times the float32 error of the plain loop that the engine's may be."""
LIKE_FLOAT32 = 1e-5
"""An error that needs no excuse."""
SOLVED_BELOW = 0.1
lstm, feedforward = (
    partial(made, hidden_size=11) for made in (LSTMController, FeedforwardController)
)
CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "default": ({}, (21, 8)),
    "many small ones": (
        {"controller": lstm, "memory_size": 16, "word_size": 8}, (5, 2048),
    ),
    "feedforward": ({"controller": FeedforwardController}, (21, 8)),
    "odd sizes": (
        {"controller": lstm, "memory_size": 7, "word_size": 3, "num_read_heads": 2,
         "num_write_heads": 3}, (9, 5),
    ),
    "write first": (
        {"controller": feedforward, "memory_size": 12, "word_size": 5, "read_first": False,
         "shift_range": 2, "num_read_heads": 3}, (6, 3),
    ),
    "learned starts": (
        {"controller": partial(lstm, initial_state="learned"), "initial_memory": "learned",
         "initial_weighting": "learned", "initial_reads": "learned"}, (5, 33),
    ),
}  # fmt: skip
"""Arguments of a machine, time steps and sequences."""


class Check:
    """Where it runs, how large everything is, and what was found."""

    def __init__(self, device: str, dry: bool, folder: Path) -> None:
        self.device, self.dry, self.path = torch.device(device), dry, folder / "devices.json"
        self.found: dict[str, Any] = {"failed": []}

    def note(self, name: str, value: Any) -> None:
        """Keep what a step found, on disk as well."""
        self.found[name] = value
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.found, indent=2) + "\n")
        part.replace(self.path)

    def fail(self, what: str) -> None:
        """Something is not right."""
        self.found["failed"].append(what)
        print(f"WRONG: {what}", flush=True)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def cases(self) -> Iterator[tuple[str, NTM, Tensor]]:
        """Every machine, its weights large enough that all of it works, with inputs for it."""
        for name, (arguments, (steps, batch)) in CASES.items():
            if self.dry:
                small = {"memory_size": 6, "word_size": 3, "controller": arguments.get(
                    "controller", lstm)}  # fmt: skip
                if small["controller"] is FeedforwardController:
                    small["controller"] = feedforward
                arguments, steps, batch = arguments | small, min(steps, 3), min(batch, 2)
            torch.manual_seed(0)
            net = NTM(5, 3, **arguments)
            with torch.no_grad():
                for weight in net.parameters():
                    weight.mul_(1.5)
            yield name, net.to(self.device), torch.randn(steps, batch, 5).to(self.device)


def outcome(net: NTM, engine: str, inputs: Tensor) -> dict[str, Tensor]:
    """Logits, the state after, and the gradient of everything, by name."""
    net.engine = engine
    net.zero_grad()
    inputs = inputs.clone().requires_grad_()
    logits, state = net(inputs)
    parts = {
        "logits": logits,
        **dict(zip(("memory", "weightings", "reads"), state[:3], strict=True)),
    }
    for number, part in enumerate(state.controller or ()):
        parts[f"controller {number}"] = part
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(part.shape, generator=generator) for name, part in parts.items()}
    sum((parts[name] * weights[name].to(parts[name])).sum() for name in parts).backward()
    gradients = {"inputs": inputs, **dict(net.named_parameters())}
    return {name: part.detach() for name, part in parts.items()} | {
        f"gradient of {name}": part.grad
        for name, part in gradients.items()
        if part.grad is not None
    }


def error(value: Tensor, truth: Tensor) -> float:
    """Largest error over the largest value."""
    off = (value.double() - truth.double()).abs().max()
    return (off / truth.abs().max().clamp_min(1e-30)).item()


def compiling(check: Check) -> None:
    """Seconds to compile the engine, all machines side by side; what comes after finds it done."""
    names = [*CASES]
    command = [sys.executable, __file__, "--worker", "--device", str(check.device)]
    began = time.monotonic()
    started = {
        name: subprocess.Popen([*command, "--case", name, *(["--dry"] if check.dry else [])])
        for name in names
    }
    seconds = {}
    while len(seconds) < len(names):
        for name, process in started.items():
            if name not in seconds and process.poll() is not None:
                seconds[name] = time.monotonic() - began
                if process.returncode != 0:
                    check.fail(f"{name}: the first run ended with status {process.returncode}")
        time.sleep(0.1)
    check.note("compiling", [[name, seconds[name]] for name in names])


def agreement(check: Check) -> None:
    """The engine and the plain loop in float32, each against the plain loop in float64."""
    rows = []
    for name, net, inputs in check.cases():
        fused, plain = outcome(net, "fused", inputs), outcome(net, "reference", inputs)
        truth = outcome(copy.deepcopy(net).double(), "reference", inputs.double())
        if fused.keys() != truth.keys():
            check.fail(
                f"{name}: the engine gives {sorted(fused.keys() ^ truth.keys())} or lacks it"
            )
            continue
        errors = {part: (error(fused[part], truth[part]), error(plain[part], truth[part]))
                  for part in truth}  # fmt: skip
        worst = max(errors, key=lambda part: errors[part][0])
        for part, (own, its) in errors.items():
            if not own <= max(LIKE_FLOAT32, MOST_OFF * its):
                check.fail(f"{name}: {part} is off by {own:.1e}, the plain loop by {its:.1e}")
        rows.append([name, worst, *errors[worst]])
        check.note("agreement", rows)


def repeats(check: Check) -> None:
    """The same bits again and again; a race would show as a difference, if it shows."""
    rows = []
    cases = [
        case for case in check.cases() if case[0] in ("default", "many small ones", "odd sizes")
    ]
    for name, net, inputs in cases:
        first = outcome(net, "fused", inputs)
        began, done, differing = time.monotonic(), 0, 0
        times, seconds = (
            (3, 60.0) if check.dry else (10_000 if inputs.shape[1] < 100 else 500, 40.0)
        )
        while done < times and time.monotonic() - began < seconds:
            again = outcome(net, "fused", inputs)
            differing += any(not torch.equal(first[part], again[part]) for part in first)
            done += 1
        if differing:
            check.fail(f"{name}: {differing} of {done} repeats differ from the first")
        rows.append([name, inputs.shape[1], done, differing])
        check.note("repeats", rows)


def networks(check: Check) -> dict[str, Callable[[], nn.Module]]:
    """What is timed; the first is what the others are compared with."""
    small: dict[str, Any] = {}
    if check.dry:
        small = {"memory_size": 6, "word_size": 3, "controller": lstm}
    return {
        "nn.LSTM(9, 100)": lambda: ntm.LSTM(
            9, 8, 11 if check.dry else 100, 1, initial_state="zeros"
        ),
        "NTM, fused": lambda: NTM(9, 8, engine="fused", **small),
        "LSTM 3 × 256": lambda: ntm.LSTM(9, 8, 11 if check.dry else 256),
        "NTM, torch.compile": lambda: NTM(9, 8, engine="compiled", **small),
        "NTM, plain loop": lambda: NTM(9, 8, engine="reference", **small),
    }


def training_step(
    check: Check, make: Callable[[], nn.Module], batch_size: int
) -> Callable[[], None]:
    """One step on the longest copy as training does it."""
    length = 1 if check.dry else LENGTH
    batch = sample_at(Copy(), TRAINING, batch_size, (length,))
    there = Batch(*(part.to(check.device) for part in batch))
    return step_on(lambda: make().to(check.device), there)


def milliseconds(check: Check, step: Callable[[], None]) -> tuple[float, float]:
    """Median of a step, and the distance of the quartiles."""
    for _ in range(1 if check.dry else 3):  # the first may compile
        step()
    check.wait()
    times: list[float] = []
    began = time.monotonic()
    while len(times) < (2 if check.dry else 30) and time.monotonic() - began < SLOWEST:
        at = time.perf_counter()
        step()
        check.wait()
        times.append(1e3 * (time.perf_counter() - at))
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return middle, high - low


def speed(check: Check) -> None:
    """Milliseconds a step, by batch and network."""
    rows: list[list[Any]] = []
    slow = ("NTM, torch.compile", "NTM, plain loop")
    for batch_size in (1, 2) if check.dry else BATCH_SIZES:
        for name, make in networks(check).items():
            if name in slow and batch_size not in (1, 8, 512):
                continue
            if check.dry and "compile" in name:
                continue  # needs a C++ compiler and a minute
            check.wait()
            try:
                rows.append(
                    [batch_size, name, *milliseconds(check, training_step(check, make, batch_size))]
                )
            except Exception as reason:  # one that cannot run must not hide the others
                rows.append([batch_size, name, None, f"{type(reason).__name__}: {reason}"[:160]])
            check.note("speed", rows)


def train(
    check: Check, seed: int, batch_size: int, sequences: int, until_solved: bool
) -> dict[str, Any]:
    """Copy by the default recipe, less what Lightning does; drawn on the CPU as in training."""
    torch.manual_seed(seed)
    task = Copy(max_length=2, mix=0.2) if check.dry else Copy(mix=0.2)
    network: Any = networks(check)["NTM, fused"]().to(check.device)
    penalty = EffortPenalty(0.015, 0.001, 0.7, 0.02)
    rate = 3e-3 * max(1.0, batch_size / 8) ** (2 / 3)
    optimizer = torch.optim.AdamW(
        network.parameters(), rate, (0.9, 0.98), 1e-5, weight_decay=0.005, fused=True
    )
    steps = math.ceil(sequences / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    held_out = [type(batch)(*(part.to(check.device) for part in batch))
                for batch in fixed_set(task, VALIDATION, 20 if check.dry else 640)]  # fmt: skip
    solved_at = None
    check.wait()
    began = time.monotonic()
    for k in range(steps):
        batch = sample(task, TRAINING, k, batch_size, tuple(task.numbers.values()), seed)
        inputs, targets, mask = (part.to(check.device, non_blocking=True) for part in batch)
        logits, priced = penalty(network, inputs)
        nats = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1) * mask
        loss = nats.sum() / (mask.sum() * targets.shape[-1])
        if k < 0.7 * steps:
            loss = loss + priced.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        due = (k + 1) * batch_size // 1000 > k * batch_size // 1000
        if until_solved and due and wrong_bits(network, held_out) < SOLVED_BELOW:
            solved_at = (k + 1) * batch_size
            break
    check.wait()
    seconds = time.monotonic() - began
    done = (k + 1) * batch_size
    return {"seed": seed, "batch_size": batch_size, "sequences": done, "seconds": seconds,
            "sequences_per_second": done / seconds, "solved_at": solved_at}  # fmt: skip


@torch.no_grad()
def wrong_bits(network: nn.Module, batches: list[Any]) -> float:
    """Of a sequence, in the mean."""
    wrong = sum(
        (((network(inputs)[0] > 0) != (targets > 0.5)).sum(-1) * (mask > 0)).sum().item()
        for inputs, targets, mask in batches
    )
    return wrong / sum(inputs.shape[1] for inputs, _, _ in batches)


def rates(check: Check) -> None:
    """Sequences a second of training by batch, drawing and copying included."""
    rows = []
    for batch_size in (1, 2) if check.dry else BATCH_SIZES:
        sequences = 4 if check.dry else min(50 * batch_size + 1000, 60_000)
        rows.append(train(check, 0, batch_size, sequences, until_solved=False))
        check.note("rates", rows)


def solved(check: Check) -> None:
    """Copy from the beginning until it is solved, at three batches."""
    rows = []
    for batch_size in (2,) if check.dry else (8, 32, 64):
        result = train(check, 0, batch_size, 8 if check.dry else 40_000, until_solved=True)
        if result["solved_at"] is None and not check.dry:
            check.fail(f"copy in batches of {batch_size} is not solved in 40,000 sequences")
        rows.append(result)
        check.note("solved", rows)


def seeds(check: Check) -> None:
    """Ten runs side by side on one device, each a process of its own, against one alone."""
    found = {}
    for many in (1, 2) if check.dry else (1, 10):
        command = [sys.executable, __file__, "--worker", "--device", str(check.device)]
        started = [
            subprocess.Popen([*command, "--seed", str(seed), *(["--dry"] if check.dry else [])],
                             stdout=subprocess.PIPE, text=True)
            for seed in range(many)
        ]  # fmt: skip
        results = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
        found[str(many)] = sum(result["sequences_per_second"] for result in results)
        check.note("seeds", found)


def memory(check: Check) -> None:
    """Most that a training step holds on the device, in MB, by batch."""
    if check.device.type != "cuda":
        check.note("memory", [])
        return
    rows = []
    for batch_size in (8, 512, 2048):
        step = training_step(check, networks(check)["NTM, fused"], batch_size)
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        rows.append([batch_size, torch.cuda.max_memory_allocated() / 1e6])
        check.note("memory", rows)


def machine(check: Check) -> None:
    """What it runs on."""
    cuda = check.device.type == "cuda"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        import triton

        versions["triton"] = triton.__version__
    except ImportError:
        pass
    name = torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})"
    check.note("machine", {"device": name, "dry": check.dry, "versions": versions})


STEPS = {
    step.__name__: step
    for step in (compiling, agreement, repeats, speed, rates, solved, seeds, memory)
}


@contextmanager
def interpreted(dry: bool) -> Iterator[None]:
    """Where the kernels for GPUs are to be interpreted: run jobs of the CPU by them."""
    if not (dry and os.environ.get("TRITON_INTERPRET") == "1"):
        yield
        return
    from ntm.kernels import fused
    from ntm.kernels.cuda import launch

    of_cpu = fused.RUNNERS["cpu"]
    fused.RUNNERS["cpu"] = launch.run
    try:
        yield
    finally:
        fused.RUNNERS["cpu"] = of_cpu


def page(found: dict[str, Any]) -> str:
    """The page of results, from what a check noted."""
    told = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    made = f"{told['device']}; {versions}. Made by `python scripts/check_device.py`."
    lines = ["<!-- Made by scripts/check_device.py --page. -->", "", "# On a device", "", made]
    if told["dry"]:
        lines.append("A dry run, tiny and on the CPU: no number here means anything.")
    wrong = found["failed"]
    lines += [
        "",
        "**Wrong:**" if wrong else "Nothing that ran was wrong.",
        *(f"- {w}" for w in wrong),
    ]

    def table(title: str, columns: str, rows: list[list[Any]]) -> None:
        lines.extend(
            ["", f"## {title}", "", f"| {columns} |", f"|{'---|' * (columns.count('|') + 1)}"]
        )
        lines.extend(f"| {' | '.join(map(shown, row))} |" for row in rows)

    if "compiling" in found:
        title = "Seconds of the first run, all side by side; compiling is most of it"
        table(title, "machine | seconds", found["compiling"])
    if "agreement" in found:
        table("Error, over the largest value, against the plain loop in float64",
              "machine | worst part | engine | plain loop", found["agreement"])  # fmt: skip
    if "repeats" in found:
        table("The same bits again", "machine | sequences | repeats | differing", found["repeats"])
    if "speed" in found:
        first = {row[0]: row[2] for row in found["speed"] if row[1].startswith("nn.LSTM")}
        rows = [
            [*row, row[2] / first[row[0]] if row[2] and first.get(row[0]) else None]
            for row in found["speed"]
        ]
        title = f"Training steps on copies of {LENGTH}"
        table(title, "batch | network | ms | spread | over nn.LSTM", rows)
    for name, title in (
        ("rates", "Training, drawing included"),
        ("solved", "Copy until it is solved"),
    ):
        if name in found:
            keys = ("batch_size", "sequences", "seconds", "sequences_per_second", "solved_at")
            rows = [[row[key] for key in keys] for row in found[name]]
            table(title, "batch | sequences | seconds | sequences a second | solved at", rows)
    if "seeds" in found:
        rows = [[many, rate] for many, rate in found["seeds"].items()]
        table("Runs side by side, batches of 8", "runs | sequences a second of all", rows)
    if found.get("memory"):
        table("Most held in a training step", "batch | MB", found["memory"])
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A cell."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value) if not isinstance(value, int) else f"{value:,}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.01 else f"{value:.1e}"


def main() -> int:
    """Run the steps that are asked for, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default=None, help="default cuda, with --dry cpu")
    parser.add_argument("--dry", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--steps", nargs="+", choices=[*STEPS], default=[*STEPS])
    parser.add_argument("--seconds", type=float, default=450, help="after which no step begins")
    parser.add_argument("--folder", type=Path, default=Path(), help="for devices.json")
    parser.add_argument("--page", type=Path, help="print the page of a devices.json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=[*CASES], help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.page:
        print(page(json.loads(given.page.read_text())))
        return 0
    device = given.device or ("cpu" if given.dry else "cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        print(
            f"--device {device}: there is none here; --dry tries the check on the CPU",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(1)
    check = Check(device, given.dry, given.folder)
    began = time.monotonic()
    with interpreted(given.dry):
        if given.case:
            (made,) = (case for case in check.cases() if case[0] == given.case)
            outcome(made[1], "fused", made[2])
            return 0
        if given.worker:
            print(json.dumps(train(check, given.seed, 8, 8 if given.dry else 4000, False)))
            return 0
        machine(check)
        for name in given.steps:
            if time.monotonic() - began > given.seconds:
                check.fail(f"{name} was not begun: the time was up")
                continue
            print(f"{time.monotonic() - began:6.1f} s  {name}", flush=True)
            try:
                STEPS[name](check)
            except Exception as reason:  # what the other steps find is worth having
                check.fail(f"{name}: {type(reason).__name__}: {reason}"[:400])
    check.note("seconds", time.monotonic() - began)
    print(page(check.found))
    return 1 if check.found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
