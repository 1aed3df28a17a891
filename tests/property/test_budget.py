"""Budget against a model: plain sums over a list of accounts."""

from __future__ import annotations

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shmexec.memory.budget import Budget
from tests.examples import examples

NAMES = st.sampled_from(["args", "worker 1", "worker 2"])
AMOUNTS = st.integers(-2, 60)


class Accounts(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.budget = Budget(0)
        self.total = 0
        self.limits = {}
        self.charged = dict.fromkeys(["args", "worker 1", "worker 2"], 0)

    @initialize(limit=st.integers(0, 100))
    def start(self, limit):
        self.total = limit
        self.budget = Budget(limit)

    def room(self, name):
        limit = self.limits[name]
        total = self.total - sum(self.charged.values())
        own = total if limit is None else limit - self.charged[name]
        return max(0, min(total, own))

    @rule(name=NAMES, limit=st.none() | AMOUNTS)
    def open(self, name, limit):
        if name in self.limits or (limit is not None and limit < 0):
            with pytest.raises(ValueError, match=r"is open|negative"):
                self.budget.open(name, limit)
        else:
            self.budget.open(name, limit)
            self.limits[name] = limit

    @rule(name=NAMES)
    def close(self, name):
        if name in self.limits:
            self.budget.close(name)
            del self.limits[name]
        else:
            with pytest.raises(ValueError, match="not open"):
                self.budget.close(name)

    @rule(name=NAMES, nbytes=AMOUNTS)
    def charge(self, name, nbytes):
        if name not in self.limits or nbytes < 0:
            with pytest.raises(ValueError, match=r"not open|negative"):
                self.budget.charge(name, nbytes)
            return
        fits = nbytes <= self.room(name)
        assert self.budget.charge(name, nbytes) == fits
        self.charged[name] += nbytes * fits

    @rule(name=NAMES, nbytes=AMOUNTS)
    def charge_beyond(self, name, nbytes):
        if name not in self.limits or nbytes < 0:
            with pytest.raises(ValueError, match=r"not open|negative"):
                self.budget.charge_beyond(name, nbytes)
            return
        self.budget.charge_beyond(name, nbytes)
        self.charged[name] += nbytes

    @rule(name=NAMES, nbytes=AMOUNTS)
    def discharge(self, name, nbytes):
        if 0 <= nbytes <= self.charged[name]:
            self.budget.discharge(name, nbytes)
            self.charged[name] -= nbytes
        else:
            with pytest.raises(ValueError, match=r"negative|cannot discharge"):
                self.budget.discharge(name, nbytes)

    @rule(more=st.integers(-2, 20))
    def raise_limit(self, more):
        if more >= 0:
            self.budget.raise_limit(self.total + more)
            self.total += more
        else:
            with pytest.raises(ValueError, match="cannot raise"):
                self.budget.raise_limit(self.total + more)

    @invariant()
    def agrees_with_the_model(self):
        self.budget.validate()
        assert self.budget.used() == sum(self.charged.values())
        assert self.budget.free() == max(0, self.total - sum(self.charged.values()))
        assert self.budget.limit() == self.total
        for name, charged in self.charged.items():
            assert self.budget.used(name) == charged
        for name in self.limits:
            assert self.budget.free(name) == self.room(name)


Accounts.TestCase.settings = settings(
    deadline=None, max_examples=examples(100), stateful_step_count=40
)
TestAccounts = Accounts.TestCase
