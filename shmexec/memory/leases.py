"""Who may read or write which block: the ledger that one parent process keeps.

A block may be recycled when its last lease ended, and not before. Not here: the blocks
themselves (:mod:`shmexec.memory.allocator`), the messages that carry releases, and the
decision that a holder is dead. The ledger holds no lock; its owner calls it from one
thread at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Hashable

BlockKey: TypeAlias = tuple[int, int]
"""A block: the id of its arena, and its offset there in bytes."""


class Ledger:
    """All leases of one parent process.

    A holder is whatever the caller tells apart: a worker, a call, the parent itself.
    Each lease has one holder; a holder may have several leases on one block.

    Example:
        >>> ledger = Ledger()
        >>> mine, theirs = ledger.lease((0, 64), "me"), ledger.lease((0, 64), "worker")
        >>> ledger.release(mine)
        >>> ledger.drop_holder("worker")
        [(0, 64)]
        >>> ledger.release(theirs), ledger.stale
        (None, 1)
    """

    def __init__(self) -> None:
        self.stale = 0
        """Releases and moves that named an unknown or ended lease."""
        self._last_id = 0
        self._block_of: dict[int, BlockKey] = {}
        # Dicts serve as ordered sets: what callers see does not depend on hashing.
        self._holders: dict[BlockKey, dict[int, Hashable]] = {}
        self._held: dict[Hashable, dict[int, None]] = {}

    def __len__(self) -> int:
        """Return how many leases are open."""
        return len(self._block_of)

    def lease(self, block: BlockKey, holder: Hashable) -> int:
        """Give `holder` a lease on `block`.

        Returns:
            The lease's id. Ids count from 1 and are never used again, so a release that
            comes late cannot end somebody else's lease.
        """
        # First, because an unhashable holder must raise before anything is noted.
        held = self._held.get(holder)
        holders = self._holders.get(block)
        lease_id = self._last_id = self._last_id + 1
        if held is None:
            self._held[holder] = {lease_id: None}
        else:
            held[lease_id] = None
        if holders is None:
            self._holders[block] = {lease_id: holder}
        else:
            holders[lease_id] = holder
        self._block_of[lease_id] = block
        return lease_id

    def release(self, lease_id: int) -> BlockKey | None:
        """End a lease.

        A release may arrive after its holder was dropped, or twice: one for a lease that
        is not open changes nothing and is counted in `stale`.

        Returns:
            The block, if this was its last lease, else ``None``.
        """
        block = self._block_of.pop(lease_id, None)
        if block is None:
            self.stale += 1
            return None
        holders = self._holders[block]
        holder = holders.pop(lease_id)
        held = self._held[holder]
        del held[lease_id]
        if not held:
            del self._held[holder]
        if holders:
            return None
        del self._holders[block]
        return block

    def move(self, lease_id: int, holder: Hashable) -> bool:
        """Hand a lease on to another holder; its block is at no time without lease.

        Returns:
            False if the lease is not open: nothing changes then, and it is counted in
            `stale`.
        """
        block = self._block_of.get(lease_id)
        if block is None:
            self.stale += 1
            return False
        target = self._held.setdefault(holder, {})
        holders = self._holders[block]
        old = holders[lease_id]
        target[lease_id] = None
        # Moved to where it is, it stays: source and target are one dict then.
        if old != holder:
            source = self._held[old]
            del source[lease_id]
            if not source:
                del self._held[old]
            holders[lease_id] = holder
        return True

    def drop_holder(self, holder: Hashable) -> list[BlockKey]:
        """End all leases of a holder that is gone for good.

        A killed process must have been reaped: until then it may still write.

        Returns:
            The blocks that are now without lease, each once.
        """
        freed = []
        for lease_id in self._held.pop(holder, ()):
            block = self._block_of.pop(lease_id)
            holders = self._holders[block]
            del holders[lease_id]
            if not holders:
                del self._holders[block]
                freed.append(block)
        return freed

    def pin(self, of_holder: Hashable, pin_holder: Hashable) -> int:
        """Keep what a holder now reads, whatever it releases later.

        Used at a fork: the child maps the blocks its parent mapped, so they stay until
        ``drop_holder(pin_holder)``, after the child ended.

        Returns:
            How many blocks `pin_holder` got a lease on: one for each block, however many
            leases `of_holder` has on it.
        """
        # All are read before the first is given: the two holders may be the same.
        blocks = dict.fromkeys(map(self._block_of.__getitem__, self.held_by(of_holder)))
        for block in blocks:
            self.lease(block, pin_holder)
        return len(blocks)

    def block_of(self, lease_id: int) -> BlockKey | None:
        """Return the block a lease is on, or ``None`` if the lease is not open."""
        return self._block_of.get(lease_id)

    def holder_of(self, lease_id: int) -> Hashable | None:
        """Return who has a lease, or ``None`` if it is not open."""
        block = self._block_of.get(lease_id)
        return None if block is None else self._holders[block][lease_id]

    def holders(self, block: BlockKey) -> list[Hashable]:
        """Return a block's holders, once per lease, in the order of lease ids."""
        return list(self._holders.get(block, {}).values())

    def count(self, block: BlockKey) -> int:
        """Return how many leases a block has."""
        return len(self._holders.get(block, ()))

    def held_by(self, holder: Hashable) -> list[int]:
        """Return the ids of a holder's leases, in the order it got them."""
        return list(self._held.get(holder, ()))

    def blocks(self, arena: int) -> list[int]:
        """Return the offsets of an arena's leased blocks, in ascending order.

        Looks at every leased block of every arena: for an arena's end, not for each call.
        """
        return sorted(offset for owner, offset in self._holders if owner == arena)

    def validate(self) -> None:
        """Assert that the three indexes tell the same."""
        by_block = {
            lease_id: (block, holder)
            for block, holders in self._holders.items()
            for lease_id, holder in holders.items()
        }
        by_holder = {
            lease_id: (self._block_of.get(lease_id), holder)
            for holder, held in self._held.items()
            for lease_id in held
        }
        assert by_block == by_holder, "blocks and holders disagree"
        assert by_block.keys() == self._block_of.keys(), "leases and blocks disagree"
        leases = len(self._block_of)
        assert sum(map(len, self._holders.values())) == leases, "a lease on two blocks"
        assert sum(map(len, self._held.values())) == leases, "a lease with two holders"
        assert all(self._holders.values()), "a block without lease is still listed"
        assert all(self._held.values()), "a holder without lease is still listed"
        assert all(0 < i <= self._last_id for i in self._block_of), "an id out of order"
