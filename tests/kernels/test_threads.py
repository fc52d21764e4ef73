"""Every sequence of a batch is worked on once, on torch's own threads or on ours."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from ntm.kernels import threads
from ntm.kernels.threads import in_parts

LIBRARIES = pytest.mark.parametrize("openmp", [True, False], ids=["OpenMP", "own pool"])


@pytest.fixture
def without(monkeypatch):
    """Hide OpenMP, as on a machine whose torch does not have GNU's."""

    def choose(openmp: bool) -> None:
        if not openmp:
            monkeypatch.setattr(threads, "_openmp", lambda: None)

    return choose


@LIBRARIES
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 32])
def test_every_sequence_is_in_one_part(count, batch_size, openmp, without):
    without(openmp)
    torch.set_num_threads(count)
    seen = []
    in_parts(lambda begin, end, what: seen.append((begin, end, what)), batch_size, "it")
    assert sorted(n for begin, end, _ in seen for n in range(begin, end)) == [*range(batch_size)]
    assert len(seen) == min(count, batch_size)
    assert {what for _, _, what in seen} == {"it"}


@LIBRARIES
def test_two_parts_run_at_once(openmp, without):
    without(openmp)
    torch.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=20)  # nobody gets past it alone
    in_parts(lambda *_: meeting.wait(), 2)


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux")
def test_the_threads_are_those_of_torch():
    assert threads._openmp().omp_get_max_threads() == torch.get_num_threads()
    torch.set_num_threads(3)
    assert threads._openmp().omp_get_max_threads() == 3


@LIBRARIES
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_a_part_raises_is_raised_when_all_have_ended(error, openmp, without):
    without(openmp)
    torch.set_num_threads(2)
    ended = []

    def work(begin: int, end: int) -> None:
        if begin == 0:
            raise error("no room")
        ended.append(end)

    with pytest.raises(error, match="no room"):
        in_parts(work, 4)
    assert ended == [4]
