"""What ``shmexec top`` sees of programs: those that answer, do not, or are not ours."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import termios
import threading

import psutil
import pytest

import shmexec
from shmexec.cli import main
from shmexec.cli.watching import finding
from shmexec.cli.watching.finding import Lookout
from shmexec.cli.watching.gauging import Gauge
from shmexec.deadline import Deadline
from shmexec.runtime import leading, lifecycle, presence
from tests.integration.programs import start
from tests.waiting import LONG, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not presence.possible(), reason="abstract sockets are Linux's"),
]

PROGRAM = """
import os, signal, sys
import shmexec

class Model:
    def predict(self): signal.pause()

def endless(): signal.pause()
def dies(): os._exit(3)

if __name__ == "__main__":
    ex = shmexec.Executor(2, sys.argv[1], name="first")
    other = shmexec.Executor(1, sys.argv[1], name="second\\x1b[2J")
    try:
        other.submit(dies).result()
    except shmexec.WorkerDied:
        pass
    calls = [ex.submit(endless) for _ in range(5)]
    model = other.actor(Model)
    calls += [model.predict()]
    print("ready", flush=True)
    signal.pause()
"""


def _started(folder, method):
    """A program with three pools, whose workers have begun their calls."""
    process = start(folder, PROGRAM, method)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    assert wait_until(lambda: _busy(process.pid) == 3)
    return process


def _end(process):
    process.kill()
    process.communicate(timeout=LONG)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The process id of a program that is only looked at."""
    process = _started(tmp_path_factory.mktemp("running"), "forkserver")
    yield process.pid
    _end(process)


@pytest.fixture
def program(tmp_path):
    """A program that the test may stop or end."""
    process = _started(tmp_path, "fork")
    yield process
    _end(process)


def _look(pid):
    """What is seen of one program; others, which may be stopped, are not waited for."""
    answers = []
    with Lookout() as lookout:
        for _ in range(20):
            answers = [each for each in lookout.look(0.5) if each.pid == pid]
            if not answers or any(each.facts or each.garbled for each in answers):
                break
    found = Gauge().programs(answers)
    assert len(found) <= 1
    return found[0] if found else None


def _stop(pid):
    os.kill(pid, signal.SIGSTOP)
    assert wait_until(lambda: _is_stopped(pid))


def _is_stopped(pid):
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def _busy(pid):
    seen = _look(pid)
    pools = seen.pools if seen else ()
    return sum(worker.call is not None for pool in pools for worker in pool.workers)


def _listed(capsys, pid):
    assert main(["top", "--once", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["version"] == 1
    return [each for each in written["programs"] if each["pid"] == pid]


# -- what programs say -----------------------------------------------------------------


def test_it_tells_what_the_pools_of_another_program_do(running, capsys):
    pid = running
    (seen,) = _listed(capsys, pid)
    assert seen["answers"]
    assert seen["command"][1].endswith("script.py")
    assert seen["uptime_seconds"] > 0
    first, second, actor = seen["pools"]
    assert (first["name"], first["start_method"]) == ("first", "forkserver")
    assert (first["state"], first["max_workers"]) == ("busy", 2)
    assert (first["running"], first["pending"], first["done"]) == (2, 3, 0)
    assert first["oldest_pending_seconds"] > 0
    for worker in first["workers"]:
        assert (worker["state"], worker["call"]) == ("busy", "endless")
        assert worker["call_seconds"] > 0
        assert worker["usage"]["private_bytes"] > 1_000_000
        assert worker["usage"]["cpu_percent"] is not None
        os.kill(worker["pid"], 0)
    assert (second["failed"], second["restarts"]) == (1, 1)
    assert "exited with code 3" in second["last_failure"]
    assert actor["actor"] == "Model"
    assert [worker["call"] for worker in actor["workers"]] == ["predict"]


def test_one_table_where_there_is_no_terminal(running, capsys):
    assert main(["top"]) == 0
    table = capsys.readouterr().out
    assert re.search(rf"^{running} +python\S* ", table, re.MULTILINE)
    assert "first  busy, 2 of 2 workers" in table
    assert len(re.findall(r"busy +endless", table)) >= 2
    # What a terminal would obey is not written.
    assert "second?[2J" in table
    assert "\x1b" not in table


def test_a_program_that_is_stopped_is_shown_and_not_waited_for_again(program, capsys):
    process = program
    with Lookout() as lookout:
        _stop(process.pid)

        def asked():
            return [each for each in lookout.look(0.1) if each.pid == process.pid]

        (answer,) = asked()
        seen = Gauge().programs([answer])[0]
        assert not seen.answers
        assert "stopped" in seen.why
        assert len(seen.processes) == 3
        (again,) = asked()
        assert again.facts is None
        (listed,) = _listed(capsys, process.pid)
        assert not listed["answers"]
        os.kill(process.pid, signal.SIGCONT)
        # The answer to what was asked while it was stopped, then those to later ones.
        for _ in range(2):
            assert wait_until(lambda: asked()[0].facts is not None)


def test_of_a_program_that_was_asked_too_often_the_process_is_known(program):
    process = program
    name = next(n for n in finding._names() if process.pid in finding._owners(n))
    _stop(process.pid)
    with contextlib.ExitStack() as lookouts:
        found = []
        for _ in range(presence.WAITING_AT_MOST + 3):
            found = lookouts.enter_context(Lookout()).look(0.0)
        assert [each.pid for each in found if each.pid == process.pid]
    # Nothing is left of a program that is killed.
    process.kill()
    process.wait(LONG)
    assert wait_until(lambda: name not in finding._names())
    assert _look(process.pid) is None


def test_what_is_of_another_version_is_said_to_be(monkeypatch):
    monkeypatch.setattr(presence, "VERSION", 99)
    with contextlib.closing(presence.Presence(lambda: presence.message([]))):
        seen = _look(os.getpid())
    assert not seen.answers
    assert "another version" in seen.why


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff{",
        b"[]",
        b"{}",
        b'{"version": 1}',
        b'{"version": 1, "pools": 7}',
        b'{"version": 1, "pools": [7]}',
        b'{"version": 1, "pools": [{"workers": [{"pid": []}]}]}',
        b'{"version": 1, "pools": [], "left_out": {}}',
        b"[" * 50_000,
    ],
)
def test_nonsense_is_no_answer(answer):
    with contextlib.closing(presence.Presence(lambda: answer)):
        seen = _look(os.getpid())
    assert seen is not None
    assert not seen.answers or not seen.pools


# -- whom programs tell ------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_user_is_told_nothing_and_not_believed():
    own = presence.name_prefix() + "0" * 32
    told, stay = socket.socketpair(), socket.socketpair()
    with contextlib.ExitStack() as stack:
        for each in (*told, *stay):
            stack.enter_context(each)
        stack.enter_context(contextlib.closing(presence.Presence(lambda: b"secret")))
        (name,) = [n for n in finding._names() if os.getpid() in finding._owners(n)]
        other = os.fork()
        if other == 0:
            with contextlib.suppress(BaseException):
                os.setresuid(65534, 65534, 65534)
                stay[0].close()
                asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                asking.connect(f"\0{name}")
                listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                listening.bind(f"\0{own}")
                listening.listen()
                told[1].send(b"told: " + asking.recv(100))
                stay[1].recv(1)
            os._exit(0)
        assert told[0].recv(100) == b"told: "
        assert own in finding._names()
        assert _look(other) is None
        stay[0].close()
        os.waitpid(other, 0)


def test_the_environment_may_make_pools_invisible(make_executor, monkeypatch):
    monkeypatch.setenv("SHMEXEC_VISIBLE", "0")
    make_executor().submit(os.getpid).result()
    assert _look(os.getpid()) is None
    monkeypatch.setenv("SHMEXEC_VISIBLE", "1")
    make_executor(name="seen").submit(os.getpid).result()
    assert wait_until(lambda: _look(os.getpid()))
    assert [pool.name for pool in _look(os.getpid()).pools] == ["seen"]
    monkeypatch.setenv("SHMEXEC_VISIBLE", "no")
    with pytest.raises(ValueError, match="SHMEXEC_VISIBLE must be '0' or '1'"):
        make_executor()


# -- what it costs the program -------------------------------------------------------------


def test_pools_share_one_thread_and_descriptor_which_end_with_the_last(make_executor):
    idle = make_executor()  # has no call, and is not seen alone
    assert lifecycle._presence is None
    one, two = make_executor(name="one"), make_executor(name="two")
    assert [ex.submit(abs, -1).result() for ex in (one, two)] == [1, 1]
    assert wait_until(lambda: lifecycle._presence is not None)
    assert _threads() == 1
    assert wait_until(lambda: two._pool.leading._unseen is None)
    names = {pool.name for pool in _look(os.getpid()).pools}
    assert names == {"shmexec", "one", "two"}
    one.shutdown()
    assert _threads() == 1
    two.shutdown()
    assert _threads() == 0
    assert lifecycle._presence is None
    idle.shutdown()


def test_a_thread_that_keeps_the_lock_of_a_pool_holds_nobody_up(fresh_executor):
    fresh_executor.submit(abs, -1).result()
    assert wait_until(lambda: _look(os.getpid()))
    with fresh_executor._pool._lock:
        (pool,) = _look(os.getpid()).pools
    assert pool.state == "locked"
    (pool,) = _look(os.getpid()).pools
    assert pool.state == "ready"


def test_a_forked_child_closes_the_socket(fresh_executor):
    fresh_executor.submit(abs, -1).result()
    assert wait_until(lambda: lifecycle._presence is not None)
    listener = lifecycle._presence._listener
    pid = os.fork()
    if pid == 0:
        os._exit(0 if listener.fileno() == -1 and lifecycle._presence is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert _look(os.getpid()).answers


def test_no_child_is_forked_while_the_socket_is_closed(make_executor, monkeypatch):
    executor, seen = make_executor(), []
    executor.submit(abs, -1).result()
    assert wait_until(lambda: lifecycle._presence is not None)
    close = presence.Presence.close

    def look_and_close(self):
        seen.append((lifecycle._presence is self, lifecycle._lock.locked()))
        close(self)

    monkeypatch.setattr(presence.Presence, "close", look_and_close)
    executor.shutdown()
    assert seen == [(True, True)]
    assert (lifecycle._presence, lifecycle._lock.locked()) == (None, False)


def test_a_pool_goes_on_where_no_socket_can_be_had(make_executor, monkeypatch):
    def refuse(_describe):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(presence, "Presence", refuse)
    assert make_executor().submit(abs, -1).result() == 1
    assert _look(os.getpid()) is None


def test_it_answers_again_after_errors_and_without_descriptors(monkeypatch):
    monkeypatch.setattr(presence, "_PAUSE", 0.02)
    answers = iter([ValueError(), b"second", b"third"])

    def describe():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(presence.Presence(describe)))
        (name,) = [n for n in finding._names() if os.getpid() in finding._owners(n)]
        socks = [
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            for _ in range(3)
        ]
        socks[0].connect(f"\0{name}")
        assert socks[0].recv(100) == b""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            socks[1].connect(f"\0{name}")
            socks[1].settimeout(0.1)
            with pytest.raises(TimeoutError):
                socks[1].recv(100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for sock, answer in zip(socks[1:], [b"second", b"third"], strict=True):
            sock.settimeout(LONG)
            if answer == b"third":
                sock.connect(f"\0{name}")
            assert sock.recv(100) == answer


def test_a_pool_that_cannot_be_looked_at_hides_no_others():
    def bad(_deadline):
        raise ValueError

    told = json.loads(presence.message([bad, lambda _deadline: {"name": "good"}]))
    assert (told["pools"], told["left_out"]) == ([{"name": "good"}], 1)


def test_a_great_many_pools_are_told_as_far_as_there_is_room():
    def pool(_deadline):
        return {"name": "x" * 30_000}

    told = json.loads(presence.message([pool] * 5))
    assert (len(told["pools"]), told["left_out"]) == (3, 2)
    with contextlib.closing(presence.Presence(lambda: b"x" * presence.BYTES_AT_MOST)):
        with Lookout() as lookout:
            (answer,) = [a for a in lookout.look(LONG) if a.pid == os.getpid()]
    assert answer.garbled


@pytest.mark.stress
def test_pools_in_a_row_come_and_go_without_a_trace(monkeypatch):
    before = set(finding._names())
    for _ in range(10_000):
        presence.Presence(lambda: b"").close()
    monkeypatch.setattr(leading, "UNSEEN", 0.0)
    for _ in range(100):
        with shmexec.Executor(1, "fork") as ex:
            ex.submit(abs, -1).result()
    assert _threads() == 0
    pid = os.getpid()
    assert not [n for n in finding._names() - before if pid in finding._owners(n)]


def _threads():
    return sum(each.name == "shmexec-presence" for each in threading.enumerate())


# -- the live view -------------------------------------------------------------------------


@contextlib.contextmanager
def _terminal(*arguments, rows=200):
    """``shmexec top`` in a terminal of 80 columns; its process, and the terminal."""
    ours, theirs = pty.openpty()
    try:
        termios.tcsetwinsize(theirs, (rows, 80))
        env = {**os.environ, "TERM": "xterm-256color"}
        process = subprocess.Popen(
            [sys.executable, "-m", "shmexec", "top", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env,
        )
        with process:
            try:
                yield process, ours, theirs
            finally:
                process.kill()
    finally:
        os.close(ours)
        os.close(theirs)


def _read(terminal, what):
    """What comes until that comes."""
    text, within = "", Deadline(LONG)
    while what not in text:
        assert not within.passed(), text
        assert select.select([terminal], [], [], LONG)[0], text
        text += os.read(terminal, 65536).decode()
    return text


@pytest.mark.parametrize(
    ("end", "code"), [("q", 0), (signal.SIGINT, 0), (signal.SIGTERM, 143)], ids=str
)
@pytest.mark.usefixtures("running")
def test_the_live_view_ends_and_gives_the_terminal_back(end, code):
    with _terminal("--interval", "0.1") as (process, ours, theirs):
        before = termios.tcgetattr(theirs)
        shown = _read(ours, "endless")
        assert "\x1b[?1049h" in shown  # another screen
        assert "shmexec top" in shown
        if isinstance(end, str):
            os.write(ours, end.encode())
        else:
            process.send_signal(end)
        # The cursor comes back, and the screen that was there before.
        assert "\x1b[?25h" in _read(ours, "\x1b[?1049l")
        assert process.wait(LONG) == code
        assert termios.tcgetattr(theirs) == before


@pytest.mark.usefixtures("running")
def test_the_live_view_can_be_put_aside():
    with _terminal("--interval", "0.1") as (process, ours, theirs):
        _read(ours, "endless")
        cooked = termios.tcgetattr(theirs)[3] | termios.ICANON | termios.ECHO
        process.send_signal(signal.SIGTSTP)
        _read(ours, "\x1b[?1049l")
        assert wait_until(lambda: _is_stopped(process.pid))
        assert termios.tcgetattr(theirs)[3] == cooked
        process.send_signal(signal.SIGCONT)
        _read(ours, "\x1b[?1049h")
        os.write(ours, b"q")
        _read(ours, "\x1b[?1049l")
        assert process.wait(LONG) == 0


# -- what it needs -------------------------------------------------------------------------


def test_without_rich_it_names_the_extra(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["top", "--once"]) == 2
    assert "pip install 'shmexec[cli]'" in capsys.readouterr().err
    assert main(["top", "--json"]) == 0


def test_where_sockets_are_not_listed_it_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(finding, "_TABLE", tmp_path / "none")
    assert main(["top", "--once"]) == 1
    assert "cannot be read" in capsys.readouterr().err
    monkeypatch.setattr(finding, "possible", lambda: False)
    assert main(["top", "--json"]) == 1
    assert "Linux only" in capsys.readouterr().err
