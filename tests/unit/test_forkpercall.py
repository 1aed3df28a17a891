"""The one-process-per-call baseline."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, as_completed, wait

import numpy as np
import psutil
import pytest

import shmexec.forkpercall
from shmexec.errors import (
    PoolClosed,
    RemoteError,
    RemoteTraceback,
    SerializationError,
    WorkerDied,
)
from shmexec.forkpercall import ForkPerCallExecutor
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def descriptors():
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_left():
    threads, files = threading.active_count(), len(descriptors())
    # Other tests may have left a fork server behind: it belongs to the interpreter.
    processes = set(psutil.Process().children())
    yield
    assert threading.active_count() == threads
    assert len(descriptors()) == files
    assert not shmexec.forkpercall._parent.descriptors
    assert set(psutil.Process().children()) <= processes


@pytest.fixture
def ex():
    with ForkPerCallExecutor(2) as executor:
        yield executor


class NeedsTwoError(Exception):
    """Cannot be rebuilt: pickle calls it with the message only."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class Unloadable:
    def __reduce__(self):
        return int, ("not a number",)


def boom(_):
    raise KeyError("boom")


# ---- results


def test_runs_in_another_process(ex):
    assert ex.submit(os.getpid).result() != os.getpid()


def test_every_call_has_its_own_process(ex):
    pids = [ex.submit(os.getpid).result() for _ in range(5)]
    assert len(set(pids)) == 5


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_in_and_out(ex, order):
    x = np.asarray(np.random.default_rng(0).random((128, 64)), order=order)
    assert x.nbytes == 64 * 1024
    y = ex.submit(lambda a, *, b: a + b, x, b=1).result()
    np.testing.assert_array_equal(y, x + 1)
    assert y.flags.writeable
    assert y.flags.f_contiguous == (order == "F")


def test_large_result(ex):
    y = ex.submit(np.arange, 2_000_000).result()
    np.testing.assert_array_equal(y, np.arange(2_000_000))


def test_empty_and_nested_results(ex):
    value = ex.submit(lambda: {"a": np.empty((0, 3)), "b": [None, 1, "x"]}).result()
    assert value["a"].shape == (0, 3)
    assert value["b"] == [None, 1, "x"]


def test_the_parents_array_is_untouched(ex):
    x = np.zeros(10)

    def fill():
        x[:] = 7
        return x

    assert ex.submit(fill).result().sum() == 70
    assert x.sum() == 0


def test_closure_over_what_cannot_be_pickled(ex):
    lock = threading.Lock()
    assert ex.submit(lambda: (lock, lock.locked())[1]).result() is False


def test_map_keeps_the_order_and_is_eager(ex):
    assert list(ex.map(lambda a, b: a * b, range(6), range(6))) == [
        0,
        1,
        4,
        9,
        16,
        25,
    ]


def test_as_completed_and_callbacks(ex):
    seen = []
    futures = [ex.submit(lambda i=i: i) for i in range(6)]
    for future in futures:
        future.add_done_callback(lambda f: seen.append(f.result()))
    assert sorted(f.result() for f in as_completed(futures, 30)) == list(range(6))
    wait(futures)
    assert sorted(seen) == list(range(6))


def test_asyncio(ex):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            *(loop.run_in_executor(ex, lambda i=i: i + 1) for i in range(4))
        )

    assert asyncio.run(main()) == [1, 2, 3, 4]


def test_random_streams_differ(ex):
    def draw(_):
        return random.random(), np.random.rand()  # noqa: NPY002  (the global stream)

    draws = list(ex.map(draw, range(4)))
    assert len({a for a, _ in draws}) == 4
    assert len({b for _, b in draws}) == 4


def test_nested(ex):
    def inner():
        with ForkPerCallExecutor(2) as mine:
            return list(mine.map(lambda i: i * 2, range(4)))

    assert ex.submit(inner).result() == [0, 2, 4, 6]


def test_submit_from_many_threads(ex):
    results = []

    def go(k):
        results.append(ex.submit(lambda: k).result())

    threads = [threading.Thread(target=go, args=(k,)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(12))


# ---- the call's own failures


def test_exception_with_the_childs_traceback_as_cause(ex):
    with pytest.raises(KeyError, match="boom") as info:
        ex.submit(boom, 1).result()
    assert isinstance(info.value.__cause__, RemoteTraceback)
    assert 'raise KeyError("boom")' in str(info.value.__cause__)


def test_notes_arrive(ex):
    def noted():
        error = ValueError("x")
        error.add_note("a note")
        raise error

    with pytest.raises(ValueError, match="x") as info:
        ex.submit(noted).result()
    assert info.value.__notes__ == ["a note"]


def test_exception_that_cannot_be_pickled(ex):
    def fail():
        error = ValueError("bad")
        error.lock = threading.Lock()
        raise error

    with pytest.raises(RemoteError, match="ValueError: bad") as info:
        ex.submit(fail).result()
    assert info.value.type_name == "ValueError"
    assert "in fail" in info.value.traceback_text


def test_exception_that_cannot_be_rebuilt(ex):
    def fail():
        raise NeedsTwoError("this", "that")

    with pytest.raises(RemoteError, match="NeedsTwoError: this and that"):
        ex.submit(fail).result()


def test_exception_with_a_broken_str(ex):
    class OddError(Exception):
        def __str__(self):
            raise ValueError

        def __reduce__(self):
            raise TypeError

    def fail():
        raise OddError

    with pytest.raises(RemoteError, match="__str__ failed"):
        ex.submit(fail).result()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_exits_are_the_calls_answer(ex, error):
    def fail():
        raise error

    assert type(ex.submit(fail).exception()) is type(error)
    assert ex.submit(int, "5").result() == 5


@pytest.mark.parametrize(
    "result", [lambda: (i for i in ()), threading.Lock, sys._getframe]
)
def test_result_that_cannot_be_pickled(ex, result):
    with pytest.raises(SerializationError, match=r"result of .* cannot be pickled"):
        ex.submit(result).result()


def test_result_that_cannot_be_unpickled(ex):
    with pytest.raises(SerializationError, match="cannot be unpickled"):
        ex.submit(Unloadable).result()


# ---- death


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV"])
def test_killed(ex, name):
    number = getattr(signal, name)
    with pytest.raises(WorkerDied, match=name) as info:
        ex.submit(
            lambda: (faulthandler.disable(), os.kill(os.getpid(), number))
        ).result()
    assert info.value.exitcode == -number
    assert info.value.pid
    assert ("memory" in str(info.value)) == (name == "SIGKILL")
    assert ex.submit(int, "5").result() == 5


@pytest.mark.parametrize("code", [0, 3])
def test_os_exit(ex, code):
    with pytest.raises(WorkerDied, match=f"exit code {code}"):
        ex.submit(os._exit, code).result()


def test_death_is_seen_though_another_process_holds_the_pipe(ex, tmp_path):
    """A grandchild keeps the writing end open; the pidfd tells all the same."""
    go_on, finish = os.pipe()

    def leave_a_grandchild():
        if os.fork() == 0:
            os.close(finish)
            os.read(go_on, 1)  # ends with the parent's writing end
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        with pytest.raises(WorkerDied, match="SIGKILL"):
            ex.submit(leave_a_grandchild).result(30)
    finally:
        os.close(go_on)
        os.close(finish)


def test_a_sibling_does_not_delay_a_death(ex):
    go_on, finish = os.pipe()
    slow = ex.submit(lambda: (os.close(finish), os.read(go_on, 1))[1])
    with pytest.raises(WorkerDied):
        ex.submit(os._exit, 1).result(30)
    assert not slow.done()
    os.write(finish, b"x")
    assert slow.result(30) == b"x"
    os.close(go_on)
    os.close(finish)


def test_ctrl_c_is_the_parents_business(ex):
    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        return "alive"

    assert ex.submit(interrupted).result() == "alive"


# ---- settings and shutdown


@pytest.mark.parametrize("bad", [0, -1, 10**6])
def test_bad_counts(bad):
    with pytest.raises(ValueError, match="max_workers"):
        ForkPerCallExecutor(bad)


@pytest.mark.parametrize("bad", [True, False, 1.5, "2", [1]])
def test_counts_of_the_wrong_type(bad):
    with pytest.raises(TypeError, match="max_workers"):
        ForkPerCallExecutor(bad)


def test_default_count(monkeypatch):
    monkeypatch.delenv("SHMEXEC_WORKERS", raising=False)
    with ForkPerCallExecutor() as ex:
        assert 1 <= ex._max_workers <= 8


def test_at_most_max_workers_at_once(tmp_path):
    def busy(i):
        (tmp_path / str(i)).touch()
        running = len(list(tmp_path.iterdir()))
        time.sleep(0.02)
        (tmp_path / str(i)).unlink()
        return running

    with ForkPerCallExecutor(2) as ex:
        assert max(ex.map(busy, range(8))) <= 2


def test_needs_fork(monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(NotImplementedError, match=r"os\.fork"):
        ForkPerCallExecutor(1)


@pytest.mark.parametrize("bad", [None, 5, "len"])
def test_submit_of_what_cannot_be_called(ex, bad):
    with pytest.raises(TypeError, match="callable"):
        ex.submit(bad)


def test_submit_after_shutdown():
    ex = ForkPerCallExecutor(1)
    ex.shutdown()
    ex.shutdown()
    with pytest.raises(PoolClosed, match="shutdown"):
        ex.submit(int)
    with pytest.raises(RuntimeError):
        ex.map(int, [1])


def test_submit_from_a_forked_child(ex):
    def use_the_parents():
        try:
            ex.submit(int)
        except PoolClosed as error:
            ex.shutdown()
            return str(error)

    assert "belongs to process" in ex.submit(use_the_parents).result()


def test_shutdown_finishes_what_runs():
    ex = ForkPerCallExecutor(1)
    futures = [ex.submit(lambda i=i: i) for i in range(4)]
    ex.shutdown(wait=False)
    assert [f.result(30) for f in futures] == [0, 1, 2, 3]
    ex.shutdown()


def test_cancel_pending():
    go_on, finish = os.pipe()
    with ForkPerCallExecutor(1) as ex:
        running = ex.submit(os.read, go_on, 1)
        assert wait_until(running.running)
        pending = [ex.submit(int, "5") for _ in range(3)]
        assert not running.cancel()
        assert pending[0].cancel()
        ex.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(CancelledError):
            pending[1].result(30)
        os.write(finish, b"x")
        assert running.result(30) == b"x"
    os.close(go_on)
    os.close(finish)


# ---- what the child must not do


def script(text):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )


def test_output_is_written_once_and_atexit_runs_once():
    done = script(
        "import atexit, sys\n"
        "from shmexec.forkpercall import ForkPerCallExecutor\n"
        "atexit.register(print, 'bye')\n"
        "sys.stdout.write('from the parent\\n')\n"
        "with ForkPerCallExecutor(2) as ex:\n"
        "    for i in range(3):\n"
        "        ex.submit(print, 'from the child', i).result()\n"
    )
    assert done.stderr == ""
    assert sorted(done.stdout.splitlines()) == [
        "bye",
        *(f"from the child {i}" for i in range(3)),
        "from the parent",
    ]


def test_interpreter_exit_finishes_the_calls():
    done = script(
        "from shmexec.forkpercall import ForkPerCallExecutor\n"
        "ex = ForkPerCallExecutor(1)\n"
        "for i in range(3):\n"
        "    ex.submit(print, i)\n"
    )
    assert (done.stdout.split(), done.stderr) == (["0", "1", "2"], "")


def test_a_writer_ends_when_its_parent_was_killed():
    """A sibling must not hold the reading end, else the write blocks for ever."""
    text = (
        "import os, signal, sys\n"
        "from shmexec.forkpercall import ForkPerCallExecutor\n"
        "ex = ForkPerCallExecutor(2)\n"
        "runs, tell = os.pipe()\n"
        "def write():\n"
        "    print(os.getpid(), flush=True)\n"
        "    os.write(tell, b'x')\n"
        "    sys.stdin.read()\n"  # ends when the test closes its side
        "    return bytes(50_000_000)\n"
        "def sibling():\n"
        "    print(os.getpid())\n"
        "    signal.pause()\n"
        "ex.submit(write)\n"
        "os.read(runs, 1)\n"
        "ex.submit(sibling)\n"
        "signal.pause()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    writer, sibling = (int(parent.stdout.readline()) for _ in range(2))
    pidfd = os.pidfd_open(writer)
    try:
        parent.kill()
        parent.wait()
        parent.stdin.close()
        assert select.select([pidfd], [], [], 30)[0]
    finally:
        os.close(pidfd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(sibling, signal.SIGKILL)
        parent.stdout.close()


def test_calls_die_with_the_program():
    text = (
        "import os, signal\n"
        "from shmexec.forkpercall import ForkPerCallExecutor\n"
        "ex = ForkPerCallExecutor(2)\n"
        "def stay():\n"
        "    os.write(1, b'%d\\n' % os.getpid())\n"
        "    while True:\n"
        "        signal.pause()\n"
        "ex.submit(stay)\n"
        "ex.submit(stay)\n"
        "signal.pause()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    pidfds = [os.pidfd_open(int(parent.stdout.readline())) for _ in range(2)]
    try:
        parent.kill()
        parent.wait()
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], 30)[0]
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
        parent.stdout.close()
