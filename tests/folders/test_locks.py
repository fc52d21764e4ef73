"""A run folder has one holder at a time, whatever dies."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ntm.folders import locks
from ntm.folders.locks import Held, Lock, holder_of, is_lock, process_started

HOLD = """
import sys
from pathlib import Path
from ntm.folders.locks import Lock
with Lock(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder, until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "holding\n"
    yield process
    process.kill()
    process.communicate()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(place: Path, silence: float = 0.0, **changes: object) -> Path:
    """A lock as another host's process would have written it."""
    path = place / ".lock.1"
    content = {"host": "elsewhere", "machine": "m", "pid": 7, "started": "1", "token": "t"}
    path.write_text(json.dumps(content | {"since": "2001-02-03 04:05:06"} | changes))
    os.utime(path, (time.time() - silence,) * 2)
    return path


def test_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
    folder = tmp_path / "a" / "run"
    with Lock(folder) as lock:
        assert lock.holds()
        content = json.loads((folder / ".lock.1").read_text())
        assert content["host"] == platform.node()
        assert content["pid"] == os.getpid()
        assert files(folder) == [".lock.1"]
        lock.check()
    assert not lock.holds()
    assert files(folder) == []


def test_a_lock_tells_whose_it_is(tmp_path):
    with Lock(tmp_path):
        content = json.loads((tmp_path / ".lock.1").read_text())
    with open("/proc/self/stat") as file:
        started = file.read().split(") ")[-1].split()[19]  # field 22 of proc(5), the third first
    with open("/proc/sys/kernel/random/boot_id") as file:
        machine = f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    found = os.stat(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{32}", content.pop("token"))
    since = time.mktime(time.strptime(content.pop("since"), "%Y-%m-%d %H:%M:%S"))
    assert abs(time.time() - since) < 60
    assert content == {
        "host": platform.node(),
        "machine": machine,
        "pid": os.getpid(),
        "started": started,
        "folder": [found.st_dev, found.st_ino],
    }


def test_what_is_a_lock():
    names = (".lock.1", ".lock.12", ".lock.0123abcd.part", "thesis.lock.1", ".locked", "lock.1")
    assert [is_lock(Path(name)) for name in names] == [True, True, True, False, False, False]


def test_the_latest_of_many_locks_counts_as_a_number(tmp_path):
    """As text, 9 comes after 10."""
    for number in (9, 10):
        put(tmp_path, silence=301).rename(tmp_path / f".lock.{number}")
    with Lock(tmp_path):
        assert files(tmp_path) == [".lock.11"]


def test_a_lock_that_goes_while_it_is_looked_at_hides_no_other(tmp_path):
    put(tmp_path).rename(tmp_path / ".lock.2")
    (tmp_path / ".lock.1").symlink_to(tmp_path / "gone")
    assert "is held by process 7 on elsewhere" in holder_of(tmp_path)


def test_a_folder_that_is_gone_is_named(tmp_path):
    with Lock(tmp_path / "run") as lock:
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(
            FileNotFoundError, match=f"^{re.escape(str(tmp_path / 'run'))} is gone$"
        ):
            lock.check()


@pytest.fixture
def no_proc(monkeypatch):
    """A system that does not show its processes as files."""
    monkeypatch.setattr(locks, "Path", lambda path: Path(path.replace("/proc/", "/no such place/")))


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
@pytest.mark.usefixtures("no_proc")
def test_where_processes_are_no_files_ps_tells_them_apart(tmp_path, other):
    began = time.mktime(time.strptime(process_started(other.pid)))
    assert abs(time.time() - began) < 120
    other.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process_started(other.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process_started(other.pid) is None  # a zombie
    other.wait()
    assert process_started(other.pid) is None  # gone
    (tmp_path / ".lock.1").unlink()
    with Lock(tmp_path), pytest.raises(Held), Lock(tmp_path):
        pass


def test_an_exception_lets_go_too(tmp_path):
    with pytest.raises(KeyError), Lock(tmp_path):
        raise KeyError
    assert files(tmp_path) == []


def test_says_in_one_line_who_holds_it_since_when(tmp_path, other):
    with pytest.raises(Held) as caught, Lock(tmp_path):
        pytest.fail("two holders")
    text = str(caught.value)
    assert "\n" not in text
    for word in (str(tmp_path), str(other.pid), platform.node(), time.strftime("%Y-%m-%d")):
        assert word in text
    since = json.loads((tmp_path / ".lock.1").read_text())["since"]
    said = (
        rf"{re.escape(str(tmp_path))} is held by process {other.pid} on "
        rf"{re.escape(platform.node())} since {since}, last heartbeat \d\d? s ago; "
        "this run is left to it"
    )
    assert re.fullmatch(said, text)
    assert re.fullmatch(said, holder_of(tmp_path))
    assert files(tmp_path) == [".lock.1"]
    other.communicate("")
    assert holder_of(tmp_path) is None
    with Lock(tmp_path):
        pass


def test_the_same_process_does_not_hold_it_twice(tmp_path):
    with Lock(tmp_path), pytest.raises(Held), Lock(tmp_path):
        pytest.fail("two holders")


def test_a_copy_of_a_held_folder_is_free_and_a_moved_one_is_not(tmp_path):
    folder, copied, moved = (tmp_path / name for name in ("run", "copied", "moved"))
    with Lock(folder):
        shutil.copytree(folder, copied)
        assert holder_of(folder) is not None
        assert holder_of(copied) is None
        with Lock(copied) as lock:
            assert lock.holds()
        folder.rename(moved)
        assert holder_of(moved) is not None
        with pytest.raises(Held), Lock(moved):
            pass
        moved.rename(folder)
    assert files(copied) == []


def test_of_another_machine_it_is_said_when_the_folder_is_free(tmp_path):
    put(tmp_path)
    with pytest.raises(Held) as caught, Lock(tmp_path):
        pass
    said = (
        rf"{re.escape(str(tmp_path))} is held by process 7 on elsewhere since 2001-02-03 04:05:06, "
        r"last heartbeat \d s ago; this run is left to it\. If that machine is lost, or this is a "
        r"copy, it is free after 5 minutes without a heartbeat"
    )
    assert re.fullmatch(said, str(caught.value))
    assert re.fullmatch(said, holder_of(tmp_path))


@pytest.mark.parametrize("buried", [True, False], ids=["gone", "zombie"])
def test_a_dead_process_is_succeeded_at_once(tmp_path, other, buried):
    other.send_signal(signal.SIGKILL)
    if buried:
        other.wait()
    else:
        deadline = time.monotonic() + 10
        while process_started(other.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
    assert files(tmp_path) == [".lock.1"]
    assert holder_of(tmp_path) is None
    with Lock(tmp_path) as lock:
        assert lock.holds()
        assert files(tmp_path) == [".lock.2"]
    assert files(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_process_may_have_any_name(tmp_path):
    """It stands in brackets among what the system says of it."""
    program = tmp_path / "a) Z 1 (b"
    shutil.copy(shutil.which("sleep"), program)
    with subprocess.Popen([program, "60"]) as process:
        try:
            started = process_started(process.pid)
            assert started is not None
            assert int(started) >= int(process_started(os.getpid()))
        finally:
            process.kill()


def test_a_process_number_that_was_given_again_is_not_the_holder(tmp_path):
    with Lock(tmp_path):
        content = json.loads((tmp_path / ".lock.1").read_text())
    put(tmp_path, **content)
    with pytest.raises(Held), Lock(tmp_path):
        pass
    put(tmp_path, **(content | {"started": "long ago"}))
    with Lock(tmp_path):
        pass


@pytest.mark.parametrize(
    "where", [{}, {"host": platform.node(), "machine": "another container"}], ids=["host", "box"]
)
def test_another_host_is_succeeded_after_five_minutes_of_silence(tmp_path, where):
    put(tmp_path, silence=290, **where)
    with pytest.raises(Held, match=r"last heartbeat 29\d s ago"), Lock(tmp_path):
        pass
    put(tmp_path, silence=301, **where)
    assert holder_of(tmp_path) is None
    with Lock(tmp_path):
        pass
    assert files(tmp_path) == []


def test_who_waits_succeeds_another_host_that_does_not_come_back(tmp_path):
    put(tmp_path, silence=298)
    said: list[str] = []
    began = time.monotonic()
    with Lock(tmp_path, said.append) as lock:
        assert 1.5 < time.monotonic() - began < 10
        assert lock.holds()
        assert files(tmp_path) == [".lock.2"]
    assert said == [
        f"{tmp_path} is locked by elsewhere: waiting for its heartbeat, "
        "or for 5 minutes without one"
    ]


def test_who_waits_leaves_it_to_another_host_that_lives(tmp_path):
    beat = threading.Timer(1, os.utime, [put(tmp_path, silence=15)])
    beat.start()
    said: list[str] = []
    with pytest.raises(Held, match="on elsewhere"), Lock(tmp_path, said.append):
        pass
    assert not beat.is_alive()
    assert len(said) == 1
    assert files(tmp_path) == [".lock.1"]


@pytest.mark.usefixtures("other")
def test_nobody_waits_for_a_process_of_this_machine(tmp_path):
    with pytest.raises(Held), Lock(tmp_path, pytest.fail):
        pass


@pytest.mark.parametrize("text", ['{"host": "el', "7"], ids=["cut", "number"])
def test_a_lock_that_says_nothing_is_judged_by_its_silence(text, tmp_path):
    lock = put(tmp_path)
    lock.write_text(text)
    said = "by process unknown on an unknown host since an unknown time, last"
    with pytest.raises(Held, match=said), Lock(tmp_path):
        pass
    os.utime(lock, (time.time() - 301,) * 2)
    with Lock(tmp_path):
        pass


@pytest.mark.parametrize("ahead", [3600, -3600], ids=["set back", "set on"])
def test_a_clock_that_was_set_frees_no_held_folder_of_this_machine(ahead, tmp_path, other):
    lock = tmp_path / ".lock.1"
    os.utime(lock, (time.time() + ahead,) * 2)  # as the heartbeats of before are seen now
    with pytest.raises(Held, match=rf"last heartbeat {max(0, -ahead) // 10}\d* s ago"):
        Lock(tmp_path).__enter__()
    other.kill()
    other.communicate()
    os.utime(lock, (time.time() + ahead,) * 2)
    assert holder_of(tmp_path) is None
    with Lock(tmp_path):
        pass


def test_of_another_machine_a_clock_set_back_only_lengthens_the_wait(tmp_path):
    put(tmp_path, silence=-3600)
    with pytest.raises(Held, match="last heartbeat 0 s ago"), Lock(tmp_path):
        pass
    put(tmp_path, silence=301)
    with Lock(tmp_path):
        pass


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.02)
    with Lock(tmp_path):
        lock = tmp_path / ".lock.1"
        os.utime(lock, (0, 0))
        deadline = time.monotonic() + 10
        while lock.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - lock.stat().st_mtime < 5


def test_a_process_that_never_lets_go_can_end(tmp_path):
    forgetful = HOLD.replace("with Lock(Path(sys.argv[1])):", "Lock(Path(sys.argv[1])).__enter__()")
    forgetful = forgetful.replace("    ", "")
    ended = subprocess.run(
        [sys.executable, "-c", forgetful, str(tmp_path)],
        input="",
        timeout=60,
        text=True,
        check=True,
    )
    assert ended.returncode == 0
    assert holder_of(tmp_path) is None


def test_a_file_server_that_does_not_answer_costs_one_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.02)
    beat, refused = os.utime, []

    def unreachable_once(path, *arguments):
        if not arguments and not refused:
            refused.append(path)
            raise OSError(5, "Input/output error")
        beat(path, *arguments)

    with Lock(tmp_path):
        monkeypatch.setattr(os, "utime", unreachable_once)
        lock = tmp_path / ".lock.1"
        os.utime(lock, (0, 0))
        deadline = time.monotonic() + 10
        while lock.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert refused == [lock]
        assert time.time() - lock.stat().st_mtime < 5


def test_who_was_succeeded_notices_and_leaves_the_new_lock_alone(tmp_path):
    with Lock(tmp_path) as lock:
        mine = tmp_path / ".lock.1"
        content = json.loads(mine.read_text())
        # As the other host sees it: a name not its own, silent for long.
        put(tmp_path, silence=301, **(content | {"host": "elsewhere"}))
        with Lock(tmp_path) as successor:
            assert not lock.holds()
            with pytest.raises(Held) as caught:
                lock.check()
            assert str(caught.value) == (
                f"{tmp_path} was taken over after 5 minutes without a heartbeat of this process; "
                "the run is left to the one that holds it now"
            )
            lock.__exit__()
            assert successor.holds()


def test_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with Lock(tmp_path) as lock:
        assert lock.holds()
        with pytest.raises(Held), Lock(tmp_path):
            pass
    assert files(tmp_path) == []


def test_without_hard_links_a_name_is_given_once(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    assert locks._publish(tmp_path / "first", tmp_path / ".lock.1")
    assert not locks._publish(tmp_path / "second", tmp_path / ".lock.1")
    assert (tmp_path / ".lock.1").read_text() == "first"


def test_a_link_that_was_made_and_whose_answer_was_lost(tmp_path, monkeypatch):
    """As a network file system may have it, which then asks again."""
    link = os.link

    def twice(*arguments):
        link(*arguments)
        link(*arguments)

    monkeypatch.setattr(os, "link", twice)
    with Lock(tmp_path) as lock:
        assert lock.holds()
        assert files(tmp_path) == [".lock.1"]
        with pytest.raises(Held), Lock(tmp_path):
            pass


def test_of_two_at_once_who_sees_the_other_withdraws(tmp_path, monkeypatch):
    folder, publish = tmp_path / "run", locks._publish

    def while_another_does(claim: Path, path: Path) -> bool:
        made = publish(claim, path)
        put(tmp_path).rename(folder / ".lock.2")
        return made

    monkeypatch.setattr(locks, "_publish", while_another_does)
    with pytest.raises(Held, match="on elsewhere"), Lock(folder):
        pass
    assert files(folder) == [".lock.2"]


CROWD = """
import os, random, sys, time
from pathlib import Path
from ntm.folders.locks import Held, Lock

folder, mark, count = Path(sys.argv[1]), sys.argv[2], 0
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    try:
        with Lock(folder):
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                sys.exit("two holders")
            time.sleep(random.random() * 0.002)
            os.unlink(mark)
            count += 1
            if random.random() < 0.2:
                print(count)
                sys.stdout.flush()
                os._exit(0)
    except Held:
        pass
print(count)
"""


def test_a_crowd_of_which_some_die_never_holds_it_twice(tmp_path):
    """Every process marks its time as holder by a file that must not be there before."""
    mark = tmp_path / "mark"
    command = [sys.executable, "-c", CROWD, str(tmp_path / "run"), str(mark)]
    end = time.monotonic() + 6
    crowd, taken, dead = [], 0, 0
    while time.monotonic() < end or crowd:
        left = end - time.monotonic()
        while left > 0 and len(crowd) < 4:
            crowd.append(
                subprocess.Popen(
                    [*command, str(left)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
        for process in [process for process in crowd if process.poll() is not None]:
            out, err = process.communicate()
            assert process.returncode == 0, err
            taken += int(out)
            dead += 1
            crowd.remove(process)
        time.sleep(0.005)
    assert taken > 20
    assert dead > 8
