"""What all tests share: executors of every kind, and the check that nothing is left.

After each test the processes, threads, descriptors, names in ``/dev/shm``, leases and
blocks must be those from before. What a process has once and keeps (fork server,
resource tracker, the hosts' arenas) is made before the first test.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

import shmexec
from shmexec.memory.host import Host
from shmexec.memory.lending import HOST
from shmexec.runtime import lifecycle, server as servers
from shmexec.runtime.room import CALLS
from tests.integration import matrix
from tests.waiting import APART, LONG, shm_names, wait_until

KINDS = ("memfd", "posix")

USUAL = "not stress and not browser"
"""The tests that ``pytest`` alone chooses from, by its options in ``pyproject.toml``."""

# Property tests say how many examples are thorough, and take a share of them (see
# `tests.examples`): all with --hypothesis-profile=thorough.
hypothesis.settings.register_profile("quick", max_examples=40, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=100, deadline=None)
hypothesis.settings.load_profile("quick")

# -- nothing is left behind ------------------------------------------------------------


def _below(pid: int) -> Iterator[psutil.Process]:
    """Processes below one. psutil would read the records of all there are."""
    for child in _children_of(pid) - APART:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield psutil.Process(child)
        yield from _below(child)


def _children_of(pid: int) -> set[int]:
    # Children are listed by the thread that forked them, and go to another one when it
    # ends: a list that was read while a thread ended may lack them.
    found: set[int] = set()
    while True:
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
        except (FileNotFoundError, ProcessLookupError):
            return found
        try:
            for task in tasks:
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    found.update(map(int, file.read().split()))
            if os.listdir(f"/proc/{pid}/task") == tasks:
                return found
        except (FileNotFoundError, ProcessLookupError):
            pass


def _children() -> dict[int, str]:
    """Processes below this one, but for those that it keeps on purpose."""
    kept = set()
    server = servers._server
    if server is not None and server._forkserver_pid is not None:
        kept.add(server._forkserver_pid)
    found = {}
    for child in _below(os.getpid()):
        try:
            command = " ".join(child.cmdline())
            if child.pid in kept or "resource_tracker" in command:
                continue
            if child.status() == psutil.STATUS_ZOMBIE and child.ppid() in kept:
                continue  # the fork server reaps it
            found[child.pid] = f"process {child.pid} {child.name()} ({child.status()})"
        except psutil.NoSuchProcess:
            continue
    return found


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        found[int(name)] = target
    return found


def _hosts() -> list[Host]:
    return [host for host in list(lifecycle._hosts.values()) if not host.forked]


def _held(host: Host) -> dict[str, int]:
    host.settle()
    with host.lock:
        return {
            "leases": len(host.ledger),
            "results alive": len(host.ledger.held_by(HOST)),
            "leases of calls": len(host.ledger.held_by(CALLS)),
            "blocks": host.arena.blocks.live_blocks,
            "bytes charged": host.budget.used(),
            "worker arenas": len(host._workers),
        }


def _pools_are_open() -> bool:
    return any(not pool.stands.gone.is_set() for pool in lifecycle.pools())


@dataclass
class Belongings:
    """What this process has at one moment."""

    children: dict[int, str] = field(default_factory=_children)
    threads: set[threading.Thread] = field(
        default_factory=lambda: set(threading.enumerate())
    )
    descriptors: dict[int, str] = field(default_factory=_descriptors)
    names: set[str] = field(default_factory=shm_names)
    memory: dict[str, dict[str, int]] = field(
        default_factory=lambda: {host.kind: _held(host) for host in _hosts()}
    )
    pools_open: bool = field(default_factory=_pools_are_open)

    def left_over(self) -> list[str]:
        """What is there now and was not there before."""
        left = [text for pid, text in _children().items() if pid not in self.children]
        # A pool from before is seen by other programs once it is old enough.
        seen = lifecycle._presence if self.pools_open else None
        left += [
            f"thread {thread.name}"
            for thread in threading.enumerate()
            if thread not in self.threads and thread.is_alive()
            if seen is None or thread is not seen._thread
        ]
        left += [
            f"descriptor {number} {target}"
            for number, target in _descriptors().items()
            if self.descriptors.get(number) != target and "/proc/" not in target
            if seen is None or number != seen._listener.fileno()
        ]
        left += [f"/dev/shm/{name}" for name in shm_names() - self.names]
        # While workers live they may have quota, and leases on what awaits their gc.
        keys = {"results alive", "leases of calls"} if self.pools_open else None
        for host in _hosts():
            before = self.memory.get(host.kind, {})
            left += [
                f"{host.kind}: {number - before.get(key, 0)} {key}"
                for key, number in _held(host).items()
                if (keys is None or key in keys) and number > before.get(key, 0)
            ]
        return left

    def check(self) -> None:
        """Fail the test if something stays."""

        def clean() -> bool:
            return not self.left_over()

        # Another process of the tests may just be making a name in /dev/shm: what is
        # not there at one look was not left.
        if clean():
            return
        gc.collect()
        if wait_until(clean, 1.0):
            return
        gc.collect()
        if wait_until(clean, LONG):
            return
        left = self.left_over()
        if left:
            pytest.fail("left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture(scope="session")
def _process_wide_things() -> None:
    """Make what the process keeps, so that no test is blamed for it."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in KINDS:
            patch.setenv("SHMEXEC_SEGMENT", kind)
            for method in ("forkserver", "spawn"):
                with shmexec.Executor(1, method) as executor:
                    executor.submit(os.getpid).result()
            with shmexec.shared_arrays():
                pass


@pytest.fixture(autouse=True)
def _nothing_left_behind(_process_wide_things: None) -> Iterator[None]:
    before = Belongings()
    yield
    before.check()


# -- executors of every kind -----------------------------------------------------------

FORK = pytest.mark.filterwarnings(
    # Python 3.12 and later warn of threads; workers are forked by the dispatcher.
    "ignore:.*multi-threaded, use of fork.*:DeprecationWarning"
)
# Each start method and each kind of memory, and what is the default on Linux.
MAIN = [
    pytest.param(("forkserver", "memfd"), id="forkserver"),
    pytest.param(("fork", "posix"), id="fork-posix", marks=FORK),
]
SLOW = [pytest.param(("spawn", "memfd"), id="spawn")]
OTHER = [
    pytest.param(("fork", "memfd"), id="fork", marks=FORK),
    pytest.param(("forkserver", "posix"), id="forkserver-posix"),
]
OTHER_SLOW = [pytest.param(("spawn", "posix"), id="spawn-posix")]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-kind",
        action="store_true",
        help="all pairs of start method and kind of memory; takes twice as long",
    )
    parser.addoption(
        "--kind",
        default=MAIN[0].id,
        choices=[str(kind.id) for kind in MAIN + OTHER],
        help="of these, but for tests of the start methods; by default the default's",
    )


def _kinds(config: pytest.Config) -> tuple[list[Any], list[Any]]:
    """Kinds of executors: for most tests, and for those of the start methods."""
    if config.getoption("every_kind"):
        every = MAIN + OTHER + SLOW + OTHER_SLOW
        return every, every
    chosen = config.getoption("kind")
    return [kind for kind in MAIN + OTHER if kind.id == chosen], MAIN + SLOW


def pytest_configure(config: pytest.Config) -> None:
    # Started in the background or by nohup, this process ignores them, and so would all
    # programs that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.addinivalue_line(
        "markers",
        "every_start: executors also of the start methods that take long",
    )
    config.addinivalue_line(
        "markers",
        "one_kind: stands on what other tests show for each kind of executor",
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave the slow ones out, unless the command line says which tests it wants."""
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not everything or config.option.keyword or config.option.markexpr != USUAL:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_collection_finish() -> None:
    # What the tests' modules imported stays: collections need not look at it each time,
    # and some tests have many of them.
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of the crash matrix, if it was run."""
    reports = terminalreporter.getreports
    passed = [each.nodeid for each in reports("passed") if each.when == "call"]
    failed = [each.nodeid for each in (*reports("failed"), *reports("error"))]
    if any("test_matrix.py" in each for each in passed + failed):
        terminalreporter.section("crash matrix")
        for line in matrix.result_lines(passed, failed):
            terminalreporter.write_line(line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    most, starts = _kinds(metafunc.config)
    params = most
    if metafunc.definition.get_closest_marker("every_start"):
        params = starts
    elif metafunc.definition.get_closest_marker("one_kind"):
        params = most[:1]
    if "_shared_kind" in metafunc.fixturenames:
        metafunc.parametrize("_shared_kind", params, indirect=True, scope="module")
    if "_fresh_kind" in metafunc.fixturenames:
        metafunc.parametrize("_fresh_kind", params, indirect=True, scope="function")


@pytest.fixture(scope="module")
def _shared_kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def _fresh_kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def start_method(_fresh_kind: tuple[str, str]) -> str:
    """The start method of what ``make_executor`` makes."""
    return _fresh_kind[0]


@pytest.fixture
def make_executor(
    _fresh_kind: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., shmexec.Executor]]:
    """Make executors for this test alone: of two workers, ended when it ends."""
    method, kind = _fresh_kind
    monkeypatch.setenv("SHMEXEC_SEGMENT", kind)
    made: list[shmexec.Executor] = []

    def make(max_workers: int = 2, **settings: Any) -> shmexec.Executor:
        settings.setdefault("mp_context", method)
        executor = shmexec.Executor(max_workers, **settings)
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.shutdown(cancel_futures=True)
    made.clear()


@pytest.fixture
def fresh_executor(make_executor: Callable[..., shmexec.Executor]) -> shmexec.Executor:
    """An executor for this test alone, which may break it."""
    return make_executor()


@pytest.fixture(scope="module")
def executor(
    _shared_kind: tuple[str, str], _process_wide_things: None
) -> Iterator[shmexec.Executor]:
    """An executor that the tests of a module share; they leave it as it was."""
    method, kind = _shared_kind
    before = Belongings()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHMEXEC_SEGMENT", kind)
        shared = shmexec.Executor(2, method)
    shared.broadcast(os.getpid)  # its workers are no leak of the first test's
    yield shared
    shared.shutdown()
    del shared
    before.check()


# -- meeting calls on their way --------------------------------------------------------


class Gate:
    """Lets calls wait in workers until the test lets them go; pickles as its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Gate:
        for name in ("arrived", "go"):
            os.mkfifo(self.folder / name)
        self._arrived = os.open(self.folder / "arrived", os.O_RDWR | os.O_NONBLOCK)
        self._go = os.open(self.folder / "go", os.O_RDWR | os.O_NONBLOCK)
        return self

    def __exit__(self, *_: object) -> None:
        (self.folder / "over").touch()
        self.open()
        os.close(self._arrived)
        os.close(self._go)

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by the name of this module: a worker should not need pytest.
        from tests.contract.calls import Barrier

        return Barrier, (str(self.folder),)

    def arrived(self, number: int = 1) -> list[int]:
        """Wait until so many calls are in :meth:`Barrier.wait`; their processes."""
        pids: list[int] = []

        def look() -> bool:
            try:
                data = os.read(self._arrived, 8 * (number - len(pids)))
            except BlockingIOError:
                return False
            pids.extend(
                int.from_bytes(data[i : i + 8], "little")
                for i in range(0, len(data), 8)
            )
            return len(pids) == number

        assert wait_until(look), f"{len(pids)} calls arrived, not {number}"
        return pids

    def open(self, number: int = 1000) -> None:
        """Let so many calls pass, those that come later too."""
        try:
            os.write(self._go, b"." * number)
        except BlockingIOError:
            pass


@pytest.fixture
def make_gate(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], Gate]]:
    """Make gates; they open when the test ends, so that nothing hangs on a failure."""
    made: list[Gate] = []

    def make() -> Gate:
        made.append(Gate(tmp_path_factory.mktemp("gate")).__enter__())
        return made[-1]

    yield make
    for gate in made:
        gate.__exit__(None, None, None)


@pytest.fixture
def gate(make_gate: Callable[[], Gate]) -> Gate:
    """One gate."""
    return make_gate()


# -- programs of their own -------------------------------------------------------------


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program in a file of its own; fails if it hangs."""
    # Python 3.12 and later warn of threads when a program forks, also of one that was
    # joined and is just about to be gone.
    forks = "ignore:This process (pid=:DeprecationWarning"

    def run(text: str, *args: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "script.py"
        path.write_text(text)
        return subprocess.run(
            [sys.executable, str(path), *args],
            capture_output=True,
            text=True,
            timeout=LONG * 2,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": forks},
        )

    return run
