"""What calls print and log comes to the program, before their futures are done."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading

import pytest

import shmexec
from shmexec.runtime import outputs
from tests.contract import calls, printing
from tests.waiting import wait_until


class Collecting(io.StringIO):
    """A stream that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


@pytest.fixture
def put(monkeypatch):
    """Put a stream in the place of the program's stdout, and return it."""

    def put(stream):
        # In the test: before it begins, pytest puts its own there.
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    return put


# -- text ------------------------------------------------------------------------------


def test_lines_come_before_the_result(executor, capsys):
    for i in range(20):
        assert executor.submit(printing.say, f"line {i}").result() == f"line {i}"
        assert capsys.readouterr().out == f"line {i}\n"


def test_stdout_and_stderr_are_told_apart(executor, capsys):
    executor.submit(printing.say, "one").result()
    executor.submit(printing.say, "two", name="stderr").result()
    assert capsys.readouterr() == ("one\n", "two\n")


def test_a_last_line_without_its_end(executor, capsys):
    for i in range(5):
        executor.submit(printing.say, f"half {i}", end="").result()
        assert capsys.readouterr().out == f"half {i}"


def test_the_stream_is_looked_up_when_it_is_written_to(executor, capsys):
    executor.submit(printing.say, "before").result()
    with contextlib.redirect_stdout(io.StringIO()) as elsewhere:
        executor.submit(printing.say, "between").result()
    executor.submit(printing.say, "after").result()
    assert elsewhere.getvalue() == "between\n"
    assert capsys.readouterr().out == "before\nafter\n"


def test_lines_come_while_the_call_runs(executor, gate, put):
    collected = put(Collecting())
    future = executor.submit(printing.say_then_wait, gate, "early")
    assert wait_until(lambda: collected.getvalue() == "early\n")
    assert not future.done()
    gate.open()
    future.result()


def test_only_whole_lines_come_while_the_call_runs(executor, gate, put):
    collected = put(Collecting())
    executor.submit(printing.write, b"a\nb").result()
    assert collected.pieces == ["a\n", "b"]
    future = executor.submit(printing.say_then_wait, gate, "x" * 100_000)
    gate.arrived()
    gate.open()
    future.result()
    assert "".join(collected.pieces[2:]) == "x" * 100_000 + "\n"


@pytest.mark.parametrize("text", ["grüße 😀 漢字 مرحبا", "lone \ud83d surrogate", "\0"])
def test_any_text(executor, capsys, text):
    executor.submit(printing.say, text).result()
    came = capsys.readouterr().out
    assert came == text.encode(errors="backslashreplace").decode() + "\n"


def test_bytes_that_are_no_text(executor, capsys):
    executor.submit(printing.write, b"a\xffb\n\xf0\x9f").result()
    assert capsys.readouterr().out == "a\\xffb\n\\xf0\\x9f"
    executor.submit(printing.say, "fine").result()
    assert capsys.readouterr().out == "fine\n"


def test_more_than_a_pipe_holds(executor, capsys):
    text = "".join(f"line {i}\n" for i in range(50_000))
    executor.submit(printing.say, text, end="").result()
    assert capsys.readouterr().out == text
    long = "é" * 300_000
    executor.submit(printing.say, long, end="").result()
    assert capsys.readouterr().out == long


def test_a_call_that_raised(executor, capsys):
    future = executor.submit(printing.say_and, "raise", "so far")
    assert isinstance(future.exception(), ZeroDivisionError)
    assert capsys.readouterr().out == "so far"


def test_a_worker_that_died(make_executor, capsys):
    executor = make_executor(1)
    future = executor.submit(printing.say_and, "die", "last words")
    assert isinstance(future.exception(20), shmexec.WorkerDied)
    assert capsys.readouterr().out == "last words"


def test_a_call_that_was_stopped(make_executor, gate, capsys):
    executor = make_executor(1)
    future = executor.submit(printing.say_then_wait, gate, "on the way")
    gate.arrived()
    future.cancel(running=True)
    assert isinstance(future.exception(20), shmexec.CallStopped)
    assert capsys.readouterr().out == "on the way\n"


def test_an_initializer(make_executor, capsys):
    executor = make_executor(1, initializer=printing.say, initargs=("ready", ""))
    executor.submit(printing.say, "called").result()
    assert capsys.readouterr().out == "readycalled\n"


def test_an_initializer_that_fails(make_executor, capsys):
    executor = make_executor(1, initializer=printing.say_and, initargs=("raise", "no"))
    assert isinstance(executor.submit(calls.pid).exception(20), shmexec.PoolBroken)
    assert capsys.readouterr().out == "no"


def test_packed_calls(executor, capsys):
    # Tiny ones: they go several at a time.
    futures = [executor.submit(printing.say_lines, i, 3) for i in range(300)]
    assert [future.result() for future in futures] == list(range(300))
    text = capsys.readouterr().out
    lines = [line for line in text.replace("|", "\n").split("\n") if line]
    for call in range(300):
        mine = [line for line in lines if line.split(":")[0] == str(call)]
        assert mine == [f"{call}:0", f"{call}:1", f"{call}:2", f"{call}:end"]
    assert len(lines) == 1200


def test_a_callback_finds_it_written(executor, put):
    collected = put(Collecting())
    found: list[str] = []
    done = threading.Event()

    def look(_future):
        found.append(collected.getvalue())
        done.set()

    executor.submit(printing.say, "before", end="").add_done_callback(look)
    assert done.wait(20)
    assert found == ["before"]


@pytest.mark.every_start
def test_the_streams_in_a_worker(make_executor):
    executor = make_executor(1)
    assert executor.submit(printing.stream_settings).result() == (
        ("utf-8", "backslashreplace", True, True),
        ("utf-8", "backslashreplace", True, True),
    )
    # Children inherit no other descriptor of the pipes.
    assert executor.submit(printing.same_pipe, 0).result() == [1, 2]


# -- what disturbs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["close", "dup2", "close streams", "none", "own", "garbage"]
)
def test_calls_go_on_whatever_is_done_to_the_output(make_executor, capsys, how):
    executor = make_executor(1)
    pid = executor.submit(calls.pid).result()
    assert executor.submit(printing.spoil, how).result() == how
    capsys.readouterr()
    for i in range(20):
        assert executor.submit(calls.add, i, 1).result() == i + 1
    assert executor.submit(calls.pid).result() == pid
    with contextlib.suppress(OSError):
        executor.submit(printing.write, b"still here\n").result()
    if how in {"close streams", "none", "own", "garbage"}:
        assert capsys.readouterr().out == "still here\n"


class _Failing(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(text)


class _Ascii(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii")


@pytest.mark.parametrize("stream", [None, _Failing(), sys])
def test_a_stream_of_the_program_that_fails(executor, put, stream):
    put(stream)
    for i in range(5):
        assert executor.submit(printing.say, f"{i}").result() == f"{i}"


def test_a_stream_of_the_program_that_cannot_encode(executor, put):
    stream = put(_Ascii())
    executor.submit(printing.say, "grüße").result()
    stream.flush()
    assert stream.buffer.getvalue() == b"gr\\xfc\\xdfe\n"


def test_a_stream_that_calls_back(executor, put):
    """It submits for each line, waits, and its calls print, too."""
    written: list[str] = []

    class Hook(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            if text.startswith("outer"):
                executor.submit(printing.say, "inner").result(20)
            return len(text)

    put(Hook())
    futures = [executor.submit(printing.say, f"outer {i}") for i in range(3)]
    for future in futures:
        future.result(20)

    def all_written() -> bool:  # a line may still be on its way through the hook
        text = "".join(written)
        calls_made = [t.startswith("outer") for t in written].count(True)
        return text.count("outer") == 3 and text.count("inner") == calls_made

    assert wait_until(all_written)


def test_a_result_does_not_wait_for_ever_for_a_stream(executor, monkeypatch, put):
    """A thread writes to a stream that waits for the thread whose result is due."""
    monkeypatch.setattr(outputs, "PATIENCE", 0.05)
    due, go_on = threading.Event(), threading.Event()

    class Waiting(Collecting):
        def write(self, text: str) -> int:
            if "first" in text:
                due.set()
                assert go_on.wait(20)
            return super().write(text)

    stream = put(Waiting())
    first = executor.submit(printing.say, "first")
    first.add_done_callback(lambda _: None)  # the dispatcher writes it
    assert due.wait(20)
    assert executor.submit(printing.say, "second").result(20) == "second"
    assert executor.submit(calls.add, 1, 2).result(20) == 3
    go_on.set()
    first.result(20)
    assert wait_until(lambda: stream.getvalue() == "first\nsecond\n")


def test_a_slow_stream_holds_up_the_printing_call_and_no_memory(
    make_executor, put, gate
):
    executor = make_executor(2)
    executor.broadcast(
        calls.pid
    )  # the dispatcher starts workers, and is about to write
    due, go_on = threading.Event(), threading.Event()

    class Waiting(Collecting):
        def write(self, text: str) -> int:
            if not due.is_set():
                due.set()
                assert go_on.wait(20)
            return super().write(text)

    stream = put(Waiting())
    text = "0123456789abcde\n" * 4_000_000  # 64 MB
    future = executor.submit(printing.write_all, len(text) // 16)
    future.add_done_callback(lambda _: None)
    assert due.wait(20)
    # Somebody leads, while the dispatcher writes.
    other = executor.submit(calls.through, gate)
    leader = threading.Thread(target=other.result)
    leader.start()
    pool = executor._pool
    assert wait_until(lambda: pool.outputs.muted)
    assert len(pool.outputs.queue) <= outputs.QUEUED_AT_MOST + 2
    gate.open()
    leader.join(20)
    assert not future.done()
    go_on.set()
    future.result(20)
    assert stream.getvalue() == text


# -- idleness --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "garbage"])
def test_an_idle_pool_sleeps(make_executor, put, how):
    put(Collecting())
    executor = make_executor(2)
    executor.broadcast(printing.spoil, how)
    leading = executor._pool.leading
    assert wait_until(lambda: leading._asleep)
    polls: list[int] = []
    poll = leading.poller.poll
    leading.poller.poll = lambda timeout: (polls.append(1), poll(timeout))[1]
    leading.wake()
    assert wait_until(lambda: polls and leading._asleep)
    before = len(polls)
    threading.Event().wait(0.2)
    assert len(polls) - before <= 2


# -- log records -----------------------------------------------------------------------


def test_log_records(executor, caplog):
    with caplog.at_level(logging.INFO):
        executor.submit(printing.log, logging.WARNING, "%s of %d", "one", 2).result()
    (record,) = caplog.records
    assert record.name == "tests.worker"
    assert record.levelname == "WARNING"
    assert record.getMessage() == "one of 2"
    assert record.worker_pid == record.process
    assert record.worker_pid in executor._pool.pids()
    assert isinstance(record.call_id, int)
    assert record.color == "blue"
    assert record.funcName == "log"


def test_the_program_decides_what_is_logged(executor, caplog):
    caplog.set_level(logging.ERROR, "tests.worker")
    executor.submit(printing.log, logging.WARNING, "no").result()
    executor.submit(printing.log, logging.ERROR, "yes").result()
    assert [record.getMessage() for record in caplog.records] == ["yes"]


@pytest.mark.every_start
def test_a_worker_has_the_level_of_the_root_logger(make_executor, caplog):
    with caplog.at_level(logging.DEBUG):
        executor = make_executor(1)
        executor.submit(printing.log, logging.DEBUG, "low").result()
    texts = [r.getMessage() for r in caplog.records if r.name == "tests.worker"]
    assert texts == ["low"]


def test_each_record_is_handled_once(make_executor, capsys):
    """Also in a worker that was forked with the program's handlers."""
    logger = logging.getLogger("tests.worker")
    handler = logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)
    try:
        executor = make_executor(1)
        executor.submit(printing.log, logging.WARNING, "once").result()
    finally:
        logger.removeHandler(handler)
    assert handler.stream.getvalue() == "once\n"
    assert capsys.readouterr().err == ""


def test_a_logged_exception(executor, caplog):
    executor.submit(printing.log_error).result()
    (record,) = caplog.records
    assert record.getMessage() == "it failed"
    assert "ZeroDivisionError: in the worker" in record.exc_text
    assert "lock" in record.lock


def test_a_record_that_is_too_large(executor, caplog):
    executor.submit(printing.log, logging.WARNING, "é" * 500_000).result()
    (record,) = caplog.records
    assert record.getMessage().startswith("é" * 1000)
    assert record.getMessage().endswith("characters more)")


def test_records_from_many_threads(executor, caplog):
    executor.submit(printing.log_in_threads, 4, 50, 5000).result()
    found = [record.getMessage().split()[:2] for record in caplog.records]
    for thread in range(4):
        mine = [int(i) for which, i in found if which == str(thread)]
        assert mine == list(range(50))


def test_a_handler_that_fails(executor, monkeypatch):
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ZeroDivisionError

    logger = logging.getLogger("tests.worker")
    handler = Failing()
    logger.addHandler(handler)
    try:
        for _ in range(3):
            executor.submit(printing.log, logging.WARNING, "x").result()
    finally:
        logger.removeHandler(handler)


# -- the other ways --------------------------------------------------------------------


@pytest.mark.every_start
@pytest.mark.parametrize("mode", ["inherit", "discard"])
def test_other_ways(make_executor, capfd, mode):
    executor = make_executor(1, worker_output=mode)
    executor.submit(printing.say, "text").result()
    executor.submit(printing.say, "error", name="stderr").result()
    executor.submit(printing.write, b"bytes").result()
    expected = ("text\nbytes", "error\n") if mode == "inherit" else ("", "")
    assert capfd.readouterr() == expected
    assert not executor._pool.outputs.queue


@pytest.mark.parametrize("wrong", ["", "Forward", None, True, 1])
def test_a_setting_that_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=r"worker_output must be .* not"):
        shmexec.Executor(1, worker_output=wrong)


def test_in_process(capsys):
    with shmexec.Executor(1, in_process=True) as executor:
        executor.submit(printing.say, "here").result()
    assert capsys.readouterr().out == "here\n"


def test_pipes_are_closed_with_the_pool(make_executor, capsys):
    before = set(os.listdir("/proc/self/fd"))
    executor = make_executor(1)
    executor.submit(printing.say, "x").result()
    executor.shutdown()
    assert len(set(os.listdir("/proc/self/fd")) - before) == 0
