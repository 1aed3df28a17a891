"""The program ends in every way, with everything open; or its helpers do.

See ``test_parent_death`` for the worst of them, and for calls in flight.
"""

from __future__ import annotations

import signal

import numpy as np
import pytest

from tests.integration.programs import end, run, session, start
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

GONE_WITHIN = 2.0
"""Seconds after an abnormal end."""

HEAD = """
import atexit, faulthandler, gc, os, signal, sys, threading, time, warnings
import multiprocessing
import numpy as np
import shmexec
from tests.integration.everything import Everything, Model, double, items, nap
from tests.waiting import wait_until
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
e = Everything(sys.argv[1])
"""

ENDS = {
    # name: (how the program ends, its exit code)
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "SIGHUP": ("os.kill(os.getpid(), signal.SIGHUP)", -signal.SIGHUP),
    "SIGSEGV": ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
    "abort": ("os.abort()", -signal.SIGABRT),
    "os._exit": ("os._exit(5)", 5),
    "os._exit in a thread": (
        "threading.Thread(target=os._exit, args=(6,)).start(); signal.pause()",
        6,
    ),
    "killed by a worker": (
        "e.ex.submit(os.kill, os.getpid(), signal.SIGKILL); signal.pause()",
        -signal.SIGKILL,
    ),
    "while stopped": (
        (
            "pid = os.getpid()\n"
            "e.ex.submit(lambda: (os.kill(pid, signal.SIGSTOP), os.kill(pid, 9)))\n"
            "signal.pause()"
        ),
        -signal.SIGKILL,
    ),
    "SIGTERM of a handler": (
        (
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(8))\n"
            "os.kill(os.getpid(), signal.SIGTERM)"
        ),
        8,
    ),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("1 / 0", 1),
    "an exception at import": (
        "exec(compile('import nothing.like_it', 'm', 'exec'))",
        1,
    ),
    "sys.exit in a thread": (
        (
            "thread = threading.Thread(target=sys.exit, args=(4,))\n"
            "thread.start(); thread.join(); e.goes_on()"
        ),
        0,
    ),
    "an exception in a thread": (
        (
            "thread = threading.Thread(target=lambda: 1 / 0)\n"
            "thread.start(); thread.join(); e.goes_on()"
        ),
        0,
    ),
    "collected": ("del e; gc.collect()", 0),
    "a cycle, collected": ("e.me = e.ex.me = e; del e; gc.collect()", 0),
    "a cycle, not collected": ("gc.disable(); e.me = e.ex.me = e; del e", 0),
    "a cycle of a future": ("e.futures[0].me = e; del e.ex; del e", 0),
    "the end": ("", 0),
    "at exit": ("atexit.register(e.ex.shutdown)", 0),
}


def ends(name, method, tmp_path, kind="memfd"):
    body, code = ENDS[name]
    _, err = run(
        tmp_path, HEAD + body, method, kind=kind, code=code, within=GONE_WITHIN
    )
    assert ("Traceback" in err) == ("exception" in name), err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGSEGV", "a cycle, not collected"])
def test_the_program_ends(tmp_path, name):
    ends(name, "forkserver", tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize("name", ENDS)
def test_the_program_ends_in_any_way(tmp_path, name):
    ends(name, "forkserver", tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize(("method", "kind"), [("fork", "posix"), ("spawn", "memfd")])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGSEGV", "the end"])
def test_it_ends_whatever_the_start_method(tmp_path, name, method, kind):
    ends(name, method, tmp_path, kind)


# -- another program in its place ----------------------------------------------------------

OTHER = """
import os, sys, time
def others():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file: fields = file.read().rsplit(")")[1].split()
        except (OSError, IndexError): continue
        if int(fields[3]) == os.getsid(0) and fields[0] != "Z" and int(pid) != os.getpid():
            yield pid
end = time.monotonic() + 2
while list(others()) and time.monotonic() < end: time.sleep(0.01)
assert not list(others()), list(others())
with open("/proc/self/maps") as maps: assert "shmexec" not in maps.read()
inherited = set(sys.argv[1].split(","))
assert set(os.listdir("/proc/self/fd")) <= inherited | {"3"}, os.listdir("/proc/self/fd")
sys.exit(7)
"""


@pytest.mark.parametrize(
    "method", ["forkserver", pytest.param("spawn", marks=pytest.mark.stress)]
)
def test_another_program_takes_its_place(tmp_path, method):
    """Workers go, no descriptor is inherited, and the exit code is the new program's."""
    other = tmp_path / "other.py"
    other.write_text(OTHER)
    source = (
        "import os\nbefore = ','.join(os.listdir('/proc/self/fd'))\n"
        + HEAD
        + "os.execv(sys.executable, [sys.executable, sys.argv[2], before])"
    )
    _, err = run(tmp_path, source, method, other, code=7, within=GONE_WITHIN)
    assert err == ""


# -- forks ---------------------------------------------------------------------------------

FORKED = """
pid = os.fork()
if pid == 0:
    CHILD
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert code == 9, code
e.goes_on()
e.close()
"""

USES = """
    code = 1
    try:
        for n, use in enumerate(e.uses()):
            try: use()
            except shmexec.PoolClosed as error: assert "parent" in str(error), error
            else: raise AssertionError(n)
        for future in e.futures:
            try: future.result()
            except shmexec.PoolClosed: pass
        e.ex.stats(), e.batch.stats()
        assert e.result.sum() == e.shared.sum() == 100_000
        for each in (e.stream, e.lazy, e.actor, e.pipe, e.batch): each.close()
        e.ex.shutdown()
        with shmexec.Executor(1, sys.argv[1]) as own:
            assert own.submit(pow, 2, 3).result() == 8
        code = 9
    finally:
        sys.stdout.flush(); sys.stderr.flush()
        END
"""

CHILDREN = {
    "uses it": USES.replace("END", "os._exit(code)"),
    "uses it, and exits": USES.replace("END", "sys.exit(code)"),
    "exits": "sys.exit(9)",
    "exits at once": "os._exit(9)",
    "drops it": "e.__dict__.clear(); gc.collect(); sys.exit(9)",
    "drops the executor alone": "del e.ex; gc.collect(); os._exit(9)",
    "becomes another program": "os.execv('/bin/sh', ['sh', '-c', 'exit 9'])",
    "forks": (
        "pid = os.fork()\n"
        "    if pid: os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "    sys.exit(9)"
    ),
}


def forks(child, method, tmp_path):
    _, err = run(tmp_path, HEAD + FORKED.replace("CHILD", CHILDREN[child]), method)
    assert err == ""


@pytest.mark.parametrize("child", ["uses it, and exits"])
def test_the_program_forks(tmp_path, child):
    forks(child, "forkserver", tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize("child", CHILDREN)
def test_what_a_forked_child_does(tmp_path, child):
    forks(child, "forkserver", tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_program_forks_whatever_the_start_method(tmp_path, method):
    forks("uses it", method, tmp_path)


MULTIPROCESSING = """
def child():
    try: e.ex.submit(int)
    except shmexec.PoolClosed: sys.exit(6)
context = multiprocessing.get_context("fork")
process = context.Process(target=child)
process.start()
process.join()
assert process.exitcode == 6
with context.Pool(2) as pool: assert pool.map(abs, range(3)) == [0, 1, 2]
e.goes_on()
e.close()
"""


@pytest.mark.stress
def test_children_of_multiprocessing(tmp_path):
    _, err = run(tmp_path, HEAD + MULTIPROCESSING, "forkserver")
    assert err == ""


# -- threads that go on while it ends ------------------------------------------------------

DAEMONS = """
from shmexec import PoolClosed
def use(n):
    uses = e.uses()[:-2]  # no two threads may advance one iterator, nor read one pipeline
    del uses[-2]
    while True:
        for use in uses[n:] + uses[:n]:
            try: use()
            except PoolClosed: pass
e.stream.close(); e.lazy.close()
for n in range(4): threading.Thread(target=use, args=(2 * n,), daemon=True).start()
wait_until(lambda: e.ex.stats().submitted > 100)
"""


@pytest.mark.stress
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_daemon_threads_submit_while_the_interpreter_ends(tmp_path, method):
    _, err = run(tmp_path, HEAD + DAEMONS, method)
    assert err == ""


# -- what is the program's own -------------------------------------------------------------

SIGNALS = """
def state():
    handlers = {n: signal.getsignal(n) for n in signal.valid_signals()}
    wakeup = signal.set_wakeup_fd(-1)
    return handlers, signal.pthread_sigmask(signal.SIG_BLOCK, []), wakeup, \
        faulthandler.is_enabled(), sys.excepthook, threading.excepthook, sys.unraisablehook
import asyncio
"""

USED = """
for use in e.uses(): use()
future = e.ex.submit(nap, 1, 60)
wait_until(future.running); future.cancel(running=True)
assert isinstance(e.ex.options(timeout=0.05).submit(nap, 1, 60).exception(), shmexec.CallTimeout)
assert isinstance(e.ex.submit(os._exit, 1).exception(), shmexec.WorkerDied)
asyncio.run(e.actor.acall("process", 1))
with shmexec.shared_arrays(): np.ones(100_000)
with shmexec.ForkPerCallExecutor(1) as one: one.submit(abs, 1).result()
e.ex.shutdown(cancel_futures=True)
assert state() == before
"""


def test_signal_handlers_and_hooks_are_the_programs(tmp_path):
    imports, made = HEAD.split("e = Everything")
    source = f"{imports}{SIGNALS}before = state()\ne = Everything{made}{USED}"
    _, err = run(tmp_path, source, "forkserver")
    assert err == ""


# -- stopped and continued -----------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_the_program_is_stopped_and_continued(tmp_path, method):
    source = HEAD + "print('up', flush=True)\ne.goes_on()\ne.close()"
    process = start(tmp_path, source, method)
    assert process.stdout.readline() == "up\n"
    for _ in range(3):
        process.send_signal(signal.SIGSTOP)
        assert wait_until(lambda: _stopped(process.pid))
        process.send_signal(signal.SIGCONT)
    _, err = end(process, 0, 5)
    assert err == ""


def _stopped(pid):
    return any(each.pid == pid and each.status() == "stopped" for each in session(pid))


# -- its helpers ---------------------------------------------------------------------------

SERVER = """
from shmexec.runtime.server import fork_server
server = fork_server()._forkserver_pid
"""

HELPERS = {
    "the fork server": SERVER + "os.kill(server, signal.SIGKILL)",
    "the fork server, stopped": (
        SERVER + "os.kill(server, signal.SIGSTOP); os.kill(server, signal.SIGKILL)"
    ),
    "the fork server and a worker": (
        SERVER + "os.kill(server, 9); e.ex.submit(os._exit, 3).exception()"
    ),
    "the resource tracker": (
        "from multiprocessing import resource_tracker\n"
        "warnings.simplefilter('ignore')  # it is told, by multiprocessing\n"
        "os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)"
    ),
}

AFTERWARDS = """
e.goes_on()
e.stream.close(); e.lazy.close()
e.ex.resize(4)
assert len(set(e.ex.broadcast(os.getpid))) == 4
assert isinstance(e.ex.submit(os._exit, 3).exception(), shmexec.WorkerDied)
assert e.ex.submit(nap, 5).result() == 5
"""


def goes_on_without(helper, method, tmp_path, kind):
    source = HEAD + HELPERS[helper] + AFTERWARDS
    _, err = run(tmp_path, source, method, kind=kind)
    assert err == ""


def test_the_fork_server_is_killed(tmp_path):
    """Nothing of it is noticed: no call fails, and the next worker starts."""
    goes_on_without("the fork server", "forkserver", tmp_path, "memfd")


@pytest.mark.stress
@pytest.mark.parametrize(
    ("helper", "method", "kind"),
    [
        *((helper, "forkserver", "memfd") for helper in HELPERS),
        ("the fork server", "forkserver", "posix"),
        ("the resource tracker", "fork", "posix"),
        ("the resource tracker", "spawn", "posix"),
    ],
)
def test_a_helper_is_killed(tmp_path, helper, method, kind):
    goes_on_without(helper, method, tmp_path, kind)


# -- from the shell ------------------------------------------------------------------------

COMMAND = """
import runpy, sys
sys.argv[:] = ["shmexec", *sys.argv[1:]]
runpy.run_module("shmexec", run_name="__main__")
"""

MODEL = """
import pathlib, time
here = pathlib.Path(__file__).parent
(here / "loaded").touch()

def predict(x):
    (here / "called").touch()
    time.sleep(60)
"""


@pytest.mark.stress
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("command", ["run", "serve"])
def test_a_command_is_killed(tmp_path, command, number):
    model, data = tmp_path / "model.py", tmp_path / "in.npy"
    model.write_text(MODEL)
    np.save(data, np.ones((100, 4)))
    arguments = {
        "run": (f"{model}:predict", data, "-o", tmp_path / "out.npy"),
        "serve": (model, "--socket", tmp_path / "socket"),
    }
    process = start(tmp_path, COMMAND, command, *arguments[command])
    sign = tmp_path / {"run": "called", "serve": "loaded"}[command]
    assert wait_until(sign.exists), process.communicate(timeout=1)
    process.send_signal(number)
    end(process, -number, GONE_WITHIN)
    assert not (tmp_path / "out.npy").exists()
