"""Ledger: one idea per test. Random sequences are in tests/property."""

from __future__ import annotations

import pytest

from shmexec.memory.leases import Ledger

BLOCK = (1, 0)
OTHER = (1, 64)


@pytest.fixture
def ledger():
    ledger = Ledger()
    yield ledger
    ledger.validate()


def test_ids_count_from_one_and_are_not_reused(ledger):
    first = ledger.lease(BLOCK, "a")
    ledger.release(first)
    assert (first, ledger.lease(BLOCK, "a")) == (1, 2)


def test_only_the_last_release_gives_the_block_back(ledger):
    first, second = ledger.lease(BLOCK, "a"), ledger.lease(BLOCK, "b")
    assert ledger.release(first) is None
    assert ledger.release(second) == BLOCK
    assert len(ledger) == 0


@pytest.mark.parametrize("unknown", [-1, 0, 99])
def test_an_unknown_release_is_counted_as_stale(ledger, unknown):
    ledger.lease(BLOCK, "a")
    assert ledger.release(unknown) is None
    assert (ledger.stale, ledger.count(BLOCK)) == (1, 1)


def test_a_second_release_does_not_end_another_lease(ledger):
    first, _second = ledger.lease(BLOCK, "a"), ledger.lease(BLOCK, "a")
    ledger.release(first)
    assert ledger.release(first) is None
    assert ledger.count(BLOCK) == 1


def test_a_release_after_its_holder_was_dropped_is_stale(ledger):
    lease = ledger.lease(BLOCK, "a")
    assert ledger.drop_holder("a") == [BLOCK]
    assert ledger.release(lease) is None
    assert ledger.stale == 1


def test_dropping_a_holder_spares_what_others_hold(ledger):
    ledger.lease(BLOCK, "a")
    ledger.lease(OTHER, "a")
    ledger.lease(OTHER, "b")
    assert ledger.drop_holder("a") == [BLOCK]
    assert ledger.holders(OTHER) == ["b"]


def test_a_dropped_holders_block_is_listed_once(ledger):
    ledger.lease(BLOCK, "a")
    ledger.lease(BLOCK, "a")
    assert ledger.drop_holder("a") == [BLOCK]


def test_dropping_an_unknown_holder_frees_nothing(ledger):
    assert ledger.drop_holder("nobody") == []


def test_a_moved_lease_outlives_its_first_holder(ledger):
    lease = ledger.lease(BLOCK, "worker")
    assert ledger.move(lease, "parent")
    assert ledger.drop_holder("worker") == []
    assert ledger.held_by("parent") == [lease]


def test_a_lease_can_be_moved_to_its_own_holder(ledger):
    lease = ledger.lease(BLOCK, "a")
    assert ledger.move(lease, "a")
    assert ledger.held_by("a") == [lease]


def test_an_ended_lease_cannot_be_moved(ledger):
    lease = ledger.lease(BLOCK, "a")
    ledger.release(lease)
    assert not ledger.move(lease, "b")
    assert (ledger.stale, ledger.held_by("b")) == (1, [])


def test_a_pin_keeps_blocks_after_their_holder_let_go(ledger):
    leases = [ledger.lease(BLOCK, "a"), ledger.lease(OTHER, "a")]
    assert ledger.pin("a", "fork") == 2
    assert [ledger.release(lease) for lease in leases] == [None, None]
    assert ledger.drop_holder("fork") == [BLOCK, OTHER]


def test_a_pin_takes_one_lease_a_block(ledger):
    ledger.lease(BLOCK, "a")
    ledger.lease(BLOCK, "a")
    assert ledger.pin("a", "fork") == 1
    assert ledger.holders(BLOCK) == ["a", "a", "fork"]


def test_a_holder_may_pin_its_own_blocks(ledger):
    ledger.lease(BLOCK, "a")
    assert ledger.pin("a", "a") == 1
    assert ledger.count(BLOCK) == 2


def test_blocks_are_listed_by_arena(ledger):
    for block in ((1, 128), (2, 64), (1, 0), (1, 0)):
        ledger.lease(block, "a")
    assert ledger.blocks(1) == [0, 128]
    assert ledger.blocks(3) == []


def test_a_lease_knows_its_block_until_it_ends(ledger):
    lease = ledger.lease(BLOCK, "a")
    assert ledger.block_of(lease) == BLOCK
    ledger.release(lease)
    assert ledger.block_of(lease) is None


def test_an_unhashable_holder_changes_nothing(ledger):
    lease = ledger.lease(BLOCK, "a")
    with pytest.raises(TypeError):
        ledger.lease(OTHER, [])
    with pytest.raises(TypeError):
        ledger.move(lease, [])
    assert (len(ledger), ledger.holders(BLOCK)) == (1, ["a"])
