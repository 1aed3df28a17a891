"""Results that come without a copy are nobody else's: not of whatever the worker kept.

Each trap of ``traps`` keeps a way to reach what it returns. The caller then changes what
it got, and the worker what it kept; neither may see the other.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import shmexec
from shmexec.memory import native
from tests.contract import traps
from tests.contract.traps import N

needs_native = pytest.mark.skipif(
    not native.is_built() or os.environ.get("SHMEXEC_NATIVE") == "0",
    reason="without the native part",
)


@pytest.fixture(
    scope="module",
    params=[("memfd", "1"), ("posix", "1"), ("memfd", "0")],
    ids=["memfd", "posix", "without-native"],
)
def executor(request, _process_wide_things):
    kind, with_native = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHMEXEC_SEGMENT", kind)
        if with_native == "0":
            patch.setenv("SHMEXEC_NATIVE", "0")
        executor = shmexec.Executor(1)
    with executor:
        warm(executor)
        yield executor


@pytest.fixture(autouse=True)
def _nothing_kept(request):
    # Not by asking for it as an argument: tests without it would run for each kind.
    uses = "executor" in request.fixturenames
    executor = request.getfixturevalue("executor") if uses else None
    yield
    if executor is not None:
        executor.submit(traps.forget).result()


def warm(executor):
    """Have the worker ask for enough quota that arrays are born in its arena."""
    for _ in range(3):
        executor.submit(traps.fresh, 8 * N).result()


def arrays_in(value):
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, traps.Holder):
        return [value.value]
    if isinstance(value, dict):
        value = value.values()
    return [a for each in value if not isinstance(each, int) for a in arrays_in(each)]


def change(array, value):
    data = array.data if isinstance(array, np.ma.MaskedArray) else array
    if data.dtype.names:
        data["a"] = data["b"] = value
    else:
        data[...] = value


def all_are(array, value):
    names = array.dtype.names
    return (array["b"] == value).all() if names else (array == value).all()


@pytest.mark.parametrize("name", sorted(traps.TRAPS))
def test_neither_sees_the_other(executor, name):
    result = executor.submit(traps.spring, name).result()
    before = executor.submit(traps.seen).result()
    assert before, "the trap kept nothing"
    (array,) = arrays_in(result)
    expected = executor.submit(traps.fresh).result()
    got = (array["b"] if array.dtype.names else np.asarray(array)).ravel()
    assert got.size in {N, N - 5, N - 10, N * 7 // 8, N * 3 // 4, 3 * N}
    first = got[0]
    assert (got[: N // 4] == expected[int(first) : int(first) + N // 4]).all()
    change(array, -1)
    # More memory is used, so that a block wrongly recycled is written over.
    noise = [executor.submit(traps.fresh).result() for _ in range(3)]
    assert executor.submit(traps.seen).result() == before
    executor.submit(traps.overwrite, 7.0).result()
    assert all_are(array, -1)
    for each in noise:
        np.testing.assert_array_equal(each, expected)
    executor.submit(traps.forget).result()
    noise = [executor.submit(traps.fresh).result() for _ in range(3)]
    assert all_are(array, -1)


@pytest.mark.parametrize("how", ["it", "view", "memoryview", "closure", "weak"])
def test_a_returned_argument_that_is_kept(executor, how):
    x = traps.fresh()
    result = executor.submit(traps.keep_argument, x, how).result()
    before = executor.submit(traps.seen).result()
    result[:] = -1
    noise = [executor.submit(np.negative, x).result() for _ in range(3)]
    assert executor.submit(traps.seen).result() == before
    executor.submit(traps.overwrite, 7.0).result()
    assert (result == -1).all()
    np.testing.assert_array_equal(x, traps.fresh())
    for each in noise:
        np.testing.assert_array_equal(each, -x)


def test_a_cached_result_returned_twice(executor):
    one, other = [executor.submit(traps.cached).result() for _ in range(2)]
    one[:] = -1
    np.testing.assert_array_equal(other, traps.fresh())
    np.testing.assert_array_equal(executor.submit(traps.cached).result(), other)


def test_the_same_array_twice_is_the_same_array(executor):
    one, other = executor.submit(_twice).result()
    assert one is other
    one[:] = -1
    assert (other == -1).all()


def _twice():
    y = traps.fresh()
    return y, y


def _pairs(name):
    y = traps.fresh().reshape(100, -1)
    return {
        "transposed": lambda: (y, y.T),
        "reversed": lambda: (y[::-1], y),
        "strided": lambda: (y[:, ::2], y),
        "halves": lambda: (y[:50], y[50:]),
        "shifted": lambda: (y[1:], y[:-1]),
        "same_view": lambda: (y[:], y[:], y[:]),
        "raw": lambda: (y, y.view(np.uint8)),
        "record": lambda: (y, y.view(np.recarray)),
    }[name]()


PAIRS = [
    "transposed",
    "reversed",
    "strided",
    "halves",
    "shifted",
    "same_view",
    "raw",
    "record",
]


@pytest.mark.parametrize("name", PAIRS)
def test_two_arrays_in_one_block(executor, name):
    result = executor.submit(_pairs, name).result()
    expected = _pairs(name)
    for i, (array, value) in enumerate(zip(result, expected, strict=True)):
        np.testing.assert_array_equal(array, value)
        array[...] = 255 - i
    for i, array in enumerate(result):
        assert (array == 255 - i).all()


@pytest.mark.parametrize("name", PAIRS)
def test_two_arrays_in_one_argument(executor, name):
    x = traps.fresh().reshape(100, -1)
    result = executor.submit(_argument_pairs, x).result()
    for i, array in enumerate(result):
        np.testing.assert_array_equal(array, x if i != 1 else x.T)
        array[...] = -1 - i
    for i, array in enumerate(result):
        assert (array == -1 - i).all()


def _argument_pairs(x):
    return x, x.T, x[:]


# -- where nobody keeps it, nothing is copied ------------------------------------------------


def _in_dataclass():
    return traps.Holder(traps.fresh())


def _fortran():
    return np.asfortranarray(traps.fresh().reshape(100, -1)) + 1


def _most_of_it():
    return traps.fresh()[100:-3]


def _weakly_known():
    y = traps.fresh()
    traps.KEPT.append(weakref_to(y))
    return y


def weakref_to(y):
    import weakref

    return weakref.ref(y)


def _frame():
    import pandas as pd

    return pd.DataFrame(traps.fresh().reshape(4, -1).T, copy=False)


UNREACHED = {
    "fresh": traps.fresh,
    "in a dataclass": _in_dataclass,
    "Fortran": _fortran,
    "most of a block": _most_of_it,
    "weakly known": _weakly_known,
    "data frame": _frame,
}


@needs_native
@pytest.mark.parametrize("name", UNREACHED)
def test_what_nobody_else_reaches_is_not_copied(executor, name):
    if not executor.stats().native:
        pytest.skip("this one is without")
    executor.submit(UNREACHED[name]).result()
    before = executor.stats().bytes_copied_out
    result = executor.submit(UNREACHED[name]).result()
    assert executor.stats().bytes_copied_out == before
    if isinstance(result, np.ndarray):
        assert result.flags.writeable


def test_a_small_part_of_a_block_is_copied(executor):
    before = executor.stats().bytes_copied_out
    executor.submit(_small_part).result()
    assert executor.stats().bytes_copied_out - before == N * 8


def _small_part():
    return traps.fresh(4 * N)[N : 2 * N]


def test_an_argument_changed_in_place_is_handed_back(executor):
    x = traps.fresh()
    before = executor.stats().bytes_copied_out
    result = executor.submit(_negated_in_place, x).result()
    assert executor.stats().bytes_copied_out == before
    np.testing.assert_array_equal(result, -x)
    result[:] = 3
    np.testing.assert_array_equal(x, traps.fresh())
    for _ in range(3):
        executor.submit(_negated_in_place, x).result()
    assert (result == 3).all()


def _negated_in_place(x):
    return np.negative(x, out=x)


def test_an_argument_is_not_handed_back_if_the_call_may_run_again(executor):
    x = traps.fresh()
    result = executor.options(retries=1).submit(_negated_in_place, x).result()
    np.testing.assert_array_equal(result, -x)


def test_results_outlive_the_pool(executor):
    with shmexec.Executor(1) as other:
        warm(other)
        results = [other.submit(traps.fresh).result() for _ in range(3)]
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, traps.fresh())
        result[:] = i
    assert [result.max() for result in results] == [0, 1, 2]


@needs_native
def test_figures_say_whether_the_native_part_is_used(executor, request):
    without = "without-native" in request.node.name
    assert executor.stats().native is not without
    name = executor.submit(_handler_name).result()
    assert name == ("default_allocator" if without else "shmexec")


def _handler_name():
    from numpy._core.multiarray import get_handler_name

    return get_handler_name(traps.fresh())


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_arrays_on_both_sides_at_the_end_of_the_program(run_script, method):
    done = run_script(
        """
import sys, numpy as np, shmexec
def make(kept=[]):
    kept.append(np.arange(50000.) + 1)
    kept.append(kept)
    np.kept = kept
    return kept[0][1:], np.ones(50000) + 1
executor = shmexec.Executor(1, sys.argv[1])
held = [executor.submit(make).result() for _ in range(5)]
held.append(held)
np.held = held
if sys.argv[1] != "fork":
    executor.shutdown()
print(float(held[-2][1].sum()))
""",
        method,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "100000.0\n", "")


# -- memory -----------------------------------------------------------------------------------


def _keeps(nbytes):
    traps.KEPT.append(np.ones(nbytes, np.uint8) + 0)


def test_arrays_that_the_worker_keeps_do_not_make_submit_wait_for_ever(monkeypatch):
    monkeypatch.setattr("shmexec.runtime.room.HOLDING_STILL", 0.2)
    mb = 1 << 20
    with shmexec.Executor(1, max_shared_memory=64 * mb) as small:
        with_native = small.stats().native
        for _ in range(4):
            small.submit(_keeps, 8 * mb).result()
        x = np.ones(62 * mb, np.uint8)
        if with_native and native.is_built() and _is_wanted():
            with pytest.raises(shmexec.SharedMemoryFull):
                small.submit(np.sum, x)
        small.submit(traps.forget).result()
        assert small.submit(np.sum, x).result() == 62 * mb


def _is_wanted():
    return os.environ.get("SHMEXEC_NATIVE") != "0"


# -- user code that forks ------------------------------------------------------------------------


def _forks_and_returns():
    """Return an array that a child goes on to look at; and write to its copy of."""
    y = traps.fresh()
    go, tell = os.pipe()
    answer, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(tell)
        os.read(go, 1)
        good = bool((y == np.arange(N)).all())
        y[:] = -5
        os.write(said, b"y" if good else b"n")
        os._exit(0)
    os.close(go)
    os.close(said)
    traps.KEPT.append((pid, tell, answer))
    return y


def _ask_child():
    pid, tell, answer = traps.KEPT.pop()
    os.write(tell, b".")
    said = os.read(answer, 1)
    os.waitpid(pid, 0)
    os.close(tell)
    os.close(answer)
    return said


def test_a_forked_child_and_the_caller_do_not_see_each_other(executor):
    result = executor.submit(_forks_and_returns).result()
    result[:] = -1
    for _ in range(4):
        executor.submit(traps.fresh).result()[:] = -2
    assert executor.submit(_ask_child).result() == b"y"
    assert (result == -1).all()
    before = executor.stats().bytes_copied_out
    executor.submit(traps.fresh).result()
    executor.submit(traps.fresh).result()
    if executor.stats().native:
        assert executor.stats().bytes_copied_out == before


def _child_writes():
    y = traps.fresh()
    pid = os.fork()
    if pid == 0:
        y[:] = -5
        os._exit(0)
    os.waitpid(pid, 0)
    return y


def test_what_a_forked_child_writes_stays_there(executor):
    np.testing.assert_array_equal(
        executor.submit(_child_writes).result(), traps.fresh()
    )
