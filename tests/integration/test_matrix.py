"""Every fault at every moment: only the calls that it hits fail, and the pool goes on.

What is expected stands in ``matrix``. By default a sample of it runs, in which each fault
and each moment occurs; all pairs, and a sample of each kind of workers, under ``stress``;
with ``--every-kind`` all pairs for all kinds.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import shmexec
from shmexec import faultpoints
from shmexec.scheduler import state
from tests.integration import matrix, matrix_faults
from tests.integration.matrix import Pair
from tests.integration.trials import PATIENCE, Trial
from tests.waiting import wait_until

SEGMENTS = {"forkserver": "memfd", "fork": "posix", "spawn": "memfd"}


@pytest.fixture
def trial(request, tmp_path, monkeypatch) -> Iterator[Trial]:
    pair: Pair = request.param
    monkeypatch.setenv("SHMEXEC_SEGMENT", SEGMENTS[pair.method])
    monkeypatch.setenv("SHMEXEC_NATIVE", str(int(pair.native)))
    # How long a worker may take for its end: what hangs there is waited for.
    monkeypatch.setattr(state, "EXIT_WITHIN", 0.3)
    monkeypatch.setattr(state, "MUTE_AT_MOST", 0.2)
    trial = Trial(pair, tmp_path)
    if pair.moment == "leased":
        monkeypatch.setattr(faultpoints, "hook", trial.between_lease_and_send)
    yield trial
    trial.clean_up()


@pytest.fixture
def way_trial(trial, way) -> tuple[Trial, str]:
    return trial, way


def arrays() -> list[np.ndarray]:
    return [np.full(100_000, n, np.uint8) for n in range(1, 5)]


def run(trial: Trial, gate) -> None:
    """Two workers: one is at a call all the while, the other one is struck."""
    pair = trial.pair
    executor = shmexec.Executor(
        2,
        pair.method,
        initializer=matrix_faults.initialize,
        initargs=(np.full(50_000, 5, np.uint8),),
        max_tasks_per_child=1 if pair.moment == "draining" else None,
        worker_env=trial.env(),
    )
    with executor, contextlib.ExitStack() as left:
        left.callback(gate.open)  # whatever fails here
        held = executor.submit(
            matrix_faults.double_behind, gate, np.full(100_000, 9, np.uint8)
        )
        gate.arrived()
        if pair.moment in {"idle", "leased"}:
            # The other one is there, and has nothing to do.
            assert (
                executor.submit(matrix_faults.double, np.ones(9)).result(PATIENCE)[0]
                == 2
            )
        trial.arm()
        if pair.moment == "idle":
            [pid] = {w.pid for w in executor.stats().workers if w.state == "idle"}
            trial.strike(pid)
        futures = submit(executor, trial)
        if trial.starves:
            assert wait_until(trial.has_struck, PATIENCE)
            gate.open()
        if pair.fault.startswith("SIGSTOP") and pair.moment not in {
            "draining",
            "shutdown",
        }:
            trial.resume()
        check_calls(trial, futures)
        assert pair.moment == "shutdown" or wait_until(trial.has_struck, PATIENCE)
        gate.open()
        assert (held.result(PATIENCE) == 18).all()
        check_use(trial, executor)
    assert trial.has_struck()
    assert held.done()


def submit(executor, trial: Trial) -> list[shmexec.Future]:
    """Calls for the other worker. One that it hangs at has a time-out."""
    hit = 1 if trial.pair.moment == "replied" else 0
    futures = []
    for number, array in enumerate(arrays()):
        limit = 0.4 if trial.pair.expected == matrix.TIMEOUT and number == hit else None
        call = executor.options(timeout=limit)
        futures.append(call.submit(matrix_faults.double, array))
        array[:] = 0  # this copy is ours
    return futures


def check_calls(trial: Trial, futures: list[shmexec.Future]) -> None:
    """Those fail that are expected to, and as they should; all others are right."""
    pair, failed = trial.pair, []
    for future, array in zip(futures, arrays(), strict=True):
        error = future.exception(PATIENCE)
        if error is None:
            assert (future.result() == array * 2).all()
        else:
            failed.append(error)
    if pair.expected == matrix.NONE:
        assert failed == []
    elif pair.expected == matrix.BROKEN:
        assert len(failed) == len(futures)
    else:
        assert len(failed) == 1
    for error in failed:
        trial.check(error)


def check_use(trial: Trial, executor) -> None:
    """The pool is usable; what is broken says so."""
    if trial.pair.expected == matrix.BROKEN:
        with pytest.raises(shmexec.PoolBroken):
            executor.submit(matrix_faults.double, np.ones(3))
        return
    array = np.arange(50_000)
    futures = [executor.submit(matrix_faults.double, array) for _ in range(3)]
    for future in futures:
        assert (future.result(PATIENCE) == array * 2).all()


# -- other ways of calling ---------------------------------------------------------------

ITEMS = 10


def packed(executor, trial) -> tuple[list, list]:
    executor.options(timeout=None).map(matrix_faults.tiny, [0] * 50, chunksize=1)
    expected = [2 * number for number in range(ITEMS)]
    futures = [executor.submit(matrix_faults.tiny, n) for n in range(ITEMS)]
    return expected, futures


def batched(executor, trial) -> tuple[list, list]:
    batcher = executor.batcher(matrix_faults.batch, max_batch_size=1)
    futures = [batcher(number) for number in range(ITEMS)]
    return [2 * number for number in range(ITEMS)], futures


def acted(executor, trial) -> tuple[list, list]:
    actor = executor.actor(matrix_faults.Model)
    futures = [actor.step(number) for number in range(ITEMS)]
    actor.close(wait=False)
    return [matrix_faults.row(number) for number in range(ITEMS)], futures


def side_by_side(executor, trial) -> tuple[list, list]:
    actor = executor.actor(matrix_faults.Several, max_concurrency=3)
    futures = [actor.step(number) for number in range(ITEMS)]
    actor.close(wait=False)
    return [matrix_faults.row(number) for number in range(ITEMS)], futures


WAYS = {
    "pack": packed,
    "batcher": batched,
    "actor": acted,
    "side by side": side_by_side,
}


def try_calls(trial: Trial, way: str, executor) -> None:
    """Several calls, one of which is hit."""
    expected, futures = WAYS[way](executor, trial)
    failed = {}
    for number, future in enumerate(futures):
        error = future.exception(PATIENCE)
        if error is None:
            assert np.all(future.result() == expected[number])
        else:
            failed[number] = error
    if trial.pair.expected == matrix.NONE:
        assert failed == {}
        return
    trial.check(failed[matrix_faults.HIT])
    # Those that share its worker have begun, or may have.
    ended = trial.pair.expected in {matrix.DIED, matrix.TIMEOUT}
    others = 3 if way == "side by side" and ended else 0
    assert len(failed) <= 1 + others


def try_stream(trial: Trial, _way: str, executor) -> None:
    """Items until the fault; all of them if it harms nothing."""
    items = executor.stream(matrix_faults.stream, ITEMS)
    for number in range(matrix_faults.HIT):
        assert (next(items) == number).all()
    if trial.pair.expected == matrix.NONE:
        assert [item[0] for item in items] == [*range(matrix_faults.HIT, ITEMS)]
        return
    with pytest.raises(BaseException) as caught:  # noqa: PT011  (looked at)
        next(items)
    trial.check(caught.value)


def try_batches(trial: Trial, _way: str, executor) -> None:
    """The rows of an array."""
    array = np.repeat(np.arange(ITEMS, dtype=np.uint8)[:, None], 10_000, 1)
    try:
        result = executor.map_batches(matrix_faults.rows, array, batch_size=1)
    except BaseException as error:  # noqa: BLE001  (looked at)
        trial.check(error)
    else:
        # What fills up the arena is no matter where results have their place.
        assert trial.pair.expected in {matrix.NONE, matrix.FULL}
        assert (result == array * 2).all()


TRIES = dict.fromkeys(WAYS, try_calls) | {"stream": try_stream, "batches": try_batches}


def way_pairs(*, quick: bool, of_all_kinds: bool) -> Iterator[tuple[str, Pair]]:
    """In each way one fault; else every second one, or each, of the others."""
    faults = [*matrix_faults.FAULTS]
    for number, way in enumerate(TRIES):
        for at, fault in enumerate(faults):
            if quick is not (at == (5 * number + 2) % len(faults)):
                continue
            if not quick and not of_all_kinds and (number + at) % 2:
                continue
            if fault == "arena filled" and way in {"pack", "batcher"}:
                continue  # their results take no room there
            method = ("forkserver", "fork")[at // 2 % 2]
            yield way, Pair(fault, "in the call", method, native=bool(at % 3))


def run_way(trial: Trial, way: str) -> None:
    """The fault strikes in a call of this way; then the pool is usable."""
    limit = 2.0 if trial.pair.expected == matrix.TIMEOUT else None
    executor = shmexec.Executor(
        2, trial.pair.method, worker_env=trial.env(), timeout=limit
    )
    with executor, contextlib.ExitStack() as left:
        trial.arm()
        if trial.pair.fault.startswith("SIGSTOP"):
            resuming = threading.Thread(target=trial.resume)
            resuming.start()
            left.callback(resuming.join)
        TRIES[way](trial, way, executor)
        assert trial.has_struck()
        use = executor.options(timeout=PATIENCE)
        assert use.submit(matrix_faults.tiny, 1).result(PATIENCE) == 2


@pytest.mark.filterwarnings("ignore:actor .* was killed:RuntimeWarning")  # so it is
def test_in_other_ways_of_calling(way_trial):
    run_way(*way_trial)


@pytest.mark.filterwarnings("ignore:actor .* was killed:RuntimeWarning")  # so it is
@pytest.mark.stress
def test_every_fault_in_other_ways_of_calling(way_trial):
    run_way(*way_trial)


# -- in which tests ------------------------------------------------------------------------


def pytest_generate_tests(metafunc) -> None:
    quick = metafunc.definition.get_closest_marker("stress") is None
    of_all_kinds = metafunc.config.getoption("every_kind")
    if "way_trial" in metafunc.fixturenames:
        found = [*way_pairs(quick=quick, of_all_kinds=of_all_kinds)]
        ids = [f"{way}-{pair.fault}-{pair.method}" for way, pair in found]
        metafunc.parametrize(("way", "trial"), found, indirect=["trial"], ids=ids)
    elif "trial" in metafunc.fixturenames:
        pairs = matrix.quick_pairs()
        if not quick:
            pairs = matrix.other_pairs(of_all_kinds=of_all_kinds)
        ids = [pair.id for pair in pairs]
        metafunc.parametrize("trial", pairs, indirect=True, ids=ids)


def test_a_fault_at_a_moment(trial, gate):
    run(trial, gate)


@pytest.mark.stress
def test_every_fault_at_every_moment(trial, gate):
    run(trial, gate)


def test_the_sample_has_every_fault_and_every_moment():
    pairs = matrix.quick_pairs()
    assert {pair.fault for pair in pairs} == {*matrix_faults.FAULTS} == {*matrix.TABLE}
    assert {pair.moment for pair in pairs} == {*matrix.MOMENTS}
    assert {(pair.method, pair.native) for pair in pairs} >= {
        ("forkserver", True),
        ("fork", False),
        ("spawn", True),
    }
