"""What runs on given nodes, when one of them leaves."""

from __future__ import annotations

import threading

import pytest

from shmexec.cluster import calls as module
from shmexec.cluster.calls import Calls
from shmexec.cluster.inputs import Inputs
from shmexec.errors import ClusterError, WorkerDied


class FakeClient:
    """Has so many nodes; tasks for others wait until they are cancelled."""

    status = "running"

    def __init__(self, *nodes):
        self.nodes = nodes
        self.cancelled = threading.Event()

    def nthreads(self):
        return dict.fromkeys(self.nodes, 1)

    def gather(self, tasks):
        if len(tasks) > len(self.nodes):
            self.cancelled.wait()
        return [f"done {task}" for task in tasks]

    def cancel(self, tasks):
        assert tasks == ["task 1", "task 2"]
        self.cancelled.set()


@pytest.fixture
def calls_of(monkeypatch):
    monkeypatch.setattr(module, "ASK_EVERY", 0.001)
    made = []

    def make(client):
        made.append(Calls(client, "x", Inputs(client, keep=0, direct=None)))
        return made[-1]

    yield make
    for each in made:
        each.helpers.shutdown()


TASKS = {"tcp://a:1": "task 1", "tcp://b:1": "task 2"}


def test_all_nodes_answer(calls_of):
    client = FakeClient("tcp://a:1", "tcp://b:1")
    assert calls_of(client).gather(TASKS, "f") == ["done task 1", "done task 2"]


def test_a_node_that_left_is_not_waited_for(calls_of):
    client = FakeClient("tcp://a:1")
    with pytest.raises(WorkerDied, match=r"tcp://b:1 was lost while f ran"):
        calls_of(client).gather(TASKS, "f")
    assert client.cancelled.is_set()


def test_nor_is_one_if_the_scheduler_is_gone(calls_of):
    client = FakeClient("tcp://a:1")
    client.status = "connecting"
    with pytest.raises(ClusterError):
        calls_of(client).gather(TASKS, "f")
    client.cancelled.set()  # as Dask does by itself
