"""The joblib backend, with the real joblib and scikit-learn."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
from joblib import Parallel, delayed

import shmexec
from shmexec.integrations import joblib as backend
from shmexec.integrations.once import SharedOnce
from tests.integration import joblib_suite, joblib_tasks as tasks

pytestmark = pytest.mark.slow

MANY = 1 << 20
"""Bytes; the default of ``max_nbytes``."""


@pytest.fixture(scope="module")
def ex():
    """Workers that no test ends."""
    with shmexec.Executor(2) as executor:
        executor.broadcast(tasks.pid)
        yield executor


@pytest.fixture
def on(ex):
    """Parallel calls in it."""
    with joblib.parallel_config(backend="shmexec", n_jobs=2, executor=ex):
        yield ex


@pytest.fixture
def fresh():
    """Parallel calls in an executor whose workers a test may have stopped."""
    with shmexec.Executor(2) as executor:
        with joblib.parallel_config(backend="shmexec", n_jobs=2, executor=executor):
            yield executor


@pytest.fixture
def copied(on):
    """Runs tasks; their results, and how many bytes were copied for their arguments."""

    def run(calls, **settings):
        before = on.stats().bytes_copied_in
        found = Parallel(**settings)(calls)
        return found, on.stats().bytes_copied_in - before

    return run


@pytest.fixture
def matrix():
    return np.random.default_rng(0).random((1000, 400))


# -- tasks -------------------------------------------------------------------------------


def test_tasks_run_in_workers_and_results_come_in_order(on):
    workers = {worker.pid for worker in on.stats().workers}
    assert set(Parallel()(delayed(tasks.pid)(i) for i in range(50))) <= workers
    assert Parallel()(delayed(abs)(-i) for i in range(200)) == list(range(200))
    assert Parallel(batch_size=7)(delayed(lambda i: i + 1)(i) for i in range(20)) == [
        *range(1, 21)
    ]


def test_tiny_tasks_go_in_batches(on):
    before = on.stats().submitted
    Parallel()(delayed(abs)(-i) for i in range(2000))
    assert on.stats().submitted - before < 500


def test_one_job_runs_here(on):
    assert Parallel(n_jobs=1)([delayed(os.getpid)()]) == [os.getpid()]
    assert joblib.effective_n_jobs(-1) == 2  # those of the executor
    assert joblib.effective_n_jobs(64) == 2


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_results_as_a_generator(on, return_as):
    found = Parallel(return_as=return_as)(delayed(abs)(-i) for i in range(30))
    assert next(found) in range(30)
    assert len({*found}) == 29


def test_what_cannot_be_pickled_is_named(on):
    calls = (delayed(abs)({"lock": [sys._getframe()]}) for _ in range(3))
    with pytest.raises(shmexec.SerializationError, match=r"\['lock'\]\[0\] \(frame\)"):
        Parallel()(calls)


# -- arrays ------------------------------------------------------------------------------


def test_an_array_is_copied_once_for_all_tasks(copied, matrix):
    expected = float(matrix.sum()), False
    calls = [delayed(tasks.look)(matrix) for _ in range(5)]
    calls += [delayed(tasks.look_into)(tasks.Holder(matrix)) for _ in range(5)]
    found, nbytes = copied(calls, batch_size=1)
    assert found == [expected] * 10
    assert nbytes == 0  # the copy was made beside the calls


def test_views_are_views_of_the_same_copy(copied, matrix):
    views = [matrix.T, matrix[100:, :300], matrix[::-1], matrix[:600]]
    found, nbytes = copied([delayed(tasks.look)(view) for view in views], batch_size=1)
    assert nbytes == 0
    for view, (total, writeable) in zip(views, found, strict=True):
        assert total == pytest.approx(float(view.sum()))
        assert not writeable


def test_the_next_call_sees_what_was_changed_meanwhile(on, matrix):
    parallel = Parallel()
    for value in (1.0, 2.0):
        matrix[:] = value
        found = parallel(delayed(tasks.look)(matrix) for _ in range(3))
        assert found == [(matrix.size * value, False)] * 3


def test_shared_arrays_are_passed_as_they_are(copied, matrix):
    matrix = shmexec.share(matrix)
    used = shmexec.stats().used
    (found, *_), nbytes = copied([delayed(tasks.look)(matrix)] * 3)
    assert found[0] == float(matrix.sum())
    assert nbytes == 0
    assert shmexec.stats().used == used


def test_arrays_in_a_frame(copied, matrix):
    frame = pd.DataFrame(matrix)
    found, nbytes = copied([delayed(tasks.look_at_frame)(frame)] * 4, batch_size=1)
    assert nbytes < MANY
    assert found == [(float(frame.to_numpy().sum()), False)] * 4


@pytest.mark.parametrize("settings", [{"max_nbytes": None}, {"mmap_mode": None}])
def test_without_sharing_each_task_has_its_own(copied, matrix, settings):
    row = matrix[:, :300].ravel()
    calls = [delayed(tasks.write)(row, i) for i in range(4)]
    found, nbytes = copied(calls, batch_size=1, **settings)
    assert found == [0, 1, 2, 3]
    assert nbytes == 4 * row.nbytes


def test_small_arrays_are_the_tasks_own(copied):
    small = np.zeros(MANY // 8)
    found, nbytes = copied([delayed(tasks.write)(small, 1)] * 2, batch_size=1)
    assert found == [1, 1]
    assert nbytes == 2 * small.nbytes


def test_tasks_may_not_write_to_what_is_shared(fresh, matrix):
    with pytest.raises(ValueError, match="read-only"):
        Parallel()([delayed(tasks.write)(matrix, 1)] * 2)


@pytest.mark.parametrize(("mode", "seen"), [("c", 0.5), ("r+", 7.0), ("w+", 7.0)])
def test_modes(on, tmp_path, mode, seen):
    array = np.full(MANY, 0.5)
    written = tmp_path / "written"
    calls = [
        delayed(tasks.write_and_tell)(array, 7, written),
        delayed(tasks.first_after)(array, written),
    ]
    assert Parallel(mmap_mode=mode, batch_size=1)(calls) == [0.5, seen]
    assert array[0] == 0.5


def test_tasks_write_to_a_file_that_is_mapped(on, tmp_path):
    out = np.memmap(tmp_path / "out.dat", dtype=float, shape=64, mode="w+")
    Parallel()(delayed(tasks.put)(out, i) for i in range(64))
    assert out.tolist() == list(range(64))


def test_copies_go_with_the_arrays(on):
    used = shmexec.stats().used
    most = []

    def arrays():
        for i in range(30):
            most.append(shmexec.stats().used - used)
            yield delayed(tasks.look)(np.full(MANY // 4, float(i)))

    Parallel(batch_size=1)(arrays())
    assert max(most) < 15 * 2 * MANY


def test_views_of_a_part_take_no_more_than_all():
    shared = shmexec.stats().shared
    array = np.arange(MANY, dtype=float)
    once = SharedOnce(1000, "r")
    views = [array[start : start + 2000] for start in range(0, MANY - 2000, 997)]
    stands = [once(view) for view in views]
    for view, stand in zip(views, stands, strict=True):
        assert (view == stand).all()
    assert once(array[:2000]) is not None
    del stands, stand
    assert shmexec.stats().shared - shared <= 2 * array.nbytes
    del array, view, views
    assert shmexec.stats().shared == shared
    assert not once._copies


def test_copies_go_without_the_garbage_collector():
    gc.collect()
    shared = shmexec.stats().shared
    array = np.zeros(MANY)
    gc.disable()
    try:
        once = SharedOnce(1000, "r")
        once(array)
        assert shmexec.stats().shared - shared >= array.nbytes
        del once
        assert shmexec.stats().shared == shared
    finally:
        gc.enable()


def test_arrays_at_an_address_that_was_used_before():
    once = SharedOnce(1000, "r")
    for value in range(20):  # malloc gives the same memory again
        array = np.full(5000, float(value))
        assert once(array)[0] == value
        del array


def test_shapes_and_kinds_of_views():
    once = SharedOnce(100, "r")
    fortran = np.asfortranarray(np.arange(6000.0).reshape(60, 100))
    spread = np.broadcast_to(np.arange(100.0), (50, 100))
    kinds = [fortran, fortran[3:, ::-2], spread, fortran.astype(">f4"), fortran.T[5]]
    for array in kinds:
        stand = once(array)
        np.testing.assert_array_equal(stand, array)
        assert stand.strides == array.strides
        assert not stand.flags.writeable
    assert once(np.array([object()] * 100)) is None
    assert once(np.zeros(2)) is None


# -- memory ------------------------------------------------------------------------------


def test_tasks_wait_for_room(matrix):
    row = matrix.ravel()
    with shmexec.Executor(2, max_shared_memory=3 * row.nbytes) as executor:
        settings = {"n_jobs": 2, "max_nbytes": None, "pre_dispatch": "all"}
        settings["backend"] = backend.ShmexecBackend(executor=executor)
        run = Parallel(batch_size=1, **settings)
        assert run(delayed(tasks.write)(row, i) for i in range(12)) == list(range(12))
        more = np.concatenate([row] * 4)
        with pytest.raises(shmexec.SharedMemoryFull, match="no room for 12800000 byte"):
            Parallel(**settings)([delayed(tasks.write)(more, 1)] * 3)
        assert run([delayed(tasks.write)(row, 1)] * 3) == [1, 1, 1]


# -- what goes wrong ---------------------------------------------------------------------


def _ended_early(executor):
    """Calls that failed, were stopped, or never begun."""
    stats = executor.stats()
    assert stats.pending == stats.running == 0
    return stats.failed + stats.cancelled


def test_an_error_stops_the_other_tasks_and_the_pool_goes_on(fresh, tmp_path):
    path = tmp_path / "running"
    calls = [delayed(tasks.stay)(path), delayed(tasks.fail)(path)]
    calls += [delayed(tasks.stay)()] * 10
    with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
        Parallel(pre_dispatch="all", batch_size=1)(calls)
    assert "joblib_tasks.py" in str(caught.value.__cause__)
    assert Parallel()(delayed(abs)(-i) for i in range(4)) == [0, 1, 2, 3]
    assert _ended_early(fresh) == 12


def test_a_timeout_stops_them(fresh):
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(timeout=0.05)(delayed(tasks.stay)() for _ in range(4))
    assert Parallel(timeout=60)([delayed(abs)(-1)] * 2) == [1, 1]


def test_a_worker_that_dies_fails_the_call_alone(fresh):
    with pytest.raises(shmexec.WorkerDied, match="SIGKILL"):
        Parallel()([delayed(tasks.die)()] * 2)
    assert Parallel()([delayed(abs)(-1)] * 2) == [1, 1]


def test_an_interrupt_stops_them(fresh, tmp_path):
    path = tmp_path / "struck"
    with pytest.raises(KeyboardInterrupt):
        Parallel()([delayed(tasks.strike)(os.getpid(), path)])
    assert Parallel()([delayed(abs)(-1)] * 2) == [1, 1]
    assert _ended_early(fresh) == 1


@pytest.mark.filterwarnings("ignore:.*tasks which were still being processed")
def test_a_generator_that_is_dropped_stops_its_own_tasks_only(fresh):
    # The first one has both workers.
    dropped = Parallel(return_as="generator")(delayed(tasks.stay)() for _ in range(4))
    kept = Parallel(return_as="generator")(delayed(abs)(-i) for i in range(4))
    del dropped
    assert list(kept) == [0, 1, 2, 3]
    assert _ended_early(fresh) == 4


# -- pools -------------------------------------------------------------------------------


def test_pools_are_kept_and_closed(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        with joblib.parallel_config(backend="shmexec", n_jobs=2):
            first = {*Parallel()(delayed(tasks.pid)(i) for i in range(20))}
            again = {*Parallel()(delayed(tasks.pid)(i) for i in range(20))}
            assert first & again
        with joblib.parallel_config("shmexec", n_jobs=2, inner_max_num_threads=3):
            assert Parallel()([delayed(tasks.threads)()] * 2) == [("3", "3")] * 2
            others = {*Parallel()(delayed(tasks.pid)(i) for i in range(20))}
            assert not others & first
    finally:
        backend.close_pools()
    assert not backend._pools


def test_settings_of_the_executor():
    with pytest.raises(TypeError, match="surprise"):
        Parallel(backend="shmexec", n_jobs=2, surprise=1)([delayed(abs)(1)])
    assert not backend._pools


def test_without_joblib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib.parallel", None)
    spec = importlib.util.spec_from_file_location("again", backend.__file__)
    with pytest.raises(ImportError, match=r"shmexec\[joblib\]"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# -- nesting -----------------------------------------------------------------------------


def test_tasks_within_tasks_are_threads_then_in_turn(on):
    assert (
        Parallel()([delayed(tasks.nesting)(2)] * 2)
        == [
            [
                ("ThreadingBackend", 1),
                ("SequentialBackend", 2),
                ("SequentialBackend", 2),
            ]
        ]
        * 2
    )


def test_a_pool_within_a_task(fresh):
    assert Parallel()([delayed(tasks.on_the_backend)([-1, -2])] * 2) == [[1, 2]] * 2


# -- scikit-learn ------------------------------------------------------------------------


def test_scikit_learn_has_the_same_scores(on):
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import GridSearchCV

    x, y = datasets.make_classification(2000, 80, random_state=0)

    def scores():
        grid = GridSearchCV(RidgeClassifier(), {"alpha": [0.1, 10]}, n_jobs=2, cv=3)
        forest = RandomForestClassifier(6, n_jobs=2, random_state=0)
        best = grid.fit(x, y).best_score_
        return best, forest.fit(x, y).predict_proba(x).tolist()

    before = on.stats()
    with joblib.parallel_config(backend="shmexec", executor=on, max_nbytes=5000):
        ours = scores()
    after = on.stats()
    assert after.submitted - before.submitted >= 2 * 2  # both ran there
    assert after.bytes_copied_in - before.bytes_copied_in < x.nbytes
    with joblib.parallel_config(backend="sequential"):
        assert scores() == ours


# -- joblib's own tests ------------------------------------------------------------------

FEW = (
    "(test_simple_parallel and 2-2-shmexec)"
    " or (test_error_in_task_iterator and shmexec)"
    " or (test_lambda_expression and shmexec)"
    " or (test_parallel_byteorder_corruption and 1-)"
    " or test_parallel_pickling"
)


def test_a_few_of_joblibs_own(tmp_path):
    done = joblib_suite.run(tmp_path, "-q", "-k", FEW)
    assert done.returncode == 0


@pytest.mark.stress
@pytest.mark.parametrize("part", range(6))
def test_joblibs_own(tmp_path, part):
    done = joblib_suite.run(tmp_path, "-q", part=(part, 6))
    assert done.returncode == 0
