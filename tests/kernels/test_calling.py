"""Compiled functions on torch's own threads or on ours, and the job they share."""

from __future__ import annotations

import ctypes
import sys
import threading
from array import array

import numba
import numpy as np
import pytest
import torch
from numba import types

from ntm.kernels import calling, jobs
from ntm.kernels.conventions import BATCH_SIZE, DENSE, LONGEST_BLOCK, STEP

LIBRARIES = pytest.mark.parametrize("openmp", [True, False], ids=["OpenMP", "own pool"])
FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@pytest.fixture
def without(monkeypatch):
    """Hide OpenMP, as on a machine whose torch does not have GNU's."""

    def choose(openmp: bool) -> None:
        if not openmp:
            monkeypatch.setattr(calling, "_openmp", lambda: None)

    return choose


@LIBRARIES
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_thread_gets_the_address(count, openmp, without):
    without(openmp)
    torch.set_num_threads(count)
    seen = []
    calling.on_threads(FUNCTION(seen.append), 4096, count)
    assert seen == [4096] * count


@LIBRARIES
def test_two_threads_run_at_once(openmp, without):
    without(openmp)
    torch.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=20)  # nobody gets past it alone
    missed = []

    def work(_: int) -> None:
        try:
            meeting.wait()
        except threading.BrokenBarrierError as error:
            missed.append(error)

    calling.on_threads(FUNCTION(work), 0, 2)
    assert not missed


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux")
def test_the_threads_are_those_of_torch():
    assert calling._openmp().omp_get_max_threads() == torch.get_num_threads()
    torch.set_num_threads(3)
    assert calling._openmp().omp_get_max_threads() == 3


@pytest.fixture(scope="module")
def counting():
    """A compiled function that counts, behind the fields of its job, every sequence it is given."""

    @numba.cfunc(types.void(types.intp))
    def count(address):
        job = jobs.at(address)
        first, last = jobs.claim(job)
        while first < job[BATCH_SIZE]:
            for b in range(first, last):
                job[DENSE + b] += 1
            first, last = jobs.claim(job)

    return count


@LIBRARIES
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 32, 1000])
def test_every_sequence_is_worked_on_once(count, batch_size, openmp, without, counting):
    without(openmp)
    torch.set_num_threads(count)
    team, block = calling._shared(batch_size)
    assert team == min(count, batch_size)
    job = array("q", [0, 0, block, batch_size, *[0] * (DENSE - 4 + batch_size)])
    calling.on_threads(counting.ctypes, job.buffer_info()[0], team)
    assert job[DENSE:].tolist() == [1] * batch_size


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", range(1, 40))
def test_no_thread_gets_more_than_a_block_more_than_its_share(count, batch_size):
    torch.set_num_threads(count)
    team, block = calling._shared(batch_size)
    assert 1 <= block <= LONGEST_BLOCK
    blocks = -(-batch_size // block)
    assert -(-blocks // team) * block < batch_size / team + block


@pytest.fixture(scope="module")
def placing():
    """A compiled function that notes for the sequence it claims where its scratch of (5, 3) is."""

    @numba.cfunc(types.void(types.intp), _nrt=False)
    def place(address):
        job = jobs.at(address)
        _, at = jobs.piece(jobs.scratch(job), (5,), np.float32(0))
        scratch, at = jobs.piece(jobs.line(at), (5, 3), np.float64(0))
        if jobs.asked(job, at):
            return
        noted = jobs.tensor(job[DENSE], (job[BATCH_SIZE],), np.int64(0))
        first, _ = jobs.claim(job)
        noted[first] = scratch.ctypes.data

    return place


@LIBRARIES
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_thread_has_scratch_of_its_own(count, openmp, without, placing, monkeypatch):
    without(openmp)
    torch.set_num_threads(count)
    given = []
    scratch = calling._scratch
    monkeypatch.setattr(calling, "_scratch", lambda room: given.append(scratch(room)) or given[0])
    noted = torch.zeros(count, dtype=torch.int64)
    calling.Job(placing.ctypes, [count, *[0] * 4, 1, 1], (1,) * 6, 1.0, [noted], []).run()
    places = noted.sort().values
    each = jobs.LINE + 2 * jobs.LINE  # (5,) of four bytes, (5, 3) of eight, in whole lines
    assert given[0].numel() == count * each
    assert given[0].data_ptr() % jobs.LINE == 0
    assert places.tolist() == [given[0].data_ptr() + i * each + jobs.LINE for i in range(count)]


@pytest.fixture(scope="module")
def adding():
    """A compiled function: the second dense tensor is the first plus a row of a loose one."""

    @numba.cfunc(types.void(types.intp), _nrt=False)
    def add(address):
        job, zero = jobs.at(address), np.float64(0)
        B = job[BATCH_SIZE]
        row, at = jobs.piece(jobs.scratch(job), (4,), zero)
        if jobs.asked(job, at):
            return
        first, last = jobs.claim(job)
        while first < B:
            for b in range(first, last):
                jobs.fetch(job, DENSE + 2, 0, b, row)
                given = jobs.tensor(job[DENSE], (B, 4), zero)
                filled = jobs.tensor(job[DENSE + 1], (B, 4), zero)
                for i in range(4):
                    filled[b, i] = given[b, i] + row[i] + job[STEP]
            first, last = jobs.claim(job)

    return add


def test_a_job_done_again_takes_what_it_is_given_then(adding):
    torch.manual_seed(0)
    given = torch.randn(7, 4, dtype=torch.float64)
    places = [given, None], [None]
    job = calling.Job(adding.ctypes, [7, *[0] * 4, 1, 1], (1,) * 6, 1.0, *places)
    for step, more in enumerate([torch.randn(4, 7).double().t(), None, torch.randn(7, 9).double()]):
        row = None if more is None else more[:, :4]
        filled = torch.zeros(7, 4, dtype=torch.float64)
        job.run(step, (filled,), (row,))
        assert torch.equal(filled, given + (0 if row is None else row) + step)
    with pytest.raises(TypeError, match=r"one precision, got .*float32"):
        job.run(0, (filled.float(),))


def test_several_precisions_are_refused():
    tensors = [torch.zeros(1), torch.zeros(1, dtype=torch.float64)]
    with pytest.raises(TypeError, match=r"one precision, got .*float64"):
        calling.check_alike(tensors)
