"""Ledger against a model: one flat dict of lease id to block and holder."""

from __future__ import annotations

from hypothesis import settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from shmexec.memory.leases import Ledger
from tests.examples import examples

BLOCKS = st.tuples(st.integers(0, 2), st.sampled_from([0, 64, 128]))
HOLDERS = st.sampled_from(["parent", "worker", ("call", 1), 7])


class Leases(RuleBasedStateMachine):
    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.model = {}
        self.stale = 0
        self.last = 0

    def leased(self):
        return {block for block, _ in self.model.values()}

    @rule(target=leases, block=BLOCKS, holder=HOLDERS)
    def lease(self, block, holder):
        lease = self.ledger.lease(block, holder)
        assert lease == self.last + 1
        self.last = lease
        self.model[lease] = (block, holder)
        return lease

    @rule(lease=leases)
    def release(self, lease):
        """Leases stay in the bundle, so many are released late or twice."""
        block, _ = self.model.pop(lease, (None, None))
        self.stale += block is None
        expected = None if block in self.leased() else block
        assert self.ledger.release(lease) == expected

    @rule(lease=leases, holder=HOLDERS)
    def move(self, lease, holder):
        is_open = lease in self.model
        assert self.ledger.move(lease, holder) == is_open
        self.stale += not is_open
        if is_open:
            self.model[lease] = (self.model[lease][0], holder)

    @rule(holder=HOLDERS)
    def drop_holder(self, holder):
        before = self.leased()
        self.model = {i: v for i, v in self.model.items() if v[1] != holder}
        freed = self.ledger.drop_holder(holder)
        assert len(freed) == len(set(freed))
        assert set(freed) == before - self.leased()

    @rule(of_holder=HOLDERS, pin_holder=HOLDERS)
    def pin(self, of_holder, pin_holder):
        held = self.ledger.held_by(of_holder)
        blocks = list(dict.fromkeys(self.model[lease][0] for lease in held))
        assert self.ledger.pin(of_holder, pin_holder) == len(blocks)
        for block in blocks:
            self.last += 1
            self.model[self.last] = (block, pin_holder)

    @rule(block=BLOCKS, holder=HOLDERS)
    def queries_agree(self, block, holder):
        on_block = [h for _, (b, h) in sorted(self.model.items()) if b == block]
        assert sorted(self.ledger.holders(block), key=repr) == sorted(
            on_block, key=repr
        )
        assert self.ledger.count(block) == len(on_block)
        held = {i for i, (_, h) in self.model.items() if h == holder}
        assert set(self.ledger.held_by(holder)) == held
        in_arena = sorted(o for a, o in self.leased() if a == block[0])
        assert self.ledger.blocks(block[0]) == in_arena

    @invariant()
    def agrees_with_the_model(self):
        self.ledger.validate()
        assert len(self.ledger) == len(self.model)
        assert self.ledger.stale == self.stale
        for lease, (block, _) in self.model.items():
            assert self.ledger.block_of(lease) == block


Leases.TestCase.settings = settings(
    deadline=None, max_examples=examples(80), stateful_step_count=40
)
TestLeases = Leases.TestCase
