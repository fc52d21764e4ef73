"""Sweeps through submitit and Ray: real ones, here; what is killed comes back and finishes."""

from __future__ import annotations

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
from written import assert_same_tensors, checkpoint, result, untimed

from ntm.commands import command, launchers

LONGER = [
    *SMALL,
    "sequences=1920",
    "optimizer.clip_norm=null",
    "optimizer.clip_factor=null",
]


def run_and_parent(*overrides: str) -> tuple[int, int]:
    """Process that trains the run with these overrides among its own, and what started it."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    fields = [line.split() for line in listed.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, *_ in fields}
    command = {str(ROOT / "run_train.py"), *overrides}
    found = [int(pid) for pid, _, *words in fields if command <= {*words}]
    (run,) = (pid for pid in found if os.getpid() in ancestors(pid, parents))
    return run, parents[run]


def ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    line = [pid]
    while line[-1] in parents:
        line.append(parents[line[-1]])
    return line


def wait_for_validation(folder: Path, sweep: subprocess.Popen[str]) -> None:
    """Until a run has something to go on from."""
    while sweep.poll() is None and not (folder / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)


@pytest.fixture(scope="module")
def submitit_launcher() -> None:
    """Asked for before what takes a while."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")


@pytest.fixture(scope="module")
def ray_launcher() -> None:
    """Likewise."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of seed 0, never interrupted."""
    folder = tmp_path_factory.mktemp("untouched")
    status, _, err = finish(folder, "run_train", *LONGER, "optimizer.lr=0.001")
    assert status == 0, err
    return folder / "outputs" / "copy" / "ntm" / "seed_0"


def assert_as_untouched(folder: Path, untouched: Path) -> None:
    assert result(folder)["status"] == "finished"
    assert untimed(folder) == untimed(untouched)
    for name in ("last", "best"):
        one, other = checkpoint(folder, name), checkpoint(untouched, name)
        assert_same_tensors(one["state_dict"], other["state_dict"])


@pytest.mark.launchers
@pytest.mark.usefixtures("submitit_launcher")
def test_submitit_jobs_come_back_when_preempted_and_fail_alone(tmp_path, untouched):
    # One job that is pre-empted, one that cannot train, one that something kills.
    sweep = start(
        tmp_path,
        "run_train",
        "-m",
        *LONGER,
        "hydra/launcher=submitit_local",
        "name=submitit_${optimizer.lr}",
        "optimizer.lr=0.001,1e30,0.002",
    )
    preempted, failing, killed = (
        tmp_path / "outputs" / f"submitit_{rate}" / "ntm" / "seed_0"
        for rate in ("0.001", "1e+30", "0.002")
    )
    wait_for_validation(preempted, sweep)
    _, job = run_and_parent("optimizer.lr=0.001")
    os.kill(job, signal.SIGUSR2)  # what SLURM sends before it takes a node back
    wait_for_validation(killed, sweep)
    run, _ = run_and_parent("optimizer.lr=0.002")
    os.kill(run, signal.SIGKILL)
    _, err = sweep.communicate(timeout=300)

    assert sweep.returncode == 1, err
    *_, one, other, last = err.strip().splitlines()
    assert last == "1 of 3 jobs finished"
    assert "optimizer.lr=1e+30" in one
    assert "batch_size" not in one  # only what tells the jobs apart
    assert "Diverged" in result(failing)["reason"]
    assert result(failing)["reason"] in one
    assert "optimizer.lr=0.002" in other
    assert "SIGKILL" in other
    said = (preempted / "train.log").read_text()
    assert "interrupted (SIGTERM); the same command goes on" in said
    assert "going on after" in said
    assert_as_untouched(preempted, untouched)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A real Ray on this machine, with two workers of one core each."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield cluster
    cluster.shutdown()


def wait_for_nodes(count: int, address: str) -> None:
    """Until so many nodes have joined a cluster."""
    import ray

    ray.init(address=address)
    while len([node for node in ray.nodes() if node["Alive"]]) < count:
        time.sleep(0.1)
    ray.shutdown()


@pytest.mark.launchers
@pytest.mark.usefixtures("ray_launcher")
def test_a_ray_sweep_outlives_a_killed_worker(tmp_path, cluster, untouched):
    sweep = start(
        tmp_path,
        "run_train",
        "-m",
        *LONGER,
        "hydra/launcher=ray_cluster",
        f"hydra.launcher.ray.init.address={cluster.address}",
        "name=ray",
        "optimizer.lr=0.001",
        "seed=0,1,2",
    )
    folders = [tmp_path / "outputs" / "ray" / "ntm" / f"seed_{seed}" for seed in (0, 1, 2)]
    wait_for_validation(folders[0], sweep)
    _, worker = run_and_parent("name=ray", "seed=0")
    os.kill(worker, signal.SIGKILL)
    _, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, err
    assert "3 of 3 jobs finished" in err
    assert [result(folder)["status"] for folder in folders] == ["finished"] * 3
    assert "going on after" in (folders[0] / "train.log").read_text()
    assert_as_untouched(folders[0], untouched)


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
        wait_for_nodes(2, cluster.address)
        status, _, err = finish(
            tmp_path,
            "run_train",
            "-m",
            *SMALL,
            "hydra/launcher=ray_cluster",
            f"hydra.launcher.ray.init.address={cluster.address}",
            "seed=0,1",
        )
    finally:
        node.terminate()
        node.wait(timeout=300)
    assert status == 2, err
    assert "all 2 nodes share" in err.strip().splitlines()[-1]
    assert str(tmp_path) in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (0, "", 0),
        (1, "failed: RuntimeError: no luck today", 1),
        (1, "held: outputs/copy/ntm/seed_0 is held by process 7", 0),
        (2, "folder must be free", 2),
        (-9, "killed by SIGKILL; last it said: held: by whom", 1),
        (130, "interrupted", 130),
    ],
)
def test_what_a_job_comes_to_in_a_sweep(status, reason, expected):
    assert launchers.Outcome(["seed=0"], status, reason).exit_status == expected


MISSING = {"slurm": "slurm", "submitit_local": "slurm", "ray_cluster": "ray", "ray": "ray"}


@pytest.mark.parametrize(("launcher", "extra"), MISSING.items(), ids=MISSING)
def test_a_launcher_that_is_not_installed_names_its_install(launcher, extra, tmp_path):
    code = (
        "import sys, runpy, atexit\n"
        "sys.modules['hydra_plugins'] = None  # as where no plugin is installed\n"
        f"sys.argv = ['run_train.py', '-m', 'hydra/launcher={launcher}', 'seed=0,1']\n"
        f"runpy.run_path({str(ROOT / 'run_train.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "hydra/launcher" in done.stderr
    assert f"pip install -e '.[{extra}]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_without_a_sweep_is_refused(run_command, tmp_path, capsys):
    assert run_command("run_train", "hydra/launcher=ray_cluster") == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "-m" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.launchers
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hydra/launcher=slurm"], ["sbatch", "submitit_local"]),
        (["hydra/launcher=slurm", "hydra.launcher.timeout_min=long"], ["timeout_min", "long"]),
        (["hydra/launcher=ray_cluster"], ["ray start --head"]),
    ],
    ids=["no SLURM", "wrong type", "no cluster"],
)
def test_a_launcher_that_cannot_start_is_one_line(
    overrides, words, run_command, tmp_path, capfd, monkeypatch
):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # where nothing listens
    assert run_command("run_train", "-m", *overrides, "seed=0,1") == 2
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.launchers
def test_the_slurm_configuration_asks_for_what_it_says():
    """What SLURM would be told, by submitit's own reading of our configuration."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    from submitit.slurm.slurm import _make_sbatch_string

    settings = ["hydra/launcher=slurm", "threads=3", "hydra.launcher.partition=long"]
    launcher = command.compose(ROOT / "configs", "train", settings, with_hydra=True).hydra.launcher
    asked = {
        key: launcher[key]
        for key in ("partition", "nodes", "signal_delay_s", "cpus_per_task", "array_parallelism")
    }
    text = _make_sbatch_string(
        command="python",
        folder="logs",
        map_count=20,
        time=launcher.timeout_min,
        ntasks_per_node=launcher.tasks_per_node,
        additional_parameters=dict(launcher.additional_parameters),
        **asked,
    )
    for line in (
        "--requeue",
        "--time=240",
        "--ntasks-per-node=1",
        "--nodes=1",
        "--cpus-per-task=3",
        "--partition=long",
        "--signal=USR2@60",
        "--open-mode=append",
    ):
        assert f"#SBATCH {line}\n" in text
    assert launcher.max_num_timeout > 0
