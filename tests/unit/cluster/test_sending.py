"""Nodes that are lost while an input is on its way to them."""

from __future__ import annotations

import numpy as np
import pytest

from shmexec.cluster.inputs import SENDS_AT_MOST, Inputs


class FakeFuture:
    def cancelled(self):
        return False


class LosesNodes:
    """A client to whom so many nodes are lost, one after the other."""

    def __init__(self, lost):
        self.lost = lost
        self.keys = []

    def scatter(self, data, direct, hash):  # noqa: A002  (Dask's name)
        self.keys += data
        if len(self.keys) <= self.lost:
            raise ConnectionResetError
        return {key: FakeFuture() for key in data}


def test_what_was_on_its_way_to_a_lost_node_goes_to_the_next():
    client = LosesNodes(SENDS_AT_MOST - 1)
    inputs = Inputs(client, keep=10**9, direct=None)
    need = inputs.add_array(np.arange(1000.0))
    assert need.remote() is need.remote()
    assert len(set(client.keys)) == len(client.keys) == SENDS_AT_MOST
    assert (inputs.sent, inputs.bytes_sent) == (1, 8000)


def test_if_all_are_lost_the_error_is_seen():
    client = LosesNodes(SENDS_AT_MOST)
    inputs = Inputs(client, keep=10**9, direct=None)
    need = inputs.add_array(np.arange(1000.0))
    with pytest.raises(ConnectionResetError):
        need.remote()
    assert need.remote() is not None  # there are nodes again
    assert len(client.keys) == SENDS_AT_MOST + 1
