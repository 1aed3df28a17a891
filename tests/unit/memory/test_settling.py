"""Leases end with their views, also where no pool runs that would see to it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from shmexec.memory.host import Host
from tests.interrupts import Interrupter


# No fixture: pytest would keep its value, and with it the mappings, for too long.
@contextmanager
def new_host():
    host = Host("memfd", 1 << 20, 1 << 20)
    host.open_account("pool", "executor", None)
    try:
        yield host
    finally:
        host.arena.segment.close()


def let_go(host, at):
    """A view dies, and an interrupt strikes meanwhile; at how many places it might."""
    views = [host.keep(host.allocate("pool", 1000, "calls"))]
    interrupter = Interrupter(at, spared=())
    interrupter.run(views.clear)
    return interrupter.seen


def test_at_once():
    with new_host() as host:
        let_go(host, 0)
        assert host.budget.used() == 0
        assert host.arena.blocks.used == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_leaves_no_lock_taken():
    with new_host() as host:
        places = let_go(host, 0)
        assert places > 5
        for at in range(1, places + 1):
            let_go(host, at)
            assert not host.lock.locked(), at
