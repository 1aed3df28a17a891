"""Output of child processes and of C code, of workers that end, and of many calls."""

from __future__ import annotations

import logging
import os
import signal
import threading

import psutil
import pytest

import shmexec
from tests.contract import calls
from tests.integration import faults
from tests.waiting import wait_until


@pytest.fixture
def kill_later():
    """Processes that a test leaves behind on purpose, ended with it."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_child_processes(make_executor, capsys):
    executor = make_executor(1)
    for i in range(5):
        executor.submit(faults.print_by_child, f"child {i}").result()
        assert capsys.readouterr() == (f"child {i}\n", f"child {i}\n")


@pytest.mark.every_start
@pytest.mark.parametrize("text", [b"from C\n", b"no end"])
def test_c_code(make_executor, capsys, text):
    executor = make_executor(1)
    for _ in range(3):
        executor.submit(faults.print_by_c, text).result()
        assert capsys.readouterr().out == text.decode()


def test_c_code_that_ends_the_worker(make_executor, capsys):
    executor = make_executor(1)
    future = executor.submit(faults.print_by_c, b"whole\nhalf", die=True)
    assert isinstance(future.exception(20), shmexec.WorkerDied)
    assert capsys.readouterr().out.startswith("whole\n")


def test_a_child_that_outlives_its_call(make_executor, tmp_path, capsys, kill_later):
    executor = make_executor(1)
    path = str(tmp_path / "go")
    os.mkfifo(path)
    pid = executor.submit(faults.print_later_by_child, path, "late").result()
    kill_later.append(pid)
    for i in range(20):
        assert executor.submit(calls.add, i, 1).result() == i + 1
    with open(path, "w"):
        pass
    seen: list[str] = []

    def came() -> bool:
        seen.append(capsys.readouterr().out)
        return "".join(seen) == "late\n"

    assert wait_until(came)
    assert executor.submit(calls.add, 1, 1).result() == 2


def test_a_child_holds_up_nobody(make_executor, tmp_path, capsys, kill_later):
    """It has the pipes open while its worker dies, and while the pool ends."""
    executor = make_executor(1)
    path = str(tmp_path / "go")
    os.mkfifo(path)
    pid = executor.submit(faults.print_later_by_child, path, "late").result()
    kill_later.append(pid)
    worker = executor.submit(calls.pid).result()
    dying = executor.submit(calls.kill_me)
    assert isinstance(dying.exception(20), shmexec.WorkerDied)
    assert executor.submit(calls.pid).result() != worker
    kill_later.append(
        executor.submit(faults.print_later_by_child, path, "late").result()
    )
    executor.shutdown()
    assert all(psutil.pid_exists(child) for child in kill_later)
    assert not executor._pool._workers


def test_an_idle_pool_sleeps_while_a_child_lives(make_executor, tmp_path, kill_later):
    executor = make_executor(1)
    path = str(tmp_path / "go")
    os.mkfifo(path)
    pid = executor.submit(faults.print_later_by_child, path, "late").result()
    kill_later.append(pid)
    executor.submit(faults.close_output).result()
    os.kill(pid, signal.SIGKILL)  # and with it the last writing ends
    outputs = executor._pool.outputs
    assert wait_until(lambda: not outputs._streams)
    assert not set(outputs._leading.poller._wanted) & set(outputs._check._wanted)
    assert executor.submit(calls.add, 1, 1).result() == 2


def test_a_program_without_output(run_script):
    done = run_script(
        "import os, sys\n"
        "path = sys.argv[1]\n"
        "os.close(1)\n"
        "os.close(2)\n"
        "sys.stdout = sys.stderr = None\n"
        "import shmexec\n"
        "def f(x):\n"
        "    print('text', x)\n"
        "    os.write(2, b'bytes')\n"
        "    return x + 1\n"
        "for mode in ('forward', 'inherit', 'discard'):\n"
        "    with shmexec.Executor(1, worker_output=mode) as ex:\n"
        "        assert [ex.submit(f, i).result() for i in range(3)] == [1, 2, 3]\n"
        "open(path, 'w').write('fine')\n",
        "done",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_output_at_the_end_of_a_program(run_script):
    done = run_script(
        "import shmexec\n"
        "ex = shmexec.Executor(2)\n"
        "for i in range(6):\n"
        "    ex.submit(print, 'line', i, flush=True)\n"
        "print('end of the script')\n"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sorted(lines) == sorted(
        [f"line {i}" for i in range(6)] + ["end of the script"]
    )


def test_a_forked_child_that_logs(make_executor, caplog):
    executor = make_executor(1)
    pid, worker = executor.submit(faults.log_in_child).result()

    if executor._options.segment == "memfd":  # packets; else it comes as text
        assert wait_until(lambda: "in the child" in caplog.text)
        (record,) = [r for r in caplog.records if r.name == "tests.child"]
        assert (record.process, record.worker_pid) == (pid, worker)
    for i in range(20):
        assert executor.submit(calls.add, i, 1).result() == i + 1


def test_a_pool_in_a_worker(make_executor, capsys, caplog):
    executor = make_executor(1)
    outer, inner = executor.submit(faults.print_in_inner_pool, "deep").result()
    assert capsys.readouterr().out == "deep\n"
    (record,) = [r for r in caplog.records if r.name == "tests.inner"]
    assert record.levelno == logging.WARNING
    assert record.worker_pid == inner != outer


def test_many_calls_from_many_threads(make_executor, capsys):
    """Each line once, and those of a call in their order, before its future is done."""
    executor = make_executor(2)
    threads, each, lines = 4, 500, 3
    failed: list[object] = []

    def run(which: int) -> None:
        for i in range(each):
            number = which * each + i
            if executor.submit(faults.print_lines, number, lines).result(60) != number:
                failed.append(number)

    running = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(120)
    assert not failed
    found: dict[int, list[int]] = {}
    for line in capsys.readouterr().out.splitlines():
        call, number = line.split(":")
        found.setdefault(int(call), []).append(int(number))
    assert found == {call: list(range(lines)) for call in range(threads * each)}
