"""What a new worker starts with, and what it must not pay for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import shmexec
from shmexec.runtime import monitor, workers
from tests.waiting import LONG, wait_until

HEAVY = [
    "psutil",  # the parent's
    "concurrent.futures.process",
    "hashlib",  # all of OpenSSL
    "numpy.ma",
    "numpy.random",  # every worker would have its stream
    "shmexec.runtime",
]


def blas_threads() -> set[int]:
    from threadpoolctl import threadpool_info

    return {each["num_threads"] for each in threadpool_info()}


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_worker_is_light(method):
    # Not by a function of this module: it imports what is looked for.
    code = f"[name for name in {HEAVY!r} if name in __import__('sys').modules]"
    with shmexec.Executor(1, method) as executor:
        assert executor.submit(eval, code).result() == []
        assert executor.submit(np.ones, 3).result().sum() == 3
        assert executor.submit(eval, code).result() == []


@pytest.mark.every_start
@pytest.mark.parametrize("threads", [1, 2])
def test_blas_threads_are_limited(make_executor, threads):
    executor = make_executor(1, threads_per_worker=threads)
    assert executor.submit(blas_threads).result() <= {threads}
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        assert executor.submit(os.getenv, name).result() == str(threads)


def test_limiting_threads_imports_nothing():
    """That takes longer than all else that a new worker does: the fork server has it."""
    with shmexec.Executor(1, "forkserver", threads_per_worker=2) as executor:
        code = "'threadpoolctl' in __import__('sys').modules"
        assert executor.submit(eval, code).result()
        assert executor.submit(blas_threads).result() <= {2}


def test_executors_share_one_fork_server():
    parents = set()
    for _ in range(3):
        with shmexec.Executor(1, "forkserver") as executor:
            parents.add(executor.submit(os.getppid).result())
    assert len(parents) == 1
    assert parents != {os.getpid()}


def test_a_program_with_its_executor_in_process_starts_nothing():
    code = """
import psutil, shmexec
with shmexec.Executor(1, in_process=True) as executor:
    assert executor.submit(abs, -1).result() == 1
assert psutil.Process().children() == []
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_first_result_does_not_need_psutil():
    code = """
import sys, numpy as np, shmexec
with shmexec.Executor(1) as executor:
    assert executor.submit(np.sum, np.ones(100_000)).result() == 100_000
for name in ("psutil", "numpy.ma", "numpy.random"):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_machines_memory_is_known_without_proc(monkeypatch):
    import psutil

    direct = monitor._machine()
    monkeypatch.setattr(monitor, "Path", lambda _name: _Missing())
    total, available = monitor._machine()
    assert total == direct[0] == psutil.virtual_memory().total
    assert available == pytest.approx(direct[1], rel=0.2)


class _Missing:
    def read_text(self) -> str:
        raise FileNotFoundError


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_what_lies_in_the_current_directory_is_not_taken(tmp_path, method):
    """A source tree, say, of which another version is installed."""
    other, program = tmp_path / "other", tmp_path / "bin" / "program.py"
    for module in ("shmexec", "numpy"):
        (other / module).mkdir(parents=True)
        (other / module / "__init__.py").write_text("raise SystemExit('not this one')")
    program.parent.mkdir()
    program.write_text(
        "import inspect, shmexec\n"
        f"with shmexec.Executor(1, {method!r}) as ex:\n"
        "    import shmexec.worker.main as here\n"
        "    there = ex.submit(inspect.getfile, shmexec).result()\n"
        "    print(there == shmexec.__file__, ex.stats().worker_deaths)\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=other,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert (done.stdout, done.stderr) == ("True 0\n", "")


def test_starting_is_tried_again_while_a_thread_waits_for_a_result(monkeypatch):
    """The dispatcher fails to start workers; the thread that leads must know when next."""
    tries = []

    def refuse(*_args):
        tries.append(1)
        raise OSError("not now")

    monkeypatch.setattr(workers, "WorkerProcess", refuse)
    with (
        shmexec.Executor(2) as executor,
        pytest.raises(shmexec.PoolBroken, match="not now"),
    ):
        executor.submit(abs, -1).result(LONG)
    assert len(tries) == 4


DIES_AT_ONCE = """
import os, signal, shmexec
from multiprocessing import forkserver
from shmexec.runtime.server import fork_server

read, pids = forkserver.read_signed, []

def read_none_at_first(status):
    pid = read(status)
    if not pids:
        os.kill(fork_server()._forkserver_pid, signal.SIGKILL)
        pids.append(pid)
        raise EOFError
    return pid

forkserver.read_signed = read_none_at_first
with shmexec.Executor(1, "forkserver") as executor:
    for each in range(50):
        assert executor.submit(abs, each).result(20) == each
print(*pids)
"""


def test_the_fork_server_dies_when_it_has_just_started_a_worker():
    """That worker lives, but is not known: no other one may share its sockets."""
    command = [sys.executable, "-c", DIES_AT_ONCE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert wait_until(lambda: not runs(done.stdout.strip()))


CTRL_C = """
import os, signal, shmexec, time
from shmexec.runtime import server

server.start_fork_server()
pid = server.fork_server()._forkserver_pid
for _ in range(50):
    os.kill(pid, signal.SIGINT)
    time.sleep(0.01)
with shmexec.Executor(1, "forkserver") as executor:
    assert executor.submit(os.getppid).result(20) == pid
"""


def test_ctrl_c_while_the_fork_server_loads_modules():
    """It goes to all processes of the terminal, so it may come at any moment."""
    command = [sys.executable, "-c", CTRL_C]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.every_start
def test_a_worker_blocks_no_signal(executor):
    assert (
        executor.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result() == set()
    )


def runs(pid):
    """Whether it does; who is to collect it may take its time."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
