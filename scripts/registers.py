"""What the loops for GPUs need of a processor, compiled for it without having one.

python scripts/registers.py
python scripts/registers.py --capability 90 --controllers lstm --sizes 128 20 1 1 1 --hidden 100
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from ntm.kernels.conventions import STRIDE, TANH
from ntm.kernels.cuda import bounds, loops
from ntm.machine.addressing import NORM_FLOOR

LSTM_ALONE = {"by_hidden", "bias_hidden", "gates", "cells", "dhidden", "dcell"}


def compiled(function: Any, constants: dict[str, Any], capability: int) -> Any:
    """A loop for a compute capability, as it is compiled for tensors where torch puts them."""
    signature, attributes = {}, {}
    anywhere = loops.OF_EVERY_LENGTH["do_not_specialize_on_alignment"]
    for place, name in enumerate(function.arg_names):
        missing = name in LSTM_ALONE and not constants["LSTM"]
        if missing or name in constants:
            signature[name] = "constexpr"
        elif name in loops.OF_EVERY_LENGTH["do_not_specialize"]:
            signature[name] = "i32"
        else:
            signature[name] = "*fp32"
            if name not in anywhere:
                attributes[(place,)] = [["tt.divisibility", 16]]
    given = {
        (place,): constants.get(name)
        for place, name in enumerate(function.arg_names)
        if signature[name] == "constexpr"
    }
    source = triton.compiler.ASTSource(function, signature, given, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": bounds.WARPS})


def needs(kernel: Any, capability: int) -> tuple[int, int, int]:
    """Registers of a thread, bytes it spills, and bytes of shared memory of a program."""
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "loop.ptx"
        code.write_text(kernel.asm["ptx"])
        architecture = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
        command = [str(ptxas), "-v", f"-arch={architecture}", str(code), "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = (
        int(re.findall(pattern, said)[0])
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )
    return registers, spilled, kernel.metadata.shared


def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--controllers", nargs="+", default=["lstm", "feedforward"])
    parser.add_argument("--sizes", type=int, nargs=5, default=[128, 20, 1, 1, 1],
                        metavar=tuple("NMRWS"))  # fmt: skip
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--inputs", type=int, default=9)
    parser.add_argument("--block", type=int, default=1, help="sequences of a program")
    parser.add_argument("--write-first", action="store_true")
    asked = parser.parse_args(arguments)
    N, M, R, W, S = asked.sizes
    shape = asked.hidden, N, M, R, W, 2 * S + 1
    print("| capability | controller | loop | registers | spilled | shared |")
    print("|---|---|---|---|---|---|")
    for capability in asked.capability:
        for controller in asked.controllers:
            constants = {
                "LSTM": controller == "lstm", "ACTIVATION": TANH, "KEEP": True, "EVERY": STRIDE,
                "LEAST": NORM_FLOOR**2, "I": asked.inputs, "H": asked.hidden, "N": N, "M": M,
                "R": R, "W": W, "SHIFTS": 2 * S + 1, "KEY": TANH, "ADD": TANH,
                "READ_FIRST": not asked.write_first, **bounds.padded(*shape), "BLOCK": asked.block,
            }  # fmt: skip
            for loop in (loops.forward, loops.backward):
                numbers = needs(compiled(loop, constants, capability), capability)
                told = " | ".join(map(str, numbers))
                print(f"| {capability} | {controller} | {loop.__name__} | {told} |", flush=True)


if __name__ == "__main__":
    main()
