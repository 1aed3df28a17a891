"""Nothing outlives the program, however it ends. Each test runs a script of its own."""

from __future__ import annotations

import signal

import psutil
import pytest

from tests.integration.programs import run, session, start
from tests.waiting import shm_names, wait_until

METHODS = ["fork", "forkserver", "spawn"]
KINDS = ["memfd", "posix"]
# Each method once, and each kind; the stress tests take all pairs.
PAIRS = [("fork", "posix"), ("forkserver", "memfd"), ("spawn", "memfd")]


# -- kill -9 -------------------------------------------------------------------------------

IN_FLIGHT = """
import os, signal, sys
import numpy as np
import shmexec
from tests.integration import faults

method, megabytes, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]

class Gate:
    def __init__(self, folder): self.folder = folder

def busy(gate, array):
    faults.arrive(gate)
    while True: array += 1

def stop(gate, array):
    faults.arrive(gate)
    while True: os.kill(os.getpid(), signal.SIGSTOP)

def hold(gate, array):
    faults.stuck_in_c(gate)

ex = shmexec.Executor(4, method, max_shared_memory="4GB")
held = ex.submit(faults.filled, 1 << 20).result()
gate = Gate(folder)
each = np.ones(megabytes << 18, np.uint8)
futures = [ex.submit(fn, gate, each) for fn in (busy, stop, hold, busy)]
more = [ex.submit(busy, gate, held) for _ in range(8)]
futures[0].add_done_callback(print)
signal.pause()
"""


def killed_in_mid_call(tmp_path, gate, method, kind, megabytes):
    names = shm_names()
    process = start(tmp_path, IN_FLIGHT, method, megabytes, gate.folder, kind=kind)
    try:
        workers = gate.arrived(4)
        processes = session(process.pid)
        assert set(workers) < {each.pid for each in processes}

        def one_is_stopped():
            states = [psutil.Process(pid).status() for pid in workers]
            return psutil.STATUS_STOPPED in states

        assert wait_until(one_is_stopped)
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = wait_until(lambda: not session(process.pid), 2)
        assert left, [(p.pid, p.status(), p.cmdline()) for p in session(process.pid)]
    finally:
        for each in session(process.pid):
            each.kill()
        process.kill()
        _, err = process.communicate(timeout=10)
    if kind == "memfd":
        assert wait_until(lambda: shm_names() <= names), err


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_kill_9_of_the_parent_ends_everything(tmp_path, gate, method, kind):
    killed_in_mid_call(tmp_path, gate, method, kind, 64)


@pytest.mark.stress
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_kill_9_with_a_gigabyte_in_flight(tmp_path, gate, method, kind):
    killed_in_mid_call(tmp_path, gate, method, kind, 1024)


@pytest.mark.parametrize("method", METHODS)
def test_kill_9_while_workers_start(tmp_path, gate, method):
    source = """
import signal, sys
import shmexec
from tests.contract import calls
from tests.integration import faults
ex = shmexec.Executor(2, sys.argv[1], initializer=faults.stuck_in_c,
                      initargs=(calls.Barrier(sys.argv[2]),))
futures = [ex.submit(int) for _ in range(2)]
signal.pause()
"""
    process = start(tmp_path, source, method, gate.folder)
    try:
        gate.arrived(2)
        process.kill()
        process.wait()
        assert wait_until(lambda: not session(process.pid), 2)
    finally:
        for each in session(process.pid):
            each.kill()
        process.communicate(timeout=10)


# -- the ordinary end ------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_exit_finishes_submitted_calls(tmp_path, method, kind):
    """And a script needs no main guard: its functions go by value."""
    source = """
import sys
import numpy as np
import shmexec
print("main runs")

def note(n, array):
    with open(sys.argv[2], "a") as file:
        file.write(f"{n} {int(array.sum())}\\n")

ex = shmexec.Executor(2, sys.argv[1])
for n in range(10):
    ex.submit(note, n, np.ones(50_000, np.uint8))
"""
    log = tmp_path / "log"
    out, err = run(tmp_path, source, method, log, kind=kind)
    assert out == "main runs\n"
    assert err == ""
    assert sorted(log.read_text().splitlines()) == [f"{n} 50000" for n in range(10)]


ENDINGS = {
    "an idle executor": ("ex.submit(int).result()", 0),
    "never used": ("", 0),
    "results held": ("x = ex.submit(np.ones, 100_000).result()", 0),
    "shut down": ("ex.submit(int); ex.shutdown(wait=False)", 0),
    "garbage": ("f = ex.submit(time.sleep, 0.1); del ex; gc.collect(); f.result()", 0),
    "garbage with calls": ("ex.submit(time.sleep, 0.1); del ex", 0),
    "an exception": ("ex.submit(time.sleep, 0.1); 1 / 0", 1),
    "sys.exit": ("ex.submit(time.sleep, 0.1); sys.exit(3)", 3),
    "an unhandled WorkerDied": ("ex.submit(os._exit, 1).result()", 1),
    "a cycle": ("ex.me = ex; ex.submit(int).result(); del ex", 0),
    "a running thread": (
        "threading.Thread(target=lambda: ex.submit(time.sleep, 0.1).result()).start()",
        0,
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_the_interpreter_ends(tmp_path, name):
    body, code = ENDINGS[name]
    source = (
        "import gc, os, sys, threading, time\nimport numpy as np\nimport shmexec\n"
        f"ex = shmexec.Executor(2)\n{body}\n"
    )
    _, err = run(tmp_path, source, code=code)
    assert ("Traceback" in err) == (code == 1)


def test_a_collected_executor_lets_its_workers_go(tmp_path):
    source = """
import gc, os
import psutil
import shmexec
from tests.waiting import wait_until
ex = shmexec.Executor(2)
pids = ex.broadcast(os.getpid)
future = ex.submit(lambda: "right")
del ex
gc.collect()
assert future.result() == "right"
wait_until(lambda: not any(map(psutil.pid_exists, pids)))
print(len(pids), any(map(psutil.pid_exists, pids)))
"""
    out, err = run(tmp_path, source)
    assert (out, err) == ("2 False\n", "")


# -- asyncio ---------------------------------------------------------------------------------


def test_asyncio_gather(tmp_path):
    source = """
import asyncio
import numpy as np
import shmexec

async def main():
    loop = asyncio.get_running_loop()
    with shmexec.Executor(2) as ex:
        calls = [loop.run_in_executor(ex, lambda x: x.sum(), np.full(50_000, n)) for n in range(20)]
        print(sum(await asyncio.gather(*calls)))
        print(await asyncio.wrap_future(ex.submit(pow, 2, 10)))

asyncio.run(main())
"""
    out, err = run(tmp_path, source)
    assert (out, err) == (f"{50_000 * sum(range(20))}\n1024\n", "")


# -- fork --------------------------------------------------------------------------------------


def test_a_forked_child_cannot_use_its_parents_executor(tmp_path):
    source = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import shmexec, signal
ex = shmexec.Executor(2)
ex.submit(int).result()
open_future = ex.submit(signal.pause)
pid = os.fork()
if pid == 0:
    code = 1
    try:
        for use in (lambda: ex.submit(int), lambda: ex.map(int, [1]),
                    lambda: open_future.result(), lambda: ex.resize(1)):
            try: use()
            except shmexec.PoolClosed as error: assert "parent" in str(error), error
            else: raise AssertionError(use)
        ex.shutdown()
        with shmexec.Executor(1) as own:
            assert own.submit(pow, 2, 3).result() == 8
        del ex
        code = 0
    finally:
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(ex.submit(pow, 2, 4).result())
open_future.cancel(running=True)
"""
    out, err = run(tmp_path, source)
    assert out == "0\n16\n", err


def test_a_forked_child_that_exits_normally_leaves_the_parents_pool_alone(tmp_path):
    source = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import shmexec
ex = shmexec.Executor(2)
worker = ex.submit(os.getpid).result()
pid = os.fork()
if pid == 0:
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert ex.submit(os.getpid).result() == worker
"""
    run(tmp_path, source)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_keeps_the_results_it_inherited(tmp_path, kind):
    """The parent drops its view, and the worker would use the block again."""
    source = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import numpy as np
import shmexec
from tests.integration import faults
ex = shmexec.Executor(1)
size = 1 << 20
result = ex.submit(faults.filled, size, 7).result()
go, ready = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(ready)
    os.read(go, 1)
    os._exit(0 if (result == 7).all() else 1)
os.close(go)
del result
for n in range(5):
    assert ex.submit(faults.filled, size, 50 + n).result()[0] == 50 + n
    assert ex.submit(faults.total, np.full(size, n, np.uint8)).result() == n * size
os.write(ready, b".")
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    out, err = run(tmp_path, source, kind=kind)
    assert out == "0\n", err


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_forked_by_a_call_keeps_the_argument(tmp_path, kind):
    source = """
import os, sys
import numpy as np
import shmexec
from tests.integration import faults

def fork_and_return(array, path):
    go, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        os.read(go, 1)
        with open(path, "w") as file: file.write(str(int((array == 7).all())))
        os._exit(0)
    os.close(go)
    return os.dup(ready), pid

def let_go(ready, pid):
    os.write(ready, b".")
    return os.waitpid(pid, 0)[1]

ex = shmexec.Executor(1)
size = 1 << 20
ready, pid = ex.submit(fork_and_return, np.full(size, 7, np.uint8), sys.argv[1]).result()
for n in range(5):
    assert ex.submit(faults.total, np.full(size, n, np.uint8)).result() == n * size
assert ex.submit(let_go, ready, pid).result() == 0
print(open(sys.argv[1]).read())
"""
    out, err = run(tmp_path, source, tmp_path / "said", kind=kind)
    assert out == "1\n", err
