"""Run folders from somebody else: what they name is not run."""

from __future__ import annotations

import collections
import io
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runners import finish

import ntm
from ntm.commands.configuration import ConfigurationError
from ntm.commands.trust import TRUSTED, check_trusted
from ntm.comparison.reading import read_run
from ntm.folders.runs import RunFolder, load_checkpoint
from ntm.tasks import Copy
from ntm.views.evaluation import restore

TASK = {"_target_": "ntm.tasks.Copy", "name": "copy", "bits": 8, "min_length": 1, "max_length": 6}
NETWORK = {
    "_target_": "ntm.NTM",
    "memory_size": 8,
    "word_size": 4,
    "controller": {"_target_": "ntm.LSTMController", "_partial_": True, "hidden_size": 5},
}


def a_run(folder: Path, task: Any = TASK, network: Any = NETWORK, **more: Any) -> RunFolder:
    """A folder as a run leaves it, as far as an evaluation asks."""
    net = ntm.NTM(9, 8, 8, 4, controller=lambda input_size: ntm.LSTMController(input_size, 5))
    (folder / "checkpoints").mkdir(parents=True)
    weights = {f"network.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 0}, folder / "checkpoints" / "best.ckpt")
    config = {
        "seed": 0,
        "task": task,
        "model": {"name": "ntm", "network": network},
        "evaluation": {"at": [3], "kinds": ["drawn"], "sequences": 2},
        **more,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return RunFolder(folder)


def touching(folder: Path) -> tuple[Path, str]:
    """A file that is there once a stranger's code has run, and code that makes it."""
    mark = folder / "mark"
    return mark, f"open({str(mark)!r}, 'w').close()"


# --- What a configuration names

HOSTILE: dict[str, dict[str, Any]] = {
    "exec": {"_target_": "builtins.exec", "_args_": ["CODE"]},
    "eval": {"_target_": "builtins.eval", "_args_": ["CODE"]},
    "system": {"_target_": "os.system", "command": "touch MARK"},
    "Popen": {"_target_": "subprocess.Popen", "args": ["touch", "MARK"]},
    "touch": {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path"}},
    "partial": {"_target_": "os.system", "_partial_": True, "command": "touch MARK"},
    "compiled": {
        "_target_": "torch.utils.cpp_extension.load_inline",
        "name": "x",
        "cpp_sources": "int f() { return 0; }",
    },
    "torch's pickles": {"_target_": "torch.load", "f": "MARK", "weights_only": False},
    "torch's hub": {"_target_": "torch.hub.load", "repo_or_dir": "MARK", "model": "x"},
    "by Hydra": {"_target_": "hydra.utils.get_method", "path": "os.system"},
    "an instance by Hydra": {"_target_": "hydra.utils.instantiate", "config": {}},
    "through ours": {"_target_": "ntm.kernels.compiling.subprocess.run", "args": ["touch", "MARK"]},
    "through a task": {"_target_": "ntm.tasks.sampling.np.load", "file": "MARK"},
    "beside a task": {"_target_": "ntm.tasks.copy.np.memmap", "filename": "MARK", "mode": "w+"},
    "through torch": {"_target_": "torch.nn.Linear.__init__.__globals__.x"},
    "a prefix": {"_target_": "torch.nn.Linearity"},
    "a suffix": {"_target_": "my.ntm.NTM"},
    "a logger": {
        "_target_": "ntm.training.WandbLog",
        **{"folder": "MARK", "save_dir": "MARK", "project": "x", "run_name": "x"},
    },
    "another logger": {
        "_target_": "ntm.training.MLflowLog",
        **{"folder": "MARK", "tracking_uri": "file:MARK", "experiment": "x", "run_name": "x"},
    },
    "no name": {"_target_": ["os.system"]},
    "nothing": {"_target_": None},
}


def armed(value: Any, mark: Path, code: str) -> Any:
    """The description, with the file and the code in their places."""
    if isinstance(value, dict):
        return {name: armed(item, mark, code) for name, item in value.items()}
    if isinstance(value, list):
        return [armed(item, mark, code) for item in value]
    return (
        value.replace("MARK", str(mark)).replace("CODE", code) if isinstance(value, str) else value
    )


PLACES: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "task": lambda node: (node, NETWORK),
    "inside the task": lambda node: ({**TASK, "bits": node}, NETWORK),
    "model.network": lambda node: (TASK, node),
    "model.network.controller": lambda node: (TASK, {**NETWORK, "controller": node}),
    "in a list": lambda node: (TASK, {**NETWORK, "x": [1, {"y": node}]}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("which", HOSTILE)
def test_what_a_folder_names_is_not_built(which, place, tmp_path):
    mark, code = touching(tmp_path)
    task, network = PLACES[place](armed(HOSTILE[which], mark, code))
    folder = a_run(tmp_path / "run", task, network)
    refused = r"^(task|model\.network)\S* of a run folder (names .* not built|is not followed)"
    with pytest.raises(ConfigurationError, match=refused) as caught:
        restore(folder, "best")
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("which", HOSTILE)
def test_no_logger_of_a_folder_is_built(which, tmp_path):
    mark, code = touching(tmp_path)
    logger, other = (armed(HOSTILE[which], mark, code) for _ in range(2))
    folder = a_run(tmp_path / "run", logger={"own": logger}, trainer={"logger": other})
    assert isinstance(restore(folder, "best")[1], ntm.NTM)
    notes: list[str] = []
    assert read_run(folder.path, "run", notes) is not None
    assert not notes
    assert not mark.exists()


@pytest.mark.parametrize("key", ["_args_", "_recursive_", "_mode_", "__class__"])
def test_hydras_other_keys_are_not_followed(key):
    with pytest.raises(ConfigurationError, match=rf"^task\.{key} of a run folder is not followed"):
        check_trusted({**TASK, key: [1]}, "task")


def test_the_refusal_says_how_to_allow_it(tmp_path):
    folder = a_run(tmp_path / "run", {**TASK, "_target_": "test_strangers.Mine"})
    with pytest.raises(ConfigurationError, match=r"'allow=\[test_strangers.Mine\]'"):
        ntm.load(folder.path)
    net = ntm.load(folder.path, allow=["test_strangers.Mine"])
    assert isinstance(net, ntm.NTM)


class Mine(Copy):
    """A task of a reader's own."""


def test_what_this_project_writes_is_built(tmp_path):
    task, network = restore(a_run(tmp_path / "run"), "best")
    assert (type(task), type(network)) == (Copy, ntm.NTM)


def test_everything_on_the_list_is_there():
    import hydra.utils

    from ntm.commands.configuration import MOVED

    for name in TRUSTED:
        assert callable(hydra.utils.get_object(MOVED.get(name, name))), name


def test_a_command_refuses_it_in_one_line_and_takes_it_when_allowed(tmp_path):
    folder = a_run(tmp_path / "run", {**TASK, "_target_": "test_strangers.Mine"})
    asked = f"run={folder.path}"
    status, out, err = finish(tmp_path, "run_eval", asked)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "allow=[test_strangers.Mine]" in err
    assert not (folder.path / "eval").exists()


# --- What it would have looked up


@pytest.mark.parametrize(
    "text",
    ["x: ${oc.env:HOME}", "x: ${hydra:runtime.cwd}", "x: ${y}\ny: 1", "x: 'a ${oc.env:HOME} b'"],
)
def test_interpolations_are_not_followed(text, tmp_path):
    folder = a_run(tmp_path / "seed_0")
    with open(folder.config, "a") as file:
        file.write(text)
    for read in (folder.read_config, folder._read_values):
        with pytest.raises(ConfigurationError, match="holds an interpolation"):
            read()
    notes: list[str] = []
    read_run(folder.path, "seed_0", notes)
    assert any("interpolation" in note for note in notes)


def test_a_few_lines_cannot_stand_for_more_than_memory_holds(tmp_path):
    folder = a_run(tmp_path / "run")
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for name, before in zip("bcdefghij", "abcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    folder.config.write_text("\n".join(lines))
    for read in (folder.read_config, folder._read_values):
        with pytest.raises(ConfigurationError, match="holds references"):
            read()


# --- Pickles that run a command


class Calls:
    """A pickle of this calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Builds:
    """A pickle of this sets a state by a function, as one of the last steps of reading it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        function, arguments = self.call
        return collections.OrderedDict, (), None, iter(()), iter([(1, Calls(function, *arguments))])


def by_name(module: str, name: str, argument: str) -> bytes:
    """Opcodes alone: the function is never imported here."""
    return b"c" + f"{module}\n{name}\n".encode() + b"(V" + argument.encode() + b"\ntR."


def stacked(module: str, name: str, argument: str) -> bytes:
    """The same by STACK_GLOBAL, whose names are strings that may be put together."""
    names = b"".join(b"\x8c" + bytes([len(n)]) + n.encode() for n in (module, name))
    text = argument.encode()
    return b"\x80\x04" + names + b"\x93X" + len(text).to_bytes(4, "little") + text + b"\x85R."


def in_an_archive(content: bytes) -> bytes:
    """As torch writes it: a ZIP file whose data.pkl is read."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", sys.byteorder)
    return file.getvalue()


def torchs(value: Any) -> bytes:
    """As `torch.save` writes it."""
    file = io.BytesIO()
    torch.save({"state_dict": {"network.x": torch.zeros(2)}, "epoch": value}, file)
    return file.getvalue()


def legacy(value: Any) -> bytes:
    """As torch wrote it before there were archives."""
    file = io.BytesIO()
    torch.save({"state_dict": value}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def nested(code: str) -> bytes:
    """A pickle inside a storage, which torch would read in turn."""
    inner = pickle.dumps(Calls(exec, code))
    return torchs(Calls(torch.storage._load_from_bytes, inner))


PICKLES: dict[str, Callable[[str, Path], bytes]] = {
    "exec": lambda code, _: torchs(Calls(exec, code)),
    "eval": lambda code, _: torchs(Calls(eval, code)),
    "system": lambda _, mark: torchs(Calls(__import__("os").system, f"touch {mark}")),
    "Popen": lambda _, mark: torchs(Calls(__import__("subprocess").Popen, ["touch", str(mark)])),
    "open": lambda _, mark: torchs(Calls(open, str(mark), "w")),
    "as a state": lambda code, _: torchs(Builds(exec, code)),
    "runpy": lambda code, _: torchs(Calls(__import__("runpy")._run_code, code, {})),
    "timeit": lambda code, _: torchs(Calls(__import__("timeit").timeit, "0", code)),
    "attributes": lambda code, _: torchs(
        Calls(getattr(__import__("builtins"), "exec"), code)  # noqa: B009
    ),
    "a nested pickle": lambda code, _: nested(code),
    "pickle's own loads": lambda code, _: torchs(
        Calls(pickle.loads, pickle.dumps(Calls(exec, code)))
    ),
    "before archives": lambda code, _: legacy(Calls(exec, code)),
    "a bare pickle": lambda code, _: pickle.dumps(Calls(exec, code)),
    "opcodes": lambda code, _: by_name("builtins", "exec", code),
    "opcodes in an archive": lambda code, _: in_an_archive(by_name("builtins", "exec", code)),
    "put together": lambda code, _: in_an_archive(stacked("builtins", "exec", code)),
    "posix": lambda _, mark: in_an_archive(stacked("posix", "system", f"touch {mark}")),
    "numpy": lambda code, _: in_an_archive(
        by_name("numpy.testing._private.utils", "runstring", code)
    ),
    "profile": lambda code, _: in_an_archive(by_name("profile", "run", code)),
    "pdb": lambda code, _: in_an_archive(by_name("pdb", "run", code)),
}


@pytest.mark.parametrize("way", PICKLES)
def test_a_checkpoint_that_runs_a_command_is_refused(way, tmp_path):
    mark, code = touching(tmp_path)
    path = tmp_path / "best.ckpt"
    path.write_bytes(PICKLES[way](code, mark))
    with pytest.raises(ConfigurationError, match=f"checkpoint {path} is damaged"):
        load_checkpoint(path)
    assert not mark.exists()


def test_one_of_these_pickles_would_have_run_it(tmp_path):
    """So that the test above is no test of nothing."""
    mark, code = touching(tmp_path)
    torch.load(io.BytesIO(PICKLES["exec"](code, mark)), weights_only=False)
    assert mark.exists()


def test_a_command_goes_on_from_no_such_checkpoint(tmp_path):
    """Training reads last.ckpt by Lightning, and starts from best.ckpt of another run."""
    mark, code = touching(tmp_path)
    folder = a_run(tmp_path / "run")
    folder.best.write_bytes(PICKLES["exec"](code, mark))
    status, _, err = finish(tmp_path, "run_train", f"init_from={folder.path}", "sequences=8")
    assert status == 2
    assert err.count("\n") == 1
    assert "is damaged" in err
    assert not mark.exists()
