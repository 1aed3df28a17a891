"""Under the limits of a system it works, or one error names the limit.

Each test runs a program of its own, which lowers its limits itself, or has a file system
made for it in a namespace of mounts, where that is allowed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import shmexec
from shmexec import limits
from shmexec.options import segment_kind
from shmexec.runtime import processes, workers
from shmexec.worker.setup import PassedDescriptor
from tests.waiting import LONG, shm_names, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
METHODS = ["fork", "forkserver", "spawn"]
KINDS = ["memfd", "posix"]

PROGRAM = """
import os, resource, sys, time, warnings
import numpy as np
import shmexec
from shmexec import limits
from tests.integration import faults

def lower(name, value):
    _, hard = resource.getrlimit(getattr(resource, name))
    resource.setrlimit(getattr(resource, name), (value, hard))

def work(array):
    time.sleep(0.01)
    return array + 1

def demo(workers, nbytes):
    with shmexec.Executor(workers, sys.argv[1]) as ex:
        for n, out in enumerate(ex.map(work, [np.full(nbytes, n, np.uint8) for n in range(4)])):
            assert (out == n + 1).all() and out.nbytes == nbytes
            del out
        open(os.devnull).close()  # some are left to the program
        print("right")

KB, MB = 1 << 10, 1 << 20
try:
    CASE
except Exception as error:
    if "bug" in sys.argv: raise
    print(type(error).__name__, error)
"""


def run(case, method="forkserver", kind="memfd", mounts=(), **env):
    """What a program prints under a limit, and on stderr; nothing of it may be left."""
    names = shm_names()
    command = [sys.executable, "-c", PROGRAM.replace("CASE", case), method]
    if mounts:
        steps = " && ".join([*mounts, 'exec "$@"'])
        command = ["unshare", "-m", "sh", "-c", steps, "sh", *command]
    process = subprocess.Popen(
        command,
        env={
            **os.environ,
            "SHMEXEC_SEGMENT": kind,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=LONG)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"hangs: {out}\n{err}", pytrace=False)
    assert process.returncode == 0, err
    assert wait_until(lambda: not _group(process.pid), 5)
    assert wait_until(lambda: shm_names() <= names)
    return out, err


def _group(pid):
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


AVAILABLE = "limits._mapped() + {} * MB"

WORKS = {
    # name: (what the program does, what its warning says, if it warns)
    "64 descriptors": ("lower('RLIMIT_NOFILE', 64); demo(2, MB)", ""),
    "64 descriptors and too many workers": (
        "lower('RLIMIT_NOFILE', 64); demo(8, MB)",
        r"goes on with \d of 8 workers.*64 open files \(RLIMIT_NOFILE\)",
    ),
    "512 MB of addresses": (
        f"lower('RLIMIT_AS', {AVAILABLE.format(512)}); demo(2, MB)",
        "",
    ),
    "files of 20 MB": ("lower('RLIMIT_FSIZE', 20 * MB); demo(2, MB)", ""),
}

REFUSED = {
    # name: (what the program does, what the error says)
    "24 descriptors": (
        "lower('RLIMIT_NOFILE', 24); demo(2, MB)",
        r"PoolBroken .* 24 open files \(RLIMIT_NOFILE\), and has \d+;.*ulimit -n",
    ),
    "256 MB of addresses": (
        f"lower('RLIMIT_AS', {AVAILABLE.format(256)}); demo(2, 20 * MB)",
        r"SharedMemoryFull .*raise the limit: .* address space \(RLIMIT_AS, ulimit -v\)",
    ),
    "files of 4 MB": (
        "lower('RLIMIT_FSIZE', 4 * MB); demo(2, 8 * MB)",
        r"SharedMemoryFull .*raise the limit: files.* 4.19 MB \(RLIMIT_FSIZE, ulimit -f\)",
    ),
    "files of 100 KB": (
        "lower('RLIMIT_FSIZE', 100 * KB); demo(2, MB)",
        r"MemoryError .* 102 KB \(RLIMIT_FSIZE, ulimit -f\)",
    ),
}

BY_DEFAULT = [
    "64 descriptors and too many workers",
    "512 MB of addresses",
    "files of 4 MB",
    pytest.param("24 descriptors", marks=pytest.mark.stress),
    pytest.param("256 MB of addresses", marks=pytest.mark.stress),
]


def works(name, method, kind):
    case, warning = WORKS[name]
    out, err = run(case, method, kind)
    assert out == "right\n", err
    if warning:
        assert re.search(warning, err), err
        assert err.count("Warning") == 1
    else:
        assert err == ""


def is_refused(name, method, kind):
    case, pattern = REFUSED[name]
    out, err = run(case, method, kind)
    assert re.search(pattern, out), (out, err)
    assert len(out) < 600
    assert out.count("RLIMIT") == 1
    assert "Traceback" not in err


def check(name, method, kind):
    (works if name in WORKS else is_refused)(name, method, kind)


@pytest.mark.parametrize("name", BY_DEFAULT)
def test_under_a_limit(name):
    check(name, "forkserver", "memfd")


@pytest.mark.stress
@pytest.mark.parametrize("name", [*WORKS, *REFUSED])
@pytest.mark.parametrize(("method", "kind"), [("fork", "posix"), ("spawn", "memfd")])
def test_under_any_limit_any_way(name, method, kind):
    check(name, method, kind)


# -- file systems --------------------------------------------------------------------------


def may_mount():
    """Whether this user may have a namespace of mounts of their own."""
    if not shutil.which("unshare"):
        return False
    steps = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return not subprocess.run(steps, capture_output=True, check=False).returncode


@pytest.fixture(scope="module")
def mounting():
    if not may_mount():
        pytest.skip("mounting file systems is not allowed here")


def small_shm(size):
    return f"mount -t tmpfs -o size={size} tmpfs /dev/shm"


READ_ONLY = [
    "mount --make-rprivate /",
    "mount --bind / /",
    "mount -o remount,bind,ro /",
]
NO_SHM = ["mount -t tmpfs -o ro tmpfs /dev/shm"]
NO_FOLDER = r"RuntimeWarning: the fork server has no place for its socket.*TMPDIR"


@pytest.mark.usefixtures("mounting")
@pytest.mark.parametrize("kind", KINDS)
def test_a_small_shared_memory_folder(kind):
    """64 MB, as in a container, if it is used at all."""
    out, err = run("demo(2, 6 * MB)", kind=kind, mounts=[small_shm("64m")])
    assert (out, err) == ("right\n", "")


@pytest.mark.usefixtures("mounting")
def test_what_does_not_fit_into_it():
    out, err = run("demo(2, 12 * MB)", kind="posix", mounts=[small_shm("8m")])
    assert re.search(
        r"^SharedMemoryFull .*/dev/shm has 8.39 MB. Enlarge.*SHMEXEC_SEGMENT", out
    )
    assert err == ""


@pytest.mark.usefixtures("mounting")
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("forkserver", "memfd"),
        pytest.param("fork", "posix", marks=pytest.mark.stress),
        pytest.param("spawn", "memfd", marks=pytest.mark.stress),
    ],
)
def test_nothing_can_be_written_to(method, kind):
    mounts = READ_ONLY + (NO_SHM if kind == "memfd" else [])
    out, err = run("demo(2, MB)", method, kind, mounts, HOME="/", TMPDIR="/missing")
    assert out == "right\n"
    if method == "forkserver":
        assert re.search(NO_FOLDER, err)
        assert err.count("Warning") == 1
    else:
        assert err == ""


@pytest.mark.stress
@pytest.mark.usefixtures("mounting")
def test_no_shared_memory_folder():
    out, err = run("demo(2, MB)", kind="posix", mounts=NO_SHM)
    assert re.search(r"^OSError .*/dev/shm is missing.*SHMEXEC_SEGMENT=memfd", out)
    assert err == ""


# -- what is refused -----------------------------------------------------------------------


@pytest.fixture
def no_memfd(monkeypatch):
    def refuse(*_args):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    limits.memfd_refused.cache_clear()
    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    yield
    limits.memfd_refused.cache_clear()


@pytest.mark.usefixtures("no_memfd")
def test_memory_files_may_be_refused(monkeypatch):
    """As by a filter of system calls."""
    monkeypatch.delenv("SHMEXEC_SEGMENT", raising=False)
    assert segment_kind() == "posix"
    with shmexec.Executor(1) as executor:
        assert executor.submit(abs, -1).result() == 1
    monkeypatch.setenv("SHMEXEC_SEGMENT", "memfd")
    with pytest.raises(ValueError, match=r"memfd_create is refused here: .*'posix'"):
        shmexec.Executor(1)


@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root"
)
@pytest.mark.stress
@pytest.mark.parametrize("method", METHODS)
def test_few_processes(method):
    program = PROGRAM.replace("CASE", "demo(8, MB)")
    done = subprocess.run(
        [
            *("prlimit", "--nproc=4", "setpriv", "--reuid=54321", "--clear-groups"),
            # It is to read this user's files, and to be limited.
            *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
            *(sys.executable, "-c", program, method),
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    if done.stdout == "right\n":
        assert re.search(r"goes on with \d of 8 workers.*RLIMIT_NPROC", done.stderr)
    else:
        assert re.match(r"(PoolBroken|RuntimeError) .*RLIMIT_NPROC", done.stdout)


def test_no_thread_for_the_pool(monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    executor = shmexec.Executor(1)
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refuse)
        with pytest.raises(RuntimeError, match=r"no thread for the pool: .*ulimit -u"):
            executor.submit(abs, -1)
    assert executor.submit(abs, -1).result() == 1
    executor.shutdown()


def goes_on(executor, gate):
    more = [executor.submit(abs, -n) for n in range(20)]
    gate.open()
    return [future.result(LONG) for future in more] == list(range(20))


def test_a_start_that_is_refused_while_others_run(monkeypatch, gate):
    """The pool goes on with those, says so once, and does not break."""
    from tests.contract import calls

    started = []
    original = workers.WorkerProcess

    def second_is_refused(*args):
        started.append(args)
        if len(started) > 1:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return original(*args)

    monkeypatch.setattr(workers, "WorkerProcess", second_is_refused)
    with shmexec.Executor(3) as executor:
        first = executor.submit(calls.through, gate, 1)
        gate.arrived()
        with pytest.warns(RuntimeWarning, match="goes on with 1 of 3 workers") as told:
            assert goes_on(executor, gate)
            assert wait_until(lambda: told)
        assert first.result() == 1
    assert len(told) == 1
    assert len(started) <= 3


def test_what_refuses_a_worker_is_told_once(monkeypatch):
    """It says so to the parent, and prints nothing."""
    original = processes.WorkerMain

    def in_nothing(popen, config):
        config.own_segment = PassedDescriptor(null.fileno())
        return original(popen, config)

    monkeypatch.setattr(processes, "WorkerMain", in_nothing)
    with (
        open(os.devnull) as null,
        shmexec.Executor(1) as executor,
        pytest.raises(
            shmexec.PoolBroken, match=r"could not start: .*cannot map"
        ) as info,
    ):
        executor.submit(abs, -1).result(LONG)
    for text in (str(info.value), *info.value.reasons):
        assert text.count("cannot map") == 1
    assert f"({len(info.value.reasons)} times)" in str(info.value)
