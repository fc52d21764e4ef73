"""One process trains a run at a time: a lock in the run folder, also on a shared file system.

A lock is a file ``.lock.<n>`` in the folder. Its text names the holder's host and process; its
modification time is the holder's heartbeat. Nobody changes or renames another's lock: who takes
over from a dead one makes ``.lock.<n + 1>``, which only one process can, holds it if no other lock
there is alive, and only then removes the dead.
"""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HEARTBEAT = 20.0
"""Seconds from one heartbeat to the next."""
SILENCE = 300.0
"""Seconds without a heartbeat after which a lock of another host is dead."""


class Held(Exception):
    """Another process holds the run folder; the message is one line that says who, since when."""


class Lock:
    """Holds a run folder while in a ``with`` block; making one of these touches nothing on disk.

    Args:
        folder: The run folder; made if missing.
        waits: Where a process of another machine may hold it, wait until it shows a heartbeat or
            has been silent for long enough to be dead, and first say so through this.

    Raises:
        Held: On entering, if a live process holds the folder.

    """

    def __init__(self, folder: Path, waits: Callable[[str], None] | None = None) -> None:
        self.folder = folder
        self.waits = waits
        self._token = uuid.uuid4().hex
        self._path: Path | None = None
        self._released = threading.Event()

    def __enter__(self) -> Lock:
        self.folder.mkdir(parents=True, exist_ok=True)
        claim = self.folder / f".lock.{self._token}.part"
        claim.write_text(json.dumps(_myself(self.folder) | {"token": self._token}))
        try:
            if self.waits is not None:
                self._wait(claim, self.waits)
            while self._path is None:
                self._path = self._take(claim)
        finally:
            claim.unlink(missing_ok=True)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        if self._path is not None and self.holds():
            self._path.unlink(missing_ok=True)

    def holds(self) -> bool:
        """Whether the lock is still this one's; not so if it was silent for too long."""
        return self._path is not None and _read(self._path).get("token") == self._token

    def check(self) -> None:
        """Refuse to go on once the lock was lost.

        Raises:
            Held: Another process took it over, because this one was silent for too long.
            FileNotFoundError: The folder is gone.

        """
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is gone")
        if not self.holds():
            raise Held(
                f"{self.folder} was taken over after {SILENCE / 60:.0f} minutes without a "
                "heartbeat of this process; the run is left to the one that holds it now"
            )

    def _wait(self, claim: Path, says: Callable[[str], None]) -> None:
        """Until no other machine's process may hold the folder, or one has shown that it does."""
        seen: dict[Path, float] = {}
        while beats := _beats_elsewhere(self.folder, claim):
            if any(seen.get(lock, beat) != beat for lock, beat in beats.items()):
                return  # it lives
            if not seen:
                says(
                    f"{self.folder} is locked by {_read(max(beats, key=_number)).get('host')}: "
                    f"waiting for its heartbeat, or for {SILENCE / 60:.0f} minutes without one"
                )
            seen = beats
            time.sleep(0.5)

    def _take(self, claim: Path) -> Path | None:
        """The lock's path once it is ours; None where another came in between."""
        before = _locks(self.folder)
        for lock in before:
            holder, silence = _read(lock), _silence(lock, claim)
            if silence is not None and _lives(lock, holder, silence):
                raise Held(_says(self.folder, holder, silence))
        path = self.folder / f".lock.{_number(before[-1]) + 1 if before else 1}"
        if not _publish(claim, path):
            return None
        others = [lock for lock in _locks(self.folder) if lock != path]
        # Of two that made a lock at once, the later one sees the other's here, and withdraws.
        if any(_is_alive(lock, claim) for lock in others):
            path.unlink(missing_ok=True)
            time.sleep(random.uniform(0.001, 0.02))
            return None
        for dead in others:
            dead.unlink(missing_ok=True)
        return path

    def _beat(self) -> None:
        assert self._path is not None
        while not self._released.wait(HEARTBEAT):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                return  # taken over; `check` will say so
            except OSError:
                continue  # a file server that does not answer now may do so later


def is_lock(path: Path) -> bool:
    """Whether a file of a run folder is a lock, or what is left of one."""
    return path.name.startswith(".lock.")


def holder_of(folder: Path) -> str | None:
    """One line on who holds a run folder; None if it is free. Changes nothing."""
    for lock in _locks(folder):
        holder = _read(lock)
        try:
            silence = max(0.0, time.time() - lock.stat().st_mtime)
        except FileNotFoundError:
            continue
        if _lives(lock, holder, silence):
            return _says(folder, holder, silence)
    return None


def process_started(pid: int) -> str | None:
    """When a process of this machine began, to tell it from a later one of the same number.

    None if there is no such process, or only its exit status is left.
    """
    try:
        # After the name, which may hold anything: the state, and as the 22nd field the start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    shown = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = shown.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def _myself(folder: Path) -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": platform.node(),
        "machine": _machine(),
        "pid": pid,
        "started": process_started(pid),
        "folder": _identity(folder),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _identity(folder: Path) -> list[int]:
    """Tells a folder from a copy of it, on one machine; it may be moved or renamed."""
    found = folder.stat()
    return [found.st_dev, found.st_ino]


def _machine() -> str:
    """Tells machines, and containers, of one host name apart: where process numbers count."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _beats_elsewhere(folder: Path, claim: Path) -> dict[Path, float]:
    """Last heartbeat of each lock that a live process of another machine may hold."""
    beats = {}
    for lock in _locks(folder):
        holder, silence = _read(lock), _silence(lock, claim)
        if silence is not None and not _is_here(holder) and _lives(lock, holder, silence):
            with suppress(FileNotFoundError):
                beats[lock] = lock.stat().st_mtime
    return beats


def _is_here(holder: dict[str, Any]) -> bool:
    return (holder.get("host"), holder.get("machine")) == (platform.node(), _machine())


def _lives(lock: Path, holder: dict[str, Any], silence: float) -> bool:
    if not _is_here(holder):
        return silence < SILENCE
    if holder.get("folder", identity := _identity(lock.parent)) != identity:
        return False  # copied from where its holder is at work
    return process_started(holder["pid"]) == holder["started"]


def _says(folder: Path, holder: dict[str, Any], silence: float) -> str:
    return (
        f"{folder} is held by process {holder.get('pid', 'unknown')} on "
        f"{holder.get('host', 'an unknown host')} since {holder.get('since', 'an unknown time')}, "
        f"last heartbeat {silence:.0f} s ago; this run is left to it"
        + (
            ""
            if _is_here(holder)
            else f". If that machine is lost, or this is a copy, it is free after "
            f"{SILENCE / 60:.0f} minutes without a heartbeat"
        )
    )


def _locks(folder: Path) -> list[Path]:
    """All locks in a folder, the newest last."""
    locks = [path for path in folder.glob(".lock.*") if path.suffix[1:].isdigit()]
    return sorted(locks, key=_number)


def _number(lock: Path) -> int:
    return int(lock.suffix[1:])


def _is_alive(lock: Path, claim: Path) -> bool:
    holder, silence = _read(lock), _silence(lock, claim)
    return silence is not None and _lives(lock, holder, silence)


def _read(path: Path) -> dict[str, Any]:
    """What a lock says; empty where it is gone or not yet written."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _silence(lock: Path, claim: Path) -> float | None:
    """Seconds since a lock's heartbeat by the clock of its file system; None if it is gone."""
    try:
        os.utime(claim)
        return max(0.0, claim.stat().st_mtime - lock.stat().st_mtime)
    except FileNotFoundError:
        return None


def _publish(claim: Path, path: Path) -> bool:
    """Give a written claim the lock's name, unless there is one of that name."""
    try:
        os.link(claim, path)
    except FileExistsError:
        # A network file system may have done it and lost the answer.
        return _read(path) == _read(claim)
    except OSError:  # no hard links here
        try:
            with open(path, "x") as file:
                file.write(claim.read_text())
        except FileExistsError:
            return False
    return True
