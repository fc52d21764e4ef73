"""Sweeps through submitit and Ray: real ones, here; what is killed comes back and finishes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runners import ROOT, SMALL, finish, start
from test_training import assert_same_tensors, checkpoint, rows, untimed

LONGER = [*SMALL, "sequences=1920", "callbacks.pictures_every=null"]


def parents(*words: str) -> dict[int, int]:
    """Processes with all these words in their command line, and their parents."""
    lines = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    fields = [line.split(None, 2) for line in lines if all(word in line for word in words)]
    return {int(pid): int(parent) for pid, parent, _ in fields}


def wait_for_validation(folder: Path, sweep: subprocess.Popen[str]) -> None:
    """Until a run has something to go on from."""
    while sweep.poll() is None and not (folder / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)


def assert_finished(folder: Path) -> None:
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"
    assert [int(row["sequences"]) for row in rows(folder)] == list(range(96, 1921, 96))


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of seed 1, never interrupted."""
    folder = tmp_path_factory.mktemp("untouched")
    status, _, err = finish(folder, "run_train", *LONGER, "seed=1")
    assert status == 0, err
    return folder / "outputs" / "copy" / "ntm" / "seed_1"


def assert_as_untouched(folder: Path, untouched: Path) -> None:
    assert untimed(folder) == untimed(untouched)
    for name in ("last", "best"):
        one, other = checkpoint(folder, name), checkpoint(untouched, name)
        assert_same_tensors(one["state_dict"], other["state_dict"])


@pytest.mark.launchers
def test_a_preempted_submitit_job_comes_back_and_finishes(tmp_path, untouched):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    # The second job asks for a folder that cannot be, once it has been checked.
    sweep = start(
        tmp_path, "run_train", "-m", *LONGER, "hydra/launcher=submitit_local", "seed=0,1"
    )
    kept, preempted = (tmp_path / "outputs" / "copy" / "ntm" / f"seed_{n}" for n in (0, 1))
    wait_for_validation(preempted, sweep)
    (job,) = parents("run_train.py", "seed=1", "sequences=1920").values() - {sweep.pid}
    os.kill(job, signal.SIGUSR2)  # what SLURM sends before it takes a node back
    _, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 0, err
    assert err.strip().splitlines()[-1] == "2 of 2 jobs finished"
    assert_finished(kept)
    assert_finished(preempted)
    said = (preempted / "train.log").read_text()
    assert "interrupted (SIGTERM); the same command goes on" in said
    assert "going on after" in said
    assert "going on after" not in (kept / "train.log").read_text()
    assert_as_untouched(preempted, untouched)


@pytest.mark.launchers
def test_a_killed_or_failing_job_fails_alone(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    # One learning rate that no training survives, one run that something kills.
    rates = "optimizer.lr=1e-3,1e30,2e-3"
    sweep = start(
        tmp_path,
        "run_train",
        "-m",
        *LONGER,
        "hydra/launcher=submitit_local",
        "optimizer.clip_norm=null",
        "optimizer.clip_factor=null",
        "name=${optimizer.lr}",
        rates,
    )
    killed = tmp_path / "outputs" / "0.002" / "ntm" / "seed_0"
    wait_for_validation(killed, sweep)
    for run in parents("run_train.py", "optimizer.lr=0.002", f"{tmp_path}"):
        os.kill(run, signal.SIGKILL)
    _, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 1, err
    lines = err.strip().splitlines()
    assert lines[-1] == "1 of 3 jobs finished"
    assert any("optimizer.lr=1e+30" in line and "Diverged" in line for line in lines)
    assert any("optimizer.lr=0.002" in line and "SIGKILL" in line for line in lines)
    assert_finished(tmp_path / "outputs" / "0.001" / "ntm" / "seed_0")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A real Ray on this machine, with two workers of one core each."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield cluster
    cluster.shutdown()


@pytest.mark.launchers
def test_a_ray_sweep_outlives_a_killed_worker(tmp_path, cluster, untouched):
    sweep = start(
        tmp_path,
        "run_train",
        "-m",
        *LONGER,
        "hydra/launcher=ray",
        f"hydra.launcher.ray.init.address={cluster.address}",
        "seed=0,1,2",
    )
    folders = [tmp_path / "outputs" / "copy" / "ntm" / f"seed_{seed}" for seed in (0, 1, 2)]
    wait_for_validation(folders[1], sweep)
    (worker,) = parents("run_train.py", "seed=1", "sequences=1920").values() - {sweep.pid}
    os.kill(worker, signal.SIGKILL)
    _, err = sweep.communicate(timeout=180)
    assert sweep.returncode == 0, err
    assert "3 of 3 jobs finished" in err
    for folder in folders:
        assert_finished(folder)
    assert "going on after" in (folders[1] / "train.log").read_text()
    assert_as_untouched(folders[1], untouched)


@pytest.mark.launchers
def test_ray_nodes_without_a_shared_folder_are_refused(tmp_path, cluster):
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*private, "true"], check=False).returncode:
        pytest.skip("no node with a file system of its own can be made here")
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}"]
    hidden = f"mount -t tmpfs none {tmp_path} && exec {' '.join(ray)} --num-cpus=1 --block"
    node = subprocess.Popen(
        [*private, "sh", "-c", hidden],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        cluster.wait_for_nodes  # noqa: B018
        wait_for_second_node(cluster.address)
        status, _, err = finish(
            tmp_path,
            "run_train",
            "-m",
            *SMALL,
            "hydra/launcher=ray",
            f"hydra.launcher.ray.init.address={cluster.address}",
            "seed=0,1",
        )
    finally:
        node.terminate()
        node.wait(timeout=60)
    assert status == 2, err
    assert "all 2 nodes share" in err.strip().splitlines()[-1]
    assert str(tmp_path) in err
    assert list(tmp_path.iterdir()) == []
