"""What the parent makes of what a worker says about its memory."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from shmexec.memory.host import Host


# No fixture: pytest would keep its value, and with it the mappings, for too long.
@contextmanager
def new_arena():
    host = Host("memfd", 1 << 20, 1 << 20)
    host.open_account("pool", "executor", None)
    arena = host.new_worker_arena("pool")
    assert host.grant(arena, 4096)
    try:
        yield host, arena
    finally:
        host.bury(arena, "worker")
        assert host.budget.used() == 0
        host.arena.segment.close()


def accepted(host, arena, nbytes):
    loan = host.loan(arena.id, 0, nbytes)
    host.accept(arena, loan)
    return loan


def test_what_it_cannot_give_back_counts_as_used():
    with new_arena() as (host, arena):
        host.returned(arena, 1024, all_it_can=True)
        assert (arena.quota, arena.kept, arena.slack) == (3072, 3072, 0)
        assert host.lending.standing("pool") == (3072, 1 << 20)


def test_a_result_dropped_meanwhile_is_none_of_what_it_keeps():
    with new_arena() as (host, arena):
        result = accepted(host, arena, 2048)
        arena.freed = 0  # it is asked
        del result
        host.settle()
        host.returned(arena, 1024, all_it_can=True)  # the answer did not know of that
        assert (arena.quota, arena.kept, arena.slack) == (3072, 1024, 2048)


def test_it_cannot_return_what_results_take():
    with new_arena() as (host, arena):
        result = accepted(host, arena, 2048)
        host.returned(arena, 4096)
        assert arena.quota == 2048
        del result
        host.settle()


def test_a_result_past_its_quota_is_refused():
    with new_arena() as (host, arena):
        with pytest.raises(ValueError, match="quota of 4096"):
            accepted(host, arena, 4097)
        assert not arena.live
