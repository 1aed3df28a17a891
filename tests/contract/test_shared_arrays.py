"""Arrays that are born in shared memory in this program, and shared without a copy."""

from __future__ import annotations

import contextvars
import gc
import os
import threading

import numpy as np
import pytest

import shmexec
from shmexec.memory import native
from shmexec.runtime import lifecycle
from tests.contract import calls

N = 50_000

WITHOUT = not native.is_built() or os.environ.get("SHMEXEC_NATIVE") == "0"
needs_native = pytest.mark.skipif(WITHOUT, reason="without the native part")


@pytest.fixture(params=["memfd", "posix"])
def kind(request, monkeypatch):
    monkeypatch.setenv("SHMEXEC_SEGMENT", request.param)
    return request.param


@pytest.fixture
def host(kind):
    host = lifecycle.host(kind)
    yield host
    gc.collect()
    host.settle()
    with host.lock:
        host.births.shrink(0)


@pytest.fixture
def executor(kind, host):
    with shmexec.Executor(2) as executor:
        yield executor


def born(n=N):
    with shmexec.shared_arrays():
        return np.arange(float(n)) + 0.0


def address(array):
    return array.__array_interface__["data"][0]


def add_one(x):
    x += 1
    return x.sum()


def refused(x):
    try:
        x[0] = 1
    except ValueError:
        return not x.flags.writeable
    return False


def test_what_is_made_there_is_an_ordinary_array(executor):
    x = born()
    assert type(x) is np.ndarray
    assert x.base is None
    assert x.flags.writeable
    future = executor.submit(calls.same, x)
    x[:] = -1
    np.testing.assert_array_equal(future.result(), np.arange(float(N)))


@needs_native
def test_sharing_it_copies_nothing(executor):
    x = born()
    shared = shmexec.share(x)
    assert address(shared) == address(x)
    assert not x.flags.writeable
    assert not shared.flags.writeable
    before = executor.stats()
    results = [executor.submit(np.sum, part).result() for part in (shared, shared[5:])]
    assert results == [x.sum(), x[5:].sum()]
    assert executor.submit(refused, shared).result()
    after = executor.stats()
    assert after.bytes_copied_in == before.bytes_copied_in
    assert after.bytes_by_reference - before.bytes_by_reference == 3 * x.nbytes - 40


def test_it_can_be_shared_whether_or_not_that_takes_a_copy(executor):
    x = born()
    shared = shmexec.share(x)
    assert executor.submit(np.sum, shared).result() == N * (N - 1) / 2


@needs_native
@pytest.mark.parametrize("mode", ["r+", "c"])
def test_other_modes(executor, mode):
    x = born()
    total = x.sum()
    shared = shmexec.share(x, mode)
    assert address(shared) == address(x)
    assert executor.submit(add_one, shared).result() == total + N
    assert x.sum() == (total + N if mode == "r+" else total)


@needs_native
def test_the_memory_stays_for_either_array(executor):
    x = born()
    shared = shmexec.share(x)
    del x
    noise = [born() for _ in range(3)]
    assert executor.submit(np.sum, shared).result() == N * (N - 1) / 2
    x = born()
    del noise, shared
    shared = shmexec.share(x)
    del shared
    gc.collect()
    noise = [born() for _ in range(3)]
    np.testing.assert_array_equal(x, np.arange(float(N)))
    assert len(noise) == 3


@needs_native
def test_the_memory_stays_for_calls(executor, make_gate):
    gate = make_gate()
    x = shmexec.share(born())
    future = executor.submit(calls.through, gate, x)
    gate.arrived()
    del x
    for _ in range(3):
        born()[:] = -1
    gate.open()
    np.testing.assert_array_equal(future.result(), np.arange(float(N)))


@needs_native
def test_the_memory_is_used_again_when_all_are_gone(executor, host):
    x = born()
    where = address(x)
    shared = shmexec.share(x)
    again = shmexec.share(x)
    executor.submit(np.sum, shared).result()
    del x
    gc.collect()
    host.settle()
    assert address(born()) != where
    del shared
    host.settle()
    assert address(born()) != where
    del again
    executor.submit(calls.same, 1).result()
    host.settle()
    assert address(born()) == where


@needs_native
def test_layouts_and_types(executor):
    with shmexec.shared_arrays():
        fortran = np.asfortranarray(np.arange(float(N)).reshape(100, -1)) + 1
        records = np.zeros(N, [("a", "i4"), ("b", "f8")])
        times = np.full(N, np.datetime64("2020-01-01"))
        part = (np.arange(float(N)) + 1)[10:-10]
    for x in (fortran, records, times, part, part.view(np.recarray)):
        shared = shmexec.share(x)
        assert address(shared) == address(x)
        assert shared.flags.f_contiguous == x.flags.f_contiguous
        assert type(shared) is type(x)
        before = executor.stats().bytes_copied_in
        np.testing.assert_array_equal(executor.submit(calls.same, shared).result(), x)
        assert executor.stats().bytes_copied_in == before


def test_a_small_part_is_copied(executor):
    x = born()
    shared = shmexec.share(x[: N // 4])
    assert address(shared) != address(x)
    assert x.flags.writeable
    x[:] = -1
    assert executor.submit(np.sum, shared).result() == sum(range(N // 4))


@needs_native
def test_it_holds_for_this_context_only(host):
    found = []

    def make():
        found.append(shmexec.share(np.ones(N)).base is None)
        found.append(address(np.ones(N)))

    with shmexec.shared_arrays():
        inside = np.ones(N)
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        contextvars.Context().run(make)
        with shmexec.shared_arrays():
            pass
        still = np.ones(N)
    after = np.ones(N)
    segment = host.segment_of(shmexec.share(inside).base.base.arena)

    def is_born(where):
        return 0 <= where - segment.address < segment.size

    assert is_born(address(inside))
    assert is_born(address(still))
    assert not is_born(address(after))
    assert not any(is_born(where) for where in found[1::2])


@needs_native
def test_spare_room_is_given_back_when_calls_need_it(kind, host):
    with shmexec.Executor(1) as executor:
        budget = host.budget.limit()
        with shmexec.shared_arrays():
            x = np.ones(N)
            used = host.budget.used()
            assert used >= x.nbytes
            assert used <= budget
            with host.lock:
                assert host.lending.charge("shared", budget - used + 4096)
                assert np.ones(N).sum() == N, "left to malloc"
                host.budget.discharge("shared", budget - used + 4096)
        assert executor.submit(np.sum, x).result() == N


@needs_native
def test_a_forked_child_does_not_see_what_comes_after(kind, host):
    x = shmexec.share(born())
    y = born()
    answer, said = os.pipe()
    go, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(tell)
            os.read(go, 1)
            right = np.arange(float(N))
            good = (x == right).all() and (y == right).all()
            y[:] = 3
            os.write(said, b"y" if good else b"n")
        finally:
            os._exit(0)
    where = {address(x), address(y)}
    del x
    z = y.copy()
    del y
    host.settle()
    fresh = [born() for _ in range(4)]
    assert not where & set(map(address, fresh))
    os.write(tell, b".")
    assert os.read(answer, 1) == b"y"
    os.waitpid(pid, 0)
    for descriptor in (answer, said, go, tell):
        os.close(descriptor)
    del fresh, z
    host.settle()


def test_arrays_at_the_end_of_the_program(kind, run_script):
    done = run_script("""
import numpy as np, shmexec
with shmexec.shared_arrays():
    np.kept = np.arange(50000.) + 1
    np.other = np.arange(50000.) + 2
    np.kept_too = [np.other]
    np.kept_too.append(np.kept_too)
np.shared = shmexec.share(np.kept)
with shmexec.Executor(1) as executor:
    print(executor.submit(np.sum, np.shared).result())
np.other += 1
print(np.other.sum(), np.shared.sum())
with shmexec.shared_arrays():
    np.last = np.ones(50000)
    raise SystemExit(0)
""")
    assert (done.returncode, done.stderr) == (0, "")
    total = float(N * (N + 1) // 2)
    assert done.stdout == f"{total}\n{total + 2 * N} {total}\n"


def test_without_the_native_part_nothing_happens(monkeypatch, kind, executor):
    monkeypatch.setenv("SHMEXEC_NATIVE", "0")
    x = born()
    shared = shmexec.share(x)
    assert address(shared) != address(x)
    assert executor.submit(np.sum, shared).result() == x.sum()
