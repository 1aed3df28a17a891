"""Whether a cluster will do, with a client that answers as told."""

from __future__ import annotations

import platform
from importlib import metadata
from types import SimpleNamespace

import pytest

import shmexec
from shmexec.cluster.connecting import can_reach, check, refuse_in_process
from shmexec.errors import ClusterError


class FakeClient:
    """Answers for one node and the scheduler."""

    scheduler = SimpleNamespace(address="tcp://s:1")

    def __init__(self, node, scheduler, python=None):
        self._answers = {"node": node, "scheduler": scheduler}
        self._python = python or platform.python_version()

    def _answer(self, place, fn):
        if fn is metadata.version:
            return self._answers[place]
        return self._python if place == "node" else platform.python_version()

    def run(self, fn, *_args, on_error):
        assert on_error == "return"
        return {"tcp://n:2": self._answer("node", fn)}

    def run_on_scheduler(self, fn, *_args):
        answer = self._answer("scheduler", fn)
        if isinstance(answer, Exception):
            raise answer
        return answer


HERE = shmexec.__version__
MISSING = metadata.PackageNotFoundError("shmexec")


def test_the_same_everywhere():
    check(FakeClient(HERE, HERE))


@pytest.mark.parametrize(
    ("client", "says"),
    [
        (FakeClient(MISSING, HERE), ["tcp://n:2", "no shmexec", f"shmexec=={HERE}"]),
        (FakeClient(HERE, MISSING), ["scheduler at tcp://s:1", "no shmexec"]),
        (FakeClient("9.9", HERE), ["tcp://n:2", "shmexec 9.9", HERE]),
        (FakeClient(HERE, "9.9"), ["scheduler at tcp://s:1", "shmexec 9.9"]),
        (FakeClient(HERE, HERE, "3.99.1"), ["tcp://n:2", "Python 3.99"]),
        (FakeClient(OSError("gone"), HERE), ["tcp://n:2", "gone"]),
    ],
)
def test_errors_say_where_and_what(client, says):
    with pytest.raises(ClusterError) as caught:
        check(client)
    assert all(each in str(caught.value) for each in says), caught.value


def test_threads_of_a_program_are_no_cluster():
    refuse_in_process("tcp://10.0.0.1:8786")
    with pytest.raises(ClusterError, match=r"inproc://.*processes=True"):
        refuse_in_process("inproc://10.0.0.1/12/1")


def test_nodes_may_leave_meanwhile():
    class Leaving(FakeClient):
        def run(self, fn, *args, on_error):
            if fn is metadata.version:
                return super().run(fn, *args, on_error=on_error)
            return {}

        def nthreads(self):
            return {}

    client = Leaving(HERE, HERE)
    check(client)
    with pytest.raises(ClusterError, match="no nodes"):
        can_reach(client)
