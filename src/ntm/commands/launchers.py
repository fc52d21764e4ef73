"""Jobs of a sweep in processes of their own, here or where one of Hydra's launchers puts them.

A launcher's job is a small process that starts the run as a command of its own and waits for it:
a run that dies harms nothing else, `sys.argv` is that of the run alone, and neither Lightning nor
the launcher sees the signals of the other. Knows Hydra, not torch.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ntm.commands.configuration import ConfigurationError, one_line

INSTALLS = {"submitit": "slurm", "ray": "ray"}
"""Beginning of a launcher's name -> the optional install that brings it."""
WATCHED = "NTM_ENDS_WITH_STDIN"
"""In the environment of a process that ends when whoever started it is gone."""
SECONDS_TO_STOP = 30


class Outcome(NamedTuple):
    """How a job ended."""

    overrides: list[str]
    """What it was."""
    status: int
    """Its exit status; negative, the signal that killed it."""
    reason: str
    """The last line it wrote to stderr, or that it was killed."""

    @property
    def exit_status(self) -> int:
        """The status, that of a failed run where a signal killed it; 0 for one that is held."""
        return 0 if self.held else self.status if self.status >= 0 else 1

    @property
    def held(self) -> bool:
        """Whether it was left to another process, which is at it already."""
        return self.status == 1 and self.reason.startswith("held: ")


@dataclass(frozen=True)
class OwnProcess:
    """Hydra's task function that runs a job as a command of its own.

    Args:
        program: Absolute path of the script.
        folder: Where the command was given; run folders are relative to it.

    """

    program: str
    folder: str

    def __call__(self, _config: DictConfig, job: Sequence[str] | None = None) -> Outcome:
        """Run a job, given as its overrides or else the one that Hydra has set; wait for it."""
        overrides = list(HydraConfig.get().overrides.task if job is None else job)
        try:
            status, reason = self._run(overrides)
        except OSError as error:  # no such folder or program on this machine
            status, reason = 1, one_line(error)
        if status < 0:
            reason = f"killed by {signal.Signals(-status).name}; last it said: {reason}"
        return Outcome(overrides, status, reason)

    def _run(self, overrides: list[str]) -> tuple[int, str]:
        # Lightning leaves SLURM alone in a job of this name: the launcher alone requeues.
        environment = os.environ | {WATCHED: "1", "SLURM_JOB_NAME": "interactive"}
        process = subprocess.Popen(
            [sys.executable, self.program, *overrides],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # signals to the job's group are the launcher's
        )
        try:
            return _pass_on(process)
        except BaseException:  # pre-empted, or asked to stop
            process.terminate()
            late = threading.Timer(SECONDS_TO_STOP, os.killpg, (process.pid, signal.SIGKILL))
            late.start()
            _pass_on(process)
            late.cancel()
            raise


def _pass_on(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Repeat what a process says until it ends; its exit status and last line."""
    assert process.stderr is not None
    last = ""
    for line in process.stderr:
        print(line, end="", file=sys.stderr, flush=True)
        last = line.strip() or last
    return process.wait(), last


def is_job() -> bool:
    """Whether this process is a run that a launcher's job started."""
    return WATCHED in os.environ


def end_with_parent() -> None:
    """In a run that a launcher's job started: end with it, however it ends."""
    if is_job():
        threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    os.read(0, 1)  # nothing ever comes; it returns when the other end is closed
    os.killpg(0, signal.SIGKILL)


def is_basic(launcher: DictConfig) -> bool:
    """Whether a launcher is Hydra's own: one job after another, in this process."""
    return str(launcher.get("_target_", "")).startswith("hydra._internal.")


def missing(option: str) -> str | None:
    """What to install for a launcher that Hydra does not know; None if that is not it."""
    for name, extra in INSTALLS.items():
        if option.startswith(name):
            return f"hydra/launcher needs the {name} launcher of Hydra: pip install -e '.[{extra}]'"
    return None


def check_launcher(launcher: DictConfig, folder: str) -> None:
    """Refuse a launcher that cannot start jobs, or whose jobs could not write their folders.

    Args:
        launcher: Its configuration, ``hydra.launcher``.
        folder: Absolute; what all jobs must see.

    Raises:
        ConfigurationError: Says what is missing; nothing is written.

    """
    check = _CHECKS.get(str(launcher.get("_target_", "")).rpartition(".")[2])
    if check is not None:
        check(launcher, folder)


def _check_slurm(_launcher: DictConfig, _folder: str) -> None:
    if shutil.which("sbatch") is None:
        raise ConfigurationError(
            "hydra/launcher=slurm must be started where SLURM's sbatch is, got a machine without; "
            "hydra/launcher=submitit_local tries the same on this one"
        )


def _check_ray(launcher: DictConfig, folder: str) -> None:
    import ray
    from omegaconf import OmegaConf

    arguments: Any = OmegaConf.to_container(launcher.ray.init, resolve=True)
    try:
        _knock(str(arguments.get("address")))
        ray.init(**arguments)
    except Exception as error:
        raise ConfigurationError(
            "hydra/launcher=ray_cluster must reach a Ray cluster, which `ray start --head` starts "
            f"and hydra.launcher.ray.init.address=… names, got: {one_line(error)}"
        ) from error
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1:
        _check_shared(folder, nodes)


def _knock(address: str) -> None:
    """Raise an OSError where nothing listens; Ray itself would try for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _check_shared(folder: str, nodes: Sequence[dict[str, Any]]) -> None:
    """Refuse nodes that do not see what this process writes into a folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    seen: Any = ray.remote(num_cpus=0)(
        lambda path: os.path.exists(path)
    )  # no file of ours is needed
    blind = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".") as sign:
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            if not ray.get(seen.options(scheduling_strategy=there).remote(sign.name)):
                blind.append(node["NodeManagerAddress"])
    if blind:
        raise ConfigurationError(
            f"hydra/launcher=ray_cluster must be started in a folder that all {len(nodes)} nodes "
            f"share, got {folder}, which {', '.join(blind)} cannot see; no file would come back"
        )


_CHECKS: dict[str, Callable[[DictConfig, str], None]] = {
    "SlurmLauncher": _check_slurm,
    "RayLauncher": _check_ray,
}
"""Class of a launcher -> what it needs beside its install."""
