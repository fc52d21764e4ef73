"""Imports go one way, and only what is needed is loaded."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ntm

ROOT = Path(ntm.__file__).parent

MAY_IMPORT: dict[str, set[str]] = {
    # What can be lifted into another project.
    "checks": set(),
    "tasks": {"checks"},
    "kernels": set(),
    "machine": {"checks", "kernels"},
    "baselines": {"checks"},
    "metrics": {"tasks"},
    "accelerators": set(),
    # What is asked for, where it lies, and how it looks.
    "commands": set(),
    "folders": {"commands"},
    "views": {
        "accelerators",
        "baselines",
        "commands",
        "folders",
        "machine",
        "metrics",
        "tasks",
    },
    # What trains.
    "training": {
        "accelerators",
        "checks",
        "commands",
        "folders",
        "machine",
        "metrics",
        "tasks",
        "views",
    },
    # What reads results reads run folders, never a live model.
    "comparison": {"commands", "folders", "views"},
    # The front door; its imports wait until they are asked for.
    "": {"baselines", "machine", "views"},
}
"""Module or package of ntm -> what else of ntm it may import, at any place in its files."""

PLAIN = ("tasks", "kernels", "machine", "baselines", "checks", "metrics", "accelerators")
"""What knows neither Lightning nor Hydra."""
FRAMEWORKS = {"pytorch_lightning", "lightning", "lightning_fabric", "hydra", "omegaconf"}


def module_name(path: Path) -> str:
    """ntm.machine.heads for src/ntm/machine/heads.py, ntm.machine for its __init__.py."""
    parts = ["ntm", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(name: str) -> set[str]:
    """Every module that a file names in an import, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, base] if base else up)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in FILES else base)
    return found


def own(name: str) -> set[str]:
    """Those of them that are files of ntm."""
    return {other for other in imported(name) if other in FILES}


def part(name: str) -> str:
    """The module or package of ntm that a file belongs to: machine for ntm.machine.heads."""
    return ".".join(name.split(".")[1:2])


def test_the_table_knows_every_module():
    unknown = {part(name) for name in FILES} - set(MAY_IMPORT)
    assert not unknown, f"say in MAY_IMPORT what {unknown} may import"


def test_the_table_itself_goes_one_way():
    order: list[str] = []
    left = dict(MAY_IMPORT)
    while left:
        free = [name for name, needs in left.items() if needs <= set(order)]
        assert free, f"{set(left)} import each other"
        order += free
        for name in free:
            del left[name]


@pytest.mark.parametrize("name", FILES)
def test_imports_only_what_the_table_allows(name):
    allowed = MAY_IMPORT.get(part(name), set()) | {part(name)}
    assert {part(other) for other in own(name)} <= allowed


@pytest.mark.parametrize("name", [name for name in FILES if part(name) in PLAIN])
def test_knows_neither_lightning_nor_hydra(name):
    assert not {other.split(".")[0] for other in imported(name)} & FRAMEWORKS


def test_configuration_and_command_do_not_name_torch():
    names = [name for name in FILES if part(name) in ("commands", "checks")]
    for name in [*names, "ntm.training", "ntm.training.sweeps"]:
        used = {other.split(".")[0] for other in imported(name)}
        assert not used & {"torch", "pytorch_lightning", "torchmetrics"}


def test_no_cycles():
    """Depth first; a module met again while it is still open has imported itself."""
    done: set[str] = set()

    def visit(name: str, open_: tuple[str, ...]) -> None:
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name not in done:
            for other in sorted(own(name)):
                visit(other, (*open_, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


LOADED = "import sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"


def run(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout.split()


def test_the_package_alone_loads_almost_nothing():
    loaded = run(f"import ntm; {LOADED}")
    assert not {"torch", "numpy", "pytorch_lightning", "hydra"} & set(loaded)


def test_a_wrong_command_can_be_answered_without_torch():
    loaded = run(f"import ntm, ntm.training.sweeps, ntm.commands.command; {LOADED}")
    assert not {"torch", "pytorch_lightning", "lightning_fabric", "torchmetrics"} & set(loaded)
    assert "hydra" in loaded


def test_a_machine_loads_neither_lightning_nor_hydra():
    code = (
        "import ntm, torch; net = ntm.NTM(3, 2, memory_size=5, word_size=4); "
        "logits, state = net(torch.zeros(4, 1, 3)); assert logits.shape == (4, 1, 2); "
        "ntm.LSTM(3, 2, hidden_size=4); "
    )
    assert not FRAMEWORKS & set(run(code + LOADED))


def test_every_public_name_is_there():
    for name in ntm.__all__:
        assert getattr(ntm, name).__name__ == name
    assert set(ntm.__all__) <= set(dir(ntm))
    with pytest.raises(AttributeError, match="'ntm' has no attribute 'Nothing'"):
        _ = ntm.Nothing
