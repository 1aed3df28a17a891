"""Every fault at every moment: only the calls that it hits fail, and the pool goes on.

What is expected stands in ``matrix``. By default a sample of it runs, in which each fault
and each moment occurs; all pairs, and a sample of each kind of workers, under ``stress``;
with ``--every-kind`` all pairs for all kinds.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shmexec
from shmexec import faultpoints
from shmexec.scheduler import state
from tests.integration import matrix, matrix_faults
from tests.integration.faults import is_gone
from tests.integration.matrix import Pair
from tests.waiting import LONG, wait_until

SEGMENTS = {"forkserver": "memfd", "fork": "posix", "spawn": "memfd"}
TEXTS = {
    "SIGKILL": "SIGKILL",
    "SIGSEGV": "SIGSEGV",
    "os._exit": "code 7",
    "sys.exit": "code 7",
    "KeyboardInterrupt": "code 1",
    "stack overflow": "SIGSEGV",
    "MemoryError": "code 1",
    "closed descriptors": "code 1",
    "closed, and goes on": "closed its end of the connection",
    "empty message": "closed its end of the connection",
    "grandchild": "SIGKILL",
    "truncated message": "that are no message|code 7",
    "garbage": "35 bytes that are no message|where a message is to start",
}
"""What WorkerDied says of it."""

STAY = {"SIGTERM ignored", "closed, and goes on", "empty message", "garbage"}

OWN = {
    "sys.exit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "MemoryError": MemoryError,
}


class Trial:
    """One pair, tried."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.pair = pair
        self.folder = folder
        # Processes that do not end, nor come to the end of the fault.
        self.stays = pair.fault in STAY
        # Nothing limits a start: calls wait for another worker.
        self.starves = pair.fault == "SIGTERM ignored" and pair.moment in {
            "starting",
            "initializer",
        }

    # -- the fault -----------------------------------------------------------------------

    def env(self) -> dict[str, str]:
        """What workers are told."""
        return {
            "SHMEXEC_FAULT_HOOK": "tests.integration.matrix_faults:hook",
            "MATRIX_FAULT": self.pair.fault,
            "MATRIX_MOMENT": matrix.MOMENTS[self.pair.moment],
            "MATRIX_FOLDER": str(self.folder),
        }

    def arm(self) -> None:
        (self.folder / "armed").touch()

    def has_struck(self) -> int:
        """The process that was struck, if any."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.folder / "pid").read_text())
        return 0

    def strike(self, pid: int) -> None:
        """Have a worker that waits for a message be struck; returns when it was."""
        os.kill(pid, signal.SIGUSR2)
        assert wait_until(self.has_struck)
        if self.stays:
            return
        assert wait_until(lambda: self.is_over(pid))

    def is_over(self, pid: int) -> bool:
        """Whether the fault has come to its end, one way or the other."""
        return (
            (self.folder / "survived").exists() or is_gone(pid) or state_of(pid) == "T"
        )

    def between_lease_and_send(self, point: str, handle) -> None:
        """The hook in this process."""
        if point == "parent.leased" and (self.folder / "armed").exists():
            self.strike(handle.process.pid)

    def resume(self) -> None:
        """Have a stopped worker go on."""
        assert wait_until(self.has_struck)
        pid = self.has_struck()
        assert wait_until(lambda: state_of(pid) == "T")
        os.kill(pid, signal.SIGCONT)

    def clean_up(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self.folder / "grandchild").read_text()), signal.SIGKILL)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


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
                executor.submit(matrix_faults.double, np.ones(9)).result(LONG)[0] == 2
            )
        trial.arm()
        if pair.moment == "idle":
            [pid] = {w.pid for w in executor.stats().workers if w.state == "idle"}
            trial.strike(pid)
        futures = submit(executor, trial)
        if trial.starves:
            assert wait_until(trial.has_struck)
            gate.open()
        if pair.fault.startswith("SIGSTOP") and pair.moment not in {
            "draining",
            "shutdown",
        }:
            trial.resume()
        check_calls(trial, futures)
        assert pair.moment == "shutdown" or wait_until(trial.has_struck)
        gate.open()
        assert (held.result(LONG) == 18).all()
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
        error = future.exception(LONG)
        if error is None:
            assert (future.result() == array * 2).all()
        else:
            failed.append(error)
    expected = pair.expected
    if expected == matrix.NONE:
        assert failed == []
    elif expected == matrix.BROKEN:
        assert len(failed) == len(futures)
        assert {type(error) for error in failed} == {shmexec.PoolBroken}
    else:
        [error] = failed
        if expected == matrix.DIED:
            assert type(error) is shmexec.WorkerDied
            assert re.search(TEXTS[pair.fault], str(error)), str(error)
        elif expected == matrix.TIMEOUT:
            assert type(error) is shmexec.CallTimeout
        elif expected == matrix.FULL:
            assert type(error) is shmexec.SharedMemoryFull
        else:
            assert type(error) is OWN[pair.fault]


def check_use(trial: Trial, executor) -> None:
    """The pool is usable; what is broken says so."""
    if trial.pair.expected == matrix.BROKEN:
        with pytest.raises(shmexec.PoolBroken):
            executor.submit(matrix_faults.double, np.ones(3))
        return
    array = np.arange(50_000)
    futures = [executor.submit(matrix_faults.double, array) for _ in range(3)]
    for future in futures:
        assert (future.result(LONG) == array * 2).all()


def pytest_generate_tests(metafunc) -> None:
    if "trial" in metafunc.fixturenames:
        pairs = matrix.quick_pairs()
        if metafunc.definition.get_closest_marker("stress"):
            of_all_kinds = metafunc.config.getoption("every_kind")
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
