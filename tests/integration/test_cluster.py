"""An executor on a cluster of two nodes, each a process with an address of its own.

What is tried is in ``clustering``, a program, since Dask leaves threads behind in its
client's process. It runs once; each of its checks is a test here, which waits for its
line. The last but one kills a node.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest

from tests.integration import clustering
from tests.integration.programs import ROOT, session
from tests.waiting import LONG, wait_until

pytestmark = pytest.mark.slow

CHECKS = sorted(name for name in vars(clustering) if name.startswith("check_"))


_DETACH = """
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
print(os.getpid(), flush=True)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@contextmanager
def _program(log, *args):
    """A program in a session of its own, which is killed at the end; gives its output.

    It is nobody's child: what it starts in one test and ends in another is its own
    affair. Its workers go with it, though nobody tells them.
    """
    launcher = subprocess.Popen(
        [sys.executable, "-c", _DETACH, *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    with launcher:
        pid = int(launcher.stdout.readline())
        assert launcher.wait(LONG) == 0
        try:
            yield launcher.stdout
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            gone = wait_until(lambda: not session(pid), LONG)
            for each in session(pid):
                each.kill()
            assert gone


class _Outcomes:
    """What came of each check, as the program tells it."""

    def __init__(self, lines, log):
        self._lines = lines
        self._log = log
        self._errors = {}

    def error(self, name):
        while name not in self._errors:
            line = self._lines.readline()
            if not line:
                self._log.seek(0)
                pytest.fail(f"the program ended\n{self._log.read()}", pytrace=False)
            told = json.loads(line)
            self._errors[told["name"]] = told["error"]
        return self._errors[name]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, request):
    items = [item for item in request.session.items if item.module is request.module]
    wanted = [item.callspec.params["check"] for item in items if "[" in item.name]
    start = ("-m", "tests.integration.clustering", "local", *wanted)
    with open(tmp_path_factory.mktemp("cluster") / "log", "w+") as log:
        with _program(log, *start) as lines:
            told = _Outcomes(lines, log)
            assert not told.error("start")
            yield told
            assert not lines.read()  # until its end


@pytest.mark.parametrize("check", CHECKS)
def test_cluster(outcomes, check):
    error = outcomes.error(check)
    if error:
        pytest.fail(error, pytrace=False)


@contextmanager
def _cluster(folder):
    """A scheduler and two nodes, as they are started by hand; gives the address."""
    file = folder / "scheduler.json"
    common = ("--no-dashboard", "--scheduler-file", str(file), "--host")
    scheduler = ("-m", "distributed.cli.dask_scheduler", "--port", "0", *common)
    node = ("-m", "distributed.cli.dask_worker", "--no-nanny", "--nthreads=1", *common)
    with (
        open(folder / "log", "w+") as log,
        _program(log, *scheduler, "127.0.0.1"),
        _program(log, *node, "127.0.0.1"),
        _program(log, *node, "127.0.0.2"),
    ):
        assert wait_until(lambda: file.exists() and file.stat().st_size, LONG)
        yield json.loads(file.read_text())["address"]


@pytest.mark.stress
def test_large_batches_survive_the_loss_of_a_node(tmp_path):
    """With each process started by hand; ``CLUSTER_GIGABYTES=1`` for more than 0.2."""
    size = os.environ.get("CLUSTER_GIGABYTES", "0.2")
    with _cluster(tmp_path) as address, open(tmp_path / "err", "w+") as log:
        start = ("-m", "benchmarks.cluster", "--address", address, "--gigabytes", size)
        with _program(log, *start) as lines:
            told = [json.loads(line) for line in lines]
        log.seek(0)
        errors = log.read()
    assert [each["equal"] for each in told] == [True, True, True], errors
    assert [each["nodes"] for each in told] == [2, 2, 1]
