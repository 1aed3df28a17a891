"""The grouping of items into batches, under any order of events."""

from __future__ import annotations

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shmexec.scheduler.grouping import Batch, Grouping

SELDOM = st.integers(0, 19).map(lambda number: number == 7)


class GroupingMachine(RuleBasedStateMachine):
    """A model beside it: the items that wait, in order, with their keys and times."""

    @initialize(
        size=st.integers(1, 4),
        delay=st.sampled_from([0.0, 2.0]),
        queue=st.integers(1, 9),
    )
    def begin(self, size, delay, queue):
        self.grouping = Grouping(Batch, size, delay, queue)
        self.size, self.delay, self.queue = size, delay, queue
        self.now = 0.0
        self.waits: list[list] = []  # [batch, when it was opened, items that live]
        self.shut_ones: set[Batch] = set()
        self.running = 0

    def entry(self, batch):
        return next(each for each in self.waits if each[0] is batch)

    @rule(key=st.integers(0, 2))
    def join(self, key):
        if self.grouping.closed:
            return
        live = sum(each[2] for each in self.waits)
        assert self.grouping.has_room() == (live < self.queue)
        if live >= self.queue:
            return
        mine = [
            each
            for each in self.waits
            if each[0].key == key
            and each[0].size < self.size
            and each[0] not in self.shut_ones
        ]
        assert len(mine) <= 1
        batch = self.grouping.join(key, self.now)
        if mine:
            assert batch is mine[0][0]
            mine[0][2] += 1
        else:
            assert batch.size == 1
            self.waits.append([batch, self.now, 1])

    @rule(data=st.data())
    def cancel(self, data):
        if not self.waits:
            return
        entry = data.draw(st.sampled_from(self.waits))
        entry[2] -= 1
        assert self.grouping.cancel(entry[0]) == (not entry[2])
        if not entry[2]:
            self.waits.remove(entry)

    @rule(width=st.integers(0, 3))
    def take(self, width):
        full_queue = sum(each[2] for each in self.waits) >= self.queue
        ready = [
            entry
            for entry in self.waits
            if self.grouping.closed
            or full_queue
            or entry[0].size == self.size
            or entry[0] in self.shut_ones
            or self.now >= entry[1] + self.delay
        ]
        batch = self.grouping.take(self.now, width)
        if self.running >= width or not ready:
            assert batch is None
            return
        assert batch is ready[0][0]  # the oldest
        assert not self.grouping.cancel(batch)  # which is too late
        self.waits.remove(ready[0])
        self.running += 1

    @rule()
    def finish(self):
        if not self.running:
            return
        self.grouping.finished()
        self.running -= 1

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(width=st.integers(0, 3))
    def asked_again_when_it_is_due_something_is_ready(self, width):
        due = self.grouping.due(width)
        assert (due is None) == (self.running >= width or not self.waits)
        if due is not None:
            assert due == self.waits[0][1] + self.delay
            self.now = max(self.now, due)
            self.take(width)

    @rule(sure=SELDOM)
    def shut(self, sure):
        if sure:
            self.grouping.shut()
            self.shut_ones.update(each[0] for each in self.waits)

    @rule(sure=SELDOM)
    def close(self, sure):
        if not sure:
            return
        self.grouping.close()

    @rule(sure=SELDOM)
    def take_all(self, sure):
        if not sure:
            return
        batches = self.grouping.take_all()
        assert batches == [each[0] for each in self.waits]
        self.running += len(self.waits)
        self.waits.clear()
        assert self.grouping.closed

    @invariant()
    def holds(self):
        if hasattr(self, "grouping"):
            self.grouping.validate()
            assert self.grouping.waiting == sum(each[2] for each in self.waits)
            assert self.grouping.running == self.running


TestGrouping = GroupingMachine.TestCase
TestGrouping.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
