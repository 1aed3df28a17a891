"""Budget against a model: plain sums over a list of accounts, two within a third."""

from __future__ import annotations

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shmexec.memory.budget import Budget
from tests.examples import examples

WITHIN = {"all": None, "args": None, "worker 1": "all", "worker 2": "all"}
NAMES = st.sampled_from(list(WITHIN))
UNUSED = st.dictionaries(NAMES, st.integers(0, 20))
AMOUNTS = st.integers(-2, 60)


class Accounts(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.budget = Budget(0)
        self.total = 0
        self.limits = {}
        self.charged = dict.fromkeys(WITHIN, 0)  # directly

    @initialize(limit=st.integers(0, 100))
    def start(self, limit):
        self.total = limit
        self.budget = Budget(limit)

    def parts(self, name):
        return [part for part in WITHIN if name in (part, WITHIN[part])]

    def used(self, name):
        return sum(self.charged[part] for part in self.parts(name))

    def room(self, name, unused):
        left = [self.total - sum(self.charged.values()) + sum(unused.values())]
        for each in (name, WITHIN[name]):
            limit = self.limits.get(each)
            if limit is not None:
                spare = sum(unused.get(part, 0) for part in self.parts(each))
                left.append(limit - self.used(each) + spare)
        return max(0, min(left))

    @rule(name=NAMES, limit=st.none() | AMOUNTS)
    def open(self, name, limit):
        within = WITHIN[name]
        closed = within is not None and within not in self.limits
        if name in self.limits or closed or (limit is not None and limit < 0):
            with pytest.raises(ValueError, match=r"is open|not open|negative"):
                self.budget.open(name, limit, within)
        else:
            self.budget.open(name, limit, within)
            self.limits[name] = limit

    @rule(name=NAMES)
    def close(self, name):
        if name not in self.limits:
            with pytest.raises(ValueError, match="not open"):
                self.budget.close(name)
        elif any(WITHIN[other] == name for other in self.limits):
            with pytest.raises(ValueError, match="lie in it"):
                self.budget.close(name)
        else:
            self.budget.close(name)
            del self.limits[name]

    @rule(name=NAMES, nbytes=AMOUNTS, unused=UNUSED)
    def charge(self, name, nbytes, unused):
        if name not in self.limits or nbytes < 0:
            with pytest.raises(ValueError, match=r"not open|negative"):
                self.budget.charge(name, nbytes, unused)
            return
        unused = {each: min(n, self.charged[each]) for each, n in unused.items()}
        fits = nbytes <= self.room(name, unused)
        assert self.budget.charge(name, nbytes, unused) == fits
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
        if self.charged[name] < nbytes <= self.used(name):
            return  # what was charged to its parts is to be discharged there
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
        for name in WITHIN:
            assert self.budget.used(name) == self.used(name)
        for name in self.limits:
            assert self.budget.free(name) == self.room(name, {})


Accounts.TestCase.settings = settings(
    deadline=None, max_examples=examples(100), stateful_step_count=40
)
TestAccounts = Accounts.TestCase
