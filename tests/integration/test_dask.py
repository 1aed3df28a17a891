"""``dask.config.set(scheduler=ex)``: as Dask's own threads, with chunks in shared memory."""

from __future__ import annotations

import doctest
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

import shmexec

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
dd = pytest.importorskip("dask.dataframe")
db = pytest.importorskip("dask.bag")
integration = pytest.importorskip("shmexec.integrations.dask")

pytestmark = pytest.mark.slow
by_reference = integration.by_reference

SMALL = 100_000
"""Bytes that what is no chunk may take."""


@pytest.fixture(scope="module")
def ex():
    with shmexec.Executor(2) as executor:
        # Both workers import Dask, and have room for what is born there.
        executor.broadcast(_warm_up)
        with dask.config.set(scheduler=executor):
            _random().sum().compute()
        yield executor


@pytest.fixture(autouse=True)
def _scheduler(ex):
    with dask.config.set(scheduler=ex):
        yield


def _warm_up():
    import dask.array
    import dask.dataframe  # noqa: F401


def _random():
    return da.random.default_rng(4).random((1000, 400), chunks=(250, 400))


def _by_threads(what):
    with ThreadPoolExecutor(2) as threads:
        return what.compute(scheduler="threads", pool=threads)


def test_it_is_workers_that_compute(ex):
    pids = dask.compute([dask.delayed(os.getpid)() for _ in range(20)])[0]
    assert set(pids) <= {worker.pid for worker in ex.stats().workers}


ARRAYS = {
    "reduction": lambda x: x.std(axis=0),
    "elementwise": lambda x: da.exp(x) - x.mean(),
    "other chunks": lambda x: x.rechunk((1000, 50)).cumsum(axis=0),
    "product": lambda x: x.T @ x,
    "overlap": lambda x: x.map_overlap(np.sort, depth=2, boundary="none"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name):
    wanted = ARRAYS[name](_random())
    result = wanted.compute()
    assert np.array_equal(result, _by_threads(wanted))
    assert result.flags.writeable


def test_chunks_are_copied_once(ex):
    x = np.arange(500_000.0).reshape(1000, 500)
    before = ex.stats()
    total = da.from_array(x, chunks=(250, 500)).sum().compute()
    after = ex.stats()
    assert total == x.sum()
    copied = after.bytes_copied_in - before.bytes_copied_in
    assert copied == pytest.approx(x.nbytes, abs=SMALL)
    assert after.bytes_copied_out - before.bytes_copied_out < SMALL


def test_chunks_that_are_made_in_workers_come_without_a_copy(ex):
    before = ex.stats()
    kept = _random().persist()
    after = ex.stats()
    assert after.bytes_copied_in - before.bytes_copied_in < SMALL
    if after.native:
        assert after.bytes_copied_out - before.bytes_copied_out < SMALL
    assert np.array_equal(kept.compute(), _random().compute())


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(6)
    rows = 20_000
    return pd.DataFrame(
        {
            "key": rng.integers(0, 50, rows),
            "name": rng.choice(["north", "south"], rows),
            "x": rng.random(rows),
            "when": pd.Timestamp("2024-01-01")
            + pd.to_timedelta(rng.integers(0, 90, rows), "D"),
        }
    )


FRAMES = {
    "groupby": lambda f: f.groupby("key").agg({"x": ["mean", "std"], "when": "max"}),
    "by text": lambda f: f.groupby(["name", "key"])["x"].sum(),
    "apply": lambda f: f.groupby("key")["x"].apply(np.ptp, meta=("x", float)),
    "merge": lambda f: f.merge(f.groupby("key")["x"].max().to_frame("most"), on="key"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames(table, name):
    wanted = FRAMES[name](dd.from_pandas(table, npartitions=4))
    result, other = wanted.compute(), _by_threads(wanted)
    if name == "merge":  # in the order in which its parts are done
        by = list(result)
        result, other = (f.sort_values(by, ignore_index=True) for f in (result, other))
    else:
        result, other = result.sort_index(), other.sort_index()
    check = (
        pd.testing.assert_series_equal
        if isinstance(result, pd.Series)
        else pd.testing.assert_frame_equal
    )
    check(result, other)


def test_bags():
    counts = db.from_sequence(range(1000), npartitions=5).map(lambda n: n % 7)
    assert dict(counts.frequencies().compute()) == dict(
        _by_threads(counts.frequencies())
    )


def test_an_error_is_raised_as_it_was():
    bad = dask.delayed(divmod)(1, 0)
    with pytest.raises(ZeroDivisionError) as caught:
        dask.delayed(abs)(bad).compute()
    assert "in execute_task" in str(caught.value.__cause__)  # the worker's traceback
    assert dask.delayed(abs)(-3).compute() == 3


def test_a_worker_that_dies_fails_the_computation_alone():
    kill = dask.delayed(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with shmexec.Executor(1) as own, dask.config.set(scheduler=own):
        with pytest.raises(shmexec.WorkerDied, match="SIGKILL"):
            kill().compute()
        assert dask.delayed(abs)(-3).compute() == 3


def test_in_process():
    with shmexec.Executor(in_process=True) as here:
        assert dask.delayed(os.getpid)().compute(scheduler=here) == os.getpid()


def _write(chunk):
    chunk += 1
    return chunk


def test_by_reference(ex):
    x = da.ones((1000, 400), chunks=(250, 400))
    wanted = x.rechunk((1000, 100)).sum() + (x.T @ x).sum()
    before = ex.stats()
    assert wanted.compute(scheduler=by_reference(ex)) == 400_000 + 1000 * 400**2
    after = ex.stats()
    assert after.bytes_copied_in - before.bytes_copied_in < SMALL
    assert after.bytes_by_reference - before.bytes_by_reference > 5 * x.nbytes


def test_by_reference_what_is_taken_is_read_only_and_results_are_not(ex):
    ones = dask.delayed(np.ones)(100_000)
    both = dask.delayed(_write)(ones), ones.sum()
    with pytest.raises(ValueError, match="read-only"):
        dask.compute(*both, scheduler=by_reference(ex))
    written, _ = dask.compute(*both)  # as an argument it is copied
    assert (written == 2).all()
    array, total = dask.compute(
        ones, ones.sum(), scheduler=by_reference(ex), num_workers=1
    )
    array[:] = 5
    assert total == 100_000
    assert ex.submit(np.sum, array).result() == 500_000


def test_the_example():
    assert doctest.testmod(integration) == (0, 5)
