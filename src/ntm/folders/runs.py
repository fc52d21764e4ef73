"""The run folder: what lies where, written whole or not at all. Imports torch only to load.

====================  ======================================================================
config.yaml           the whole resolved configuration; enough to start the run again
metrics.csv           one row a validation
events.out.tfevents*  the same for TensorBoard
checkpoints/          last.ckpt, best.ckpt, seq_<n>.ckpt where asked for; diverged.ckpt, the
                      step at which numbers went wrong
eval/results.csv      wrong bits at points inside and beyond training
figures/              pictures
train.log             what the run said
result.json           status and results
.lock.<n>             who trains it now (see `ntm.folders.locks`)
====================  ======================================================================
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from ntm.commands.configuration import ConfigurationError, as_override, differences, one_line, plain
from ntm.folders.locks import is_lock

RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
SOLVED_BEFORE = {"metric": "wrong_bits_per_sequence", "below": 0.1}
"""When a run of before, which does not say so, counts as solved."""
DRAWN = "drawn"
"""The kind of sequences that the paper has, and that every row of before is of."""
BEGINNING, END = (
    "# All that this run was asked for; what ends without three dots was cut.\n",
    "...\n",
)
"""Of config.yaml, since it says so."""
EVENTS = "events.out.tfevents."
"""Before the time in the name of one of TensorBoard's files."""
SKIP, RESUME, START, OVER = "skip", "resume", "start", "start over"


class RunFolder:
    """One run's folder; making one of these touches nothing on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.diverged = self.checkpoints / "diverged.ckpt"
        self.evaluations = self.path / "eval" / "results.csv"
        self.figures = self.path / "figures"
        self.log = self.path / "train.log"
        self.result = self.path / "result.json"

    @classmethod
    def existing(cls, path: str | Path, key: str) -> RunFolder:
        """The folder of a run that was begun.

        Raises:
            ConfigurationError: There is none at ``path``; ``key`` is what named it.

        """
        folder = cls(path)
        if not folder.config.is_file():
            why = "has no config.yaml" if folder.path.is_dir() else "does not exist"
            raise ConfigurationError(f"{key} must be a run folder, got {str(path)!r}, which {why}")
        return folder

    def read_config(self) -> DictConfig:
        """The configuration the run was started with.

        Raises:
            ConfigurationError: It is damaged, or holds what no run writes.

        """

        def read(content: bytes) -> Any:
            return plain(OmegaConf.create(self._as_written(content)))

        return OmegaConf.create(_read_mapping(self.config, read))

    def _read_values(self) -> dict[str, Any]:
        """The same as plain values; several times faster, which counts for hundreds of runs."""
        # What is in the file was resolved and quoted by OmegaConf: any YAML reader will do.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return _read_mapping(self.config, lambda text: yaml.load(self._as_written(text), loader))

    @staticmethod
    def _as_written(content: bytes) -> str:
        """The text of a configuration, refused where no run writes the like.

        Interpolations would ask the reader's own environment; a few lines of references can stand
        for more values than memory holds.
        """
        if content.startswith(BEGINNING.encode()) and not content.endswith(END.encode()):
            raise ValueError("it was cut short")
        if b"${" in content:
            raise ValueError("it holds an interpolation, ${…}, which no run writes")
        if b"*" in content and any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(content)):
            raise ValueError("it holds references, *…, which no run writes")
        return content.decode()

    def read_result(self) -> dict[str, Any]:
        """The last written `result.json`; empty before the first.

        Raises:
            ConfigurationError: It is damaged.

        """
        try:
            return _read_mapping(self.result, json.loads)
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def read_evaluations(self) -> list[dict[str, str]]:
        """Rows of `eval/results.csv`; none where nothing was evaluated.

        What stands before the column ``kind`` are the task's numbers. A run of before has its
        rows in ``eval/lengths.csv``, all of sequences as they are drawn.
        """
        if self.evaluations.is_file():
            return read_rows(self.evaluations)
        before = self.evaluations.with_name("lengths.csv")
        rows = read_rows(before) if before.is_file() else []
        return [
            dict([*list(row.items())[:1], ("kind", DRAWN), *list(row.items())[1:]]) for row in rows
        ]

    def write_result(self, **values: Any) -> None:
        """Change some entries of `result.json`, keeping the others."""
        text = json.dumps(self.read_result() | values, indent=2) + "\n"
        write_whole(self.result, text.encode())

    def write_failure(self, reason: str, **values: Any) -> str:
        """Write that the run failed, and change other entries; gives the reason that now stands.

        Of several processes of a run that fail, the first one's stands.
        """
        with _one_at_a_time(self.config):
            told = self.read_result()
            stands: str = told["reason"] if told.get("status") == FAILED else reason
            self.write_result(status=FAILED, reason=stands, **values)
        return stands

    def checkpoint(self, name: str) -> Path:
        """The checkpoint called ``last`` or ``best``.

        Raises:
            ConfigurationError: There is no such checkpoint.

        """
        path = self.checkpoints / f"{name}.ckpt"
        if not path.is_file():
            there = sorted(p.stem for p in self.checkpoints.glob("*.ckpt"))
            have = f"it has {', '.join(there)}" if there else "it has none yet"
            raise ConfigurationError(f"checkpoint must exist in {self.path}, got {name!r}; {have}")
        return path

    def refuse_if_other(self, config: DictConfig) -> None:
        """Refuse a folder that is not free and not of a run with this configuration.

        Raises:
            ConfigurationError: Names the differing keys and the ways out.

        """
        if not self.config.is_file():
            if self.path.is_dir() and any(
                p.suffix != ".part" and not is_lock(p) for p in self.path.iterdir()
            ):
                raise ConfigurationError(
                    f"folder must be free or of a run, got {str(self.path)!r}, which holds other "
                    "files; set name=… to use another"
                )
            if self.path.exists() and not self.path.is_dir():
                raise ConfigurationError(f"folder must be a folder, got the file {self.path}")
            return
        changed = differences(self._read_values(), config)
        if changed:
            same = as_override("init_from", self.path)
            raise ConfigurationError(
                f"{self.path} holds a run with another configuration; differing: "
                f"{', '.join(changed)}. Set name=… to train beside it, {same} to start from its "
                "weights, or overwrite=true to start over"
            )

    def standing(self, config: DictConfig) -> str:
        """What the command would do here: ``skip``, ``resume``, ``start`` or ``start over``.

        Raises:
            ConfigurationError: The folder is not free and not of a run with this configuration,
                or cannot be written to.

        """
        if config.overwrite and self.config.is_file():
            check_writable(self.path)
            return OVER
        self.refuse_if_other(config)
        if self.read_result().get("status") == FINISHED:
            return SKIP
        check_writable(self.path)
        return RESUME if self.last.is_file() or self.best.is_file() or self.kept() else START

    def begin(self, config: DictConfig, resume: bool) -> None:
        """Make the folder; without ``resume``, empty it of any earlier run."""
        if not resume and self.config.is_file():
            self._clear()
        # First of all: a folder with a configuration is a run's, however early it was killed.
        text = BEGINNING + OmegaConf.to_yaml(config, resolve=True) + END
        write_whole(self.config, text.encode())
        for path in (self.checkpoints, self.evaluations.parent, self.figures):
            path.mkdir(exist_ok=True)
        self.diverged.unlink(missing_ok=True)  # it may go better this time

    def _clear(self) -> None:
        """Remove what runs write, and nothing else, but for the configuration."""
        for path in (self.checkpoints, self.evaluations.parent, self.figures):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.result, self.metrics, self.log, *self.events()):
            path.unlink(missing_ok=True)

    def events(self) -> list[Path]:
        """TensorBoard's files, in the order in which they were written."""
        return sorted(self.path.glob(f"{EVENTS}*"))

    def kept(self) -> list[Path]:
        """Checkpoints that were asked to be kept, the oldest first."""
        return sorted(self.checkpoints.glob("seq_*.ckpt"), key=kept_at)

    def forget_after(self, sequences: int) -> None:
        """Drop from the records every validation after ``sequences``, which will come again."""
        if self.metrics.is_file():
            rows = read_rows(self.metrics)
            write_rows(self.metrics, [row for row in rows if int(row["sequences"]) <= sequences])
        for number, path in enumerate(self.events()):
            _trim_events(path, sequences)
            # TensorBoard reads by name, and a clock may have been set back since.
            path.rename(path.with_name(f"{EVENTS}{number:010}.earlier"))
        for path in self.kept():
            if kept_at(path) > sequences:
                path.unlink()


def _read_mapping(path: Path, read: Callable[[bytes], Any]) -> dict[str, Any]:
    try:
        values = read(path.read_bytes())
    except PermissionError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"{path} is damaged ({one_line(error)[:120]}); overwrite=true starts the run over"
        ) from error
    if not isinstance(values, dict) or not values:
        raise ConfigurationError(
            f"{path} is damaged, it holds no names and values; overwrite=true starts the run over"
        )
    return values


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a file against other processes in this; nothing is held where the system cannot."""
    with open(path, "r+b") as file:  # network file systems lock what may be written
        with suppress(ImportError, OSError):
            import fcntl  # not on Windows

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def in_words(metric: str) -> str:
    """A metric as people say it: ``wrong bits``."""
    return metric.removesuffix("_per_sequence").replace("_", " ")


def reached(result: dict[str, Any]) -> tuple[str, float]:
    """What a finished run came to on the test set: the metric of its goal in words, its value."""
    goal = result.get("solved_when", SOLVED_BEFORE)
    return in_words(goal["metric"]), result[goal["metric"]]


def kept_at(path: Path) -> int:
    """Sequences in the name of a checkpoint ``seq_<n>.ckpt``."""
    match = re.fullmatch(r"seq_(\d+)", path.stem)
    assert match is not None, path
    return int(match[1])


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a place beside ``path`` to write to; it becomes ``path`` when all is on disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Refuse a folder for results that cannot be written to, before they are computed.

    Writes nothing.

    Raises:
        ConfigurationError: Says why not, and that there is a way around it.

    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        reason = f"{there} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"{there} is read-only to this user"
    else:
        return
    raise ConfigurationError(
        f"the results would go into {folder}, which cannot be written to ({reason}); "
        "folder=… puts them elsewhere"
    )


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that no reader ever sees a part of it."""
    with writing(path) as part:
        part.write_bytes(content)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header; a last line cut short is left out."""
    with open(path, newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    return list(csv.DictReader(lines))


def write_rows(path: Path, rows: list[dict[str, Any]], header: Iterable[str] = ()) -> None:
    """Write a CSV file whole; the header is that of the first row unless given."""
    columns = list(header) or list(rows[0] if rows else ())
    with writing(path) as part, open(part, "w", newline="") as file:
        if columns:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a CSV file and see it to the disk; the first row brings the header.

    Where the file has other columns, it is written anew with all of them.
    """
    new = not path.exists() or path.stat().st_size == 0
    if not new and list(before := _header(path)) != list(row):
        write_rows(path, [*read_rows(path), row], header={**row, **before})
        return
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


def _header(path: Path) -> dict[str, None]:
    with open(path, newline="") as file:
        return dict.fromkeys(next(csv.reader(file), []))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's plain contents, on the CPU.

    Raises:
        ConfigurationError: The file cannot be read as a checkpoint.

    """
    import torch

    try:
        _check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = one_line(error).split(". ")[0]
        raise ConfigurationError(f"checkpoint {path} is damaged: {reason}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ConfigurationError(f"checkpoint {path} is not one of a run")
    return checkpoint


def _check_sums(path: Path) -> None:
    """Hold an archive's parts against their sums in it; torch reads past a changed number."""
    if not zipfile.is_zipfile(path):
        return  # for torch to say what it is
    with zipfile.ZipFile(path) as archive:
        changed = archive.testzip()
    if changed is not None:
        raise ValueError(f"its part {changed} is not what was written")


def _trim_events(path: Path, sequences: int) -> None:
    """Keep the events up to a step; those of the final results come again at the end."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    with writing(path) as part, open(part, "wb") as file:
        writer = RecordWriter(file)
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            tags = [value.tag for value in event.summary.value]
            final = any(tag.startswith(("_hparams_/", "test/", "evaluation/")) for tag in tags)
            if event.step <= sequences and not final:
                writer.write(record)
        writer.flush()
