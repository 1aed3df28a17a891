"""The host's accounts against a model: what lives has room, and nothing else counts.

Workers are only played: what they have, need and return.
"""

from __future__ import annotations

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from shmexec.errors import SharedMemoryFull
from shmexec.memory.host import Host
from shmexec.memory.lending import HOST
from tests.examples import examples

LIMIT = 64 << 10
FAMILY_LIMIT = 48 << 10
AMOUNTS = st.integers(1, 1000).map(lambda lines: 64 * lines)
WHICH = st.integers(0, 9)
ACCOUNTS = {"pool": "executor", "actor": "executor", "other": "other executor"}


class Player:
    """A worker, as it knows itself."""

    def __init__(self, arena):
        self.arena = arena
        self.next_offset = 0
        self.results = []

    @property
    def live(self):
        return sum(self.arena.live.values())


class Rooms(RuleBasedStateMachine):
    @initialize()
    def start(self):
        self.host = Host("memfd", 1 << 20, LIMIT)
        for account, family in ACCOUNTS.items():
            limit = FAMILY_LIMIT if family == "executor" else None
            self.host.open_account(account, family, limit)
        self.workers, self.arguments, self.dead = [], [], []
        self.work("pool")
        self.work("other")

    def work(self, account):
        self.workers.append(Player(self.host.new_worker_arena(account)))

    def teardown(self):
        if not hasattr(self, "host"):
            return
        self.host.release([block.lease for _, block in self.arguments])
        for worker in [*self.workers, *self.dead]:
            worker.results.clear()
            self.host.settle()
            self.host.bury(worker.arena, "worker")
        assert self.host.budget.used() == 0
        assert not self.host._workers
        self.host.arena.segment.close()

    def living(self, family=None):
        """Bytes of what lives, in all or in the accounts of one executor."""
        return sum(
            nbytes
            for account, nbytes in [
                *((account, block.nbytes) for account, block in self.arguments),
                *((w.arena.account, w.live) for w in [*self.workers, *self.dead]),
            ]
            if family in (None, ACCOUNTS[account])
        )

    def fits(self, account, nbytes, more=0):
        """Whether all that lives has room beside this; ``more`` is not to be had."""
        family = ACCOUNTS[account]
        ok = self.living() + nbytes + more <= LIMIT
        if family == "executor":
            ok &= self.living(family) + nbytes + more <= FAMILY_LIMIT
        return ok

    @rule(account=st.sampled_from(list(ACCOUNTS)))
    def new_worker(self, account):
        if len(self.workers) < 4:
            self.work(account)

    @rule(account=st.sampled_from(list(ACCOUNTS)), nbytes=AMOUNTS)
    def submit(self, account, nbytes):
        if self.fits(account, nbytes):
            block = self.host.allocate(account, nbytes, HOST, borrow=True)
            self.arguments.append((account, block))
            return
        with pytest.raises(SharedMemoryFull) as caught:
            self.host.allocate(account, nbytes, HOST, borrow=True)
        assert caught.value.needed == nbytes > caught.value.free

    @precondition(lambda self: self.arguments)
    @rule(which=WHICH)
    def end_call(self, which):
        _, block = self.arguments.pop(which % len(self.arguments))
        self.host.release([block.lease])

    @rule(which=WHICH, nbytes=AMOUNTS)
    def result(self, which, nbytes):
        """A worker asks for what it lacks, if it lacks any, and sends a result."""
        worker = self.workers[which % len(self.workers)]
        arena = worker.arena
        missing = worker.live + nbytes - arena.quota
        if missing > 0:
            granted = self.host.grant(arena, missing, borrow=True)
            assert granted == self.fits(arena.account, nbytes)
            if not granted:
                return
        loan = self.host.loan(arena.id, worker.next_offset, nbytes)
        self.host.accept(arena, loan)
        worker.results.append((loan, nbytes))
        worker.next_offset = (worker.next_offset + nbytes) % (1 << 19)
        while worker.next_offset in arena.live:
            worker.next_offset += 64

    @rule(which=WHICH, index=WHICH)
    def drop_result(self, which, index):
        everybody = [*self.workers, *self.dead]
        worker = everybody[which % len(everybody)]
        if worker.results:
            del worker.results[index % len(worker.results)]
            self.host.settle()

    @rule(which=WHICH, nbytes=AMOUNTS)
    def grant_spare(self, which, nbytes):
        self.host.grant_spare(self.workers[which % len(self.workers)].arena, nbytes)

    @rule(which=WHICH, nbytes=AMOUNTS)
    def give_back(self, which, nbytes):
        self.host.returned(self.workers[which % len(self.workers)].arena, nbytes)

    @rule(which=WHICH)
    def die(self, which):
        if len(self.workers) > 1:
            worker = self.workers.pop(which % len(self.workers))
            self.host.bury(worker.arena, "worker")
            self.dead.append(worker)

    @invariant()
    def accounts_agree(self):
        if not hasattr(self, "host"):
            return
        host = self.host
        host.budget.validate()
        quotas = sum(worker.arena.quota for worker in self.workers)
        inherited = sum(worker.live for worker in self.dead)
        arguments = sum(block.nbytes for _, block in self.arguments)
        assert host.budget.used() == quotas + inherited + arguments
        for worker in [*self.workers, *self.dead]:
            assert worker.arena.leased == worker.live


Rooms.TestCase.settings = settings(
    deadline=None, max_examples=examples(60), stateful_step_count=40
)
TestRooms = Rooms.TestCase
