"""Every key of configs/ with its default and what it means: the files' own comments, as Markdown.

A key without a comment ends the build. In a page one of these stands in for tables::

    <!-- settings: keys -->  <!-- settings: recipe -->  <!-- settings: experiment -->
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

PLACE = re.compile(r"<!-- settings: (\w+) -->")
COMMANDS = ("train", "eval", "compare", "inside")
"""Those of the commands that come first, in this order."""
OVERRIDES = ("recipe", "experiment")
"""Groups whose files say nothing new of a key, but give keys of the others another value."""
HYDRAS = {
    "_target_": "the class that is built; the other keys are its arguments",
    "_partial_": "the class gets its remaining arguments in the program",
}


class Key(NamedTuple):
    """A key of a configuration file."""

    name: str
    """With those above it, joined by dots."""
    default: str | None
    """As it is written; None where keys of its own follow."""
    meaning: str
    """Its comment, "" where it has none."""


def read(path: Path) -> tuple[list[str], list[Key]]:
    """The comment lines that a configuration file begins with, and its keys."""
    text = path.read_text()
    lines = text.splitlines()
    first = next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))
    head = [line[1:].removeprefix(" ") for line in lines[:first] if "@package" not in line]
    root = yaml.compose(text)
    return head, list(_keys(root, lines, text, "")) if isinstance(root, yaml.MappingNode) else []


def _keys(node: yaml.MappingNode, lines: list[str], text: str, above: str) -> Iterator[Key]:
    for key, value in node.value:
        if not above and key.value in ("defaults", "hydra"):
            continue  # what is composed, and where Hydra writes
        name = f"{above}{key.value}"
        inner = isinstance(value, yaml.MappingNode) and not value.flow_style
        end = key.end_mark if inner else value.end_mark
        meaning = _comment(lines, end.line, end.column) or HYDRAS.get(key.value, "")
        if inner:
            yield Key(name, None, meaning)
            yield from _keys(value, lines, text, f"{name}.")
        else:
            yield Key(name, text[value.start_mark.index : value.end_mark.index], meaning)


def _comment(lines: list[str], at: int, column: int) -> str:
    """The comment that follows a place, with the lines below that go on in its column."""
    before, sign, comment = lines[at][column:].partition("#")
    if not sign:
        return ""
    start, parts = column + len(before), [comment]
    for line in lines[at + 1 :]:
        if line[:start].strip() or line[start : start + 1] != "#":
            break
        parts.append(line[start + 1 :])
    return " ".join(part.strip() for part in parts)


def parts(configs: Path) -> dict[str, str]:
    """The keys of commands and groups, and what each of `OVERRIDES` changes, as Markdown.

    Raises:
        ExtensionError: Names the keys that have no comment.

    """
    bare: list[str] = []
    known: dict[str, Key] = {}
    keys = [_command(path, known, bare) for path in _first(configs.glob("*.yaml"), COMMANDS)]
    groups = {path.parent.relative_to(configs) for path in configs.glob("*/**/*.yaml")}
    order = [str(next(iter(one))) for one in _defaults(configs / "train.yaml")]
    for group in _first((group for group in groups if group.parts[0] not in OVERRIDES), order):
        keys.append(_group(configs, group, known, bare))
    changed = {name: _overrides(configs, name, known, bare) for name in OVERRIDES}
    if bare:
        raise ExtensionError("keys without a comment that says what they mean: " + ", ".join(bare))
    return {"keys": "\n".join(keys), **changed}


def _defaults(path: Path) -> Iterator[dict[str, Any]]:
    for entry in yaml.safe_load(path.read_text())["defaults"]:
        if isinstance(entry, dict):
            yield entry


def _first(paths: Iterable[Path], order: Iterable[str]) -> list[Path]:
    """Sorted, but with some names first."""
    ranks = {name: rank for rank, name in enumerate(order)}
    return sorted(paths, key=lambda path: (ranks.get(path.stem, len(ranks)), str(path)))


def _command(path: Path, known: dict[str, Key], bare: list[str]) -> str:
    head, keys = read(path)
    _check(path, keys, known, bare)
    return f"## `run_{path.stem}.py`\n\n{_prose(head)}\n\n{_table(keys)}\n"


def _group(configs: Path, group: Path, known: dict[str, Key], bare: list[str]) -> str:
    prefix = ".".join(group.parts)
    text = [f"## `{group}`\n"]
    for path in sorted((configs / group).glob("*.yaml")):
        head, keys = read(path)
        keys = [key._replace(name=f"{prefix}.{key.name}") for key in keys]
        _check(path, keys, known, bare)
        text.append(f"### `{group}={path.stem}`\n\n{_prose(head)}\n")
        text.append(f"{_table(keys)}\n" if keys else "No keys.\n")
    return "\n".join(text)


def _overrides(configs: Path, name: str, known: dict[str, Key], bare: list[str]) -> str:
    """What every file of a group changes; before that, keys that it alone has."""
    text: list[str] = []
    new: dict[str, Key] = {}
    for path in sorted((configs / name).glob("**/*.yaml")):
        head, keys = read(path)
        given = [key for key in keys if key.default is not None]
        for key in given:
            if key.name not in known and (key.meaning or key.name not in new):
                new[key.name] = key
        shown = path.relative_to(configs / name).with_suffix("")
        text += [f"## `{shown}`\n", "```text", *head, "```\n"]
        if given:
            rows = (f"| `{key.name}` | {_code(key.default or '')} |" for key in given)
            text += ["| key | value |", "|---|---|", *rows, ""]
    bare += [f"{name}: {key.name}" for key in new.values() if not key.meaning]
    known |= new
    if new:
        text = ["## Keys that are set here alone\n", _table(new.values()), "", *text]
    return "\n".join(text)


def _check(path: Path, keys: list[Key], known: dict[str, Key], bare: list[str]) -> None:
    known |= {key.name: key for key in keys}
    bare += [f"{path.name}: {key.name}" for key in keys if key.default and not key.meaning]


def _prose(lines: list[str]) -> str:
    """Comment lines as a paragraph; a command that follows a colon as code."""
    told = [re.sub(r":  (python .*)$", r": `\1`", line) for line in lines]
    return " ".join(told).removesuffix(".") + "."


def _table(keys: Iterable[Key]) -> str:
    rows = [
        f"| `{key.name}` | {_code(key.default) if key.default else ''} | {_cell(key.meaning)} |"
        for key in keys
        if key.default or key.meaning
    ]
    return "\n".join(["| key | default | what it means |", "|---|---|---|", *rows])


def _code(text: str) -> str:
    return "`" + " ".join(text.split()).replace("|", "\\|") + "`"


def _cell(comment: str) -> str:
    """A comment with what looks like code as code, and nothing that Markdown would read."""
    words = re.findall(r"'[^']*'|\S+|\s+", comment)
    return "".join(_word(word) for word in words)


def _word(word: str) -> str:
    body = word.rstrip(",.;:)")
    if re.search(r"[=_<~]|^'.*'$|\w/", body):
        return _code(body.strip("'")) + word[len(body) :]
    return re.sub(r"([\\`*{}\[\]<>|$])", r"\\\1", word)


def fill_in(app: Sphinx, _: str, source: list[str]) -> None:
    """Put the tables into the pages that ask for them."""
    if not PLACE.search(source[0]):
        return
    configs = Path(app.srcdir).parent / "configs"
    for path in configs.glob("**/*.yaml"):
        app.env.note_dependency(str(path))
    tables = parts(configs)
    source[0] = PLACE.sub(lambda place: tables[place[1]], source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True}
