"""What a command tells of itself: the screen of --help, and completion in bash."""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from runners import ROOT, run_here

from ntm.commands import command

PROGRAMS = {f"run_{name}": name for name in ("train", "eval", "compare", "inside")}


def screen(program: str) -> list[str]:
    return command.help_screen(ROOT / "configs", PROGRAMS[program]).splitlines()


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_one_screen(program, run_command, capsys):
    assert run_command(program, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == screen(program)
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_help_names_every_choice_of_every_group_and_no_other():
    text = "\n".join(screen("run_train"))
    listed = text.split("the default first:\n")[1].split("\n\n")[0]
    groups = dict(re.findall(r"^  (\w+) +((?:.+\n? {12,})*.+)$", listed, re.MULTILINE))
    there = {
        folder.name: {path.stem for path in folder.glob("*.yaml")}
        for folder in (ROOT / "configs").iterdir()
        if folder.is_dir() and folder.name not in ("recipe", "hydra", "callbacks", "trainer")
    }
    assert {group: set(re.findall(r"\w+", choices)) for group, choices in groups.items()} == there
    default = command.compose(ROOT / "configs", "train", ["hydra.help.header=x"], with_hydra=True)
    for group, choice in default.hydra.runtime.choices.items():
        if group in groups and choice is not None:
            assert groups[group].startswith(choice), group


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_key_and_example_of_help_is_taken(program, tmp_path, capsys):
    lines = [line.strip() for line in screen(program)]
    keys = [line.split()[0] for line in lines if re.match(r"[\w.]+=\S+ {2}", line)]
    examples = [line for line in lines if line.startswith(f"python {program}.py ") and "=" in line]
    examples = [line for line in examples if "..." not in line]
    assert len(keys) >= 4
    assert len(examples) >= 3
    asked = [[key] for key in keys] + [shlex.split(line)[2:] for line in examples]
    for overrides in asked:
        with pytest.MonkeyPatch.context() as patch:
            assert run_here(patch, tmp_path, program, *overrides, "--cfg", "job") == 0, overrides
        assert capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


COMPLETES = {
    "run_train.py mod": {"model=", "model."},
    "run_train.py model=ntm_": {"model=ntm_feedforward"},
    "run_train.py model=lstm optimizer.l": {"optimizer.lr="},
    "run_train.py model=lstm model.network.hid": {"model.network.hidden_size="},
    "run_train.py logger=w": {"logger=wandb"},
    "run_eval.py memo": {"memory_size="},
    "run_compare.py stat": {"statistic="},
    "run_inside.py dra": {"draw="},
    "other.py mod": set(),
}


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What bash offers for each line, by the function that is installed."""
    folder = tmp_path_factory.mktemp("completion")
    for name in (*(f"{program}.py" for program in PROGRAMS), "configs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "other.py").write_text("open('ran', 'w')")  # somebody's script is not run
    python = shlex.quote(sys.executable)
    script = [f'eval "$({python} run_train.py -sc install=bash)"']
    script += ['read -ra rule <<< "$(complete -p python3)"', 'echo "${rule[@]}" >&2']
    for line in COMPLETES:
        words = [sys.executable, *line.split()]
        script += [
            f"COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1} COMPREPLY=()",
            f"COMP_LINE={shlex.quote(' '.join(words))} COMP_POINT=${{#COMP_LINE}}",
            "complete -p python > /dev/null && hydra_bash_completion",
            'echo "${COMPREPLY[*]}"',
        ]
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(script)],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "-F hydra_bash_completion" in done.stderr
    assert not (folder / "ran").exists()
    offered = [set(line.split()) for line in done.stdout.splitlines()]
    return dict(zip(COMPLETES, offered, strict=True))


@pytest.mark.parametrize("line", COMPLETES)
def test_bash_completes(line, completed):
    assert completed[line] == COMPLETES[line]


def test_completion_asks_without_loading_torch(tmp_path):
    code = (
        "import sys, runpy, atexit\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        "sys.argv = ['run_train.py', '-sc', 'query=bash']\n"
        f"runpy.run_path({str(ROOT / 'run_train.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"COMP_LINE": "python run_train.py optimizer=r", "COMP_POINT": "31"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["optimizer=rmsprop"]
    assert done.stderr.strip() == "False"
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_completes_a_choice(tmp_path):
    """A real bash with its own line editing, in a pseudo-terminal."""
    pty = pytest.importorskip("pty")
    for name in ("run_train.py", "configs"):
        Path(tmp_path / name).symlink_to(ROOT / name)
    shell, terminal = pty.fork()
    if shell == 0:
        os.chdir(tmp_path)
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        environment = os.environ | {"TERM": "dumb", "PATH": path}
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)

    def read_until(expected: bytes) -> None:
        said = b""
        while expected not in said.replace(b"\r", b"\n"):
            assert select.select([terminal], [], [], 120)[0], said
            said += os.read(terminal, 1024)

    try:
        os.write(terminal, b'eval "$(python run_train.py -sc install=bash)"; echo ready\n')
        read_until(b"\nready")
        os.write(terminal, b"python run_train.py model=ntm_f\t")
        read_until(b"model=ntm_feedforward")
    finally:
        os.close(terminal)
        os.waitpid(shell, 0)
