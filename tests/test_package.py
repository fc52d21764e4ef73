"""The wheel carries the library, and the library works without the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile

import pytest
from runners import ROOT

PROGRAM = """
import torch, ntm, os
assert os.path.dirname(ntm.__file__) == os.path.join(os.environ["UNPACKED"], "ntm"), ntm.__file__
torch.manual_seed(0)
net = ntm.NTM(input_size=9, output_size=8, engine="fused")
logits, state = net(torch.zeros(3, 2, 9))
logits, state = net(torch.zeros(1, 2, 9), state)
net.resize_memory(200)
loss = net(torch.zeros(3, 2, 9))[0].sum()
loss.backward()
baseline = ntm.LSTM(9, 8)
gradient = net.emit.weight.grad.double().abs().sum().item()
print(tuple(logits.shape), net.initial_state(1).memory.shape[1], gradient.hex())
"""


def test_the_pythons_that_are_promised_are_those_that_are_tested():
    tested = re.search(r"for version in ((?:3\.\d+ ?)+);", (ROOT / ".ci" / "run").read_text())
    assert tested is not None
    first, *_, last = tested[1].split()
    after = f"3.{int(last.partition('.')[2]) + 1}"
    required = f'requires-python = ">={first},<{after}"'
    assert required in (ROOT / "pyproject.toml").read_text()
    assert f"Python {first} to {last} (" in (ROOT / "README.md").read_text()
    running = sys.version_info[:2]
    assert f"{running[0]}.{running[1]}" in tested[1].split()


@pytest.mark.slow
def test_the_library_works_from_its_wheel_also_where_several_processes_compile_at_once(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("ntm-*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(unpacked)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "configs", "run_")) for name in names)
    environment = {"PYTHONPATH": str(unpacked), "UNPACKED": str(unpacked)}
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}  # a machine that has compiled nothing
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=tmp_path,
            env=os.environ | environment | cache,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    assert len({out for out, _ in said}) == 1, said
    assert said[0][0].startswith("(1, 2, 8) 200 0x")
