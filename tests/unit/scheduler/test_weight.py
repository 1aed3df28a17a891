"""What samples of memory lead to, rule by rule."""

from __future__ import annotations

import pytest

from shmexec.scheduler import records as r
from shmexec.scheduler.machine import Machine
from shmexec.scheduler.records import WorkerState
from shmexec.scheduler.state import EXIT_WITHIN, PATIENCE
from shmexec.scheduler.weight import TRIM_EVERY, Limits

RESERVE = 1000


class Pool:
    """A machine with a clock and workers that are ready; every step is validated."""

    def __init__(self, workers=1, *, ready=None, slots=1, **limits):
        self.machine = Machine(workers, slots=slots, limits=Limits(**limits))
        self.now = 0.0
        self(r.Everyone())
        for number in list(self.machine.workers)[:ready]:
            self(r.WorkerReady(number))

    def __call__(self, event):
        commands = self.machine.handle(event, self.now)
        self.machine.validate()
        return commands

    def submit(self, *calls):
        return [command for call in calls for command in self(r.Submitted(call))]

    def weigh(self, *sizes):
        return self(r.MemorySampled(sizes))

    def left(self, free):
        return self(r.MemorySampled((), free))

    def paused(self):
        """It becomes so: idle memory is returned first."""
        assert self.left(RESERVE - 1) == [r.Trim()]
        assert self.left(RESERVE - 1) == [r.Warn("paused", None, RESERVE - 1)]
        return self

    def state(self, number):
        return self.machine.workers[number].state


# -- workers ---------------------------------------------------------------------------


def test_a_worker_over_its_limit_is_replaced_after_its_call():
    pool = Pool(after=100)
    pool.submit(1, 2)
    assert pool.weigh((1, 101)) == []
    replaced = pool(r.Finished(1, 1, ok=True))
    assert replaced == [r.Warn("retired", 1, 101), r.Exit(1), r.Spawn(2)]
    assert pool(r.WorkerReady(2)) == [r.Send(2, 2)]
    assert pool.machine.weight.retired == 1


def test_the_last_look_before_the_end_of_the_call_counts():
    pool = Pool(after=100)
    pool.submit(1, 2)
    pool.weigh((1, 500))
    pool.weigh((1, 100))
    assert pool(r.Finished(1, 1, ok=True)) == [r.Send(2, 1)]


def test_an_idle_worker_over_its_limit_is_replaced_at_once():
    pool = Pool(after=100)
    pool.submit(1)
    pool(r.Finished(1, 1, ok=True))
    assert pool.weigh((1, 101)) == [r.Warn("retired", 1, 101), r.Exit(1)]


def test_a_worker_is_not_replaced_before_its_first_call():
    """The next one would be no lighter, and no call would ever run."""
    pool = Pool(after=100)
    assert pool.weigh((1, 101)) == []
    assert pool.submit(1) == [r.Send(1, 1)]
    assert r.Exit(1) in pool(r.Finished(1, 1, ok=True))


def test_a_call_for_this_worker_alone_runs_before_it_is_replaced():
    pool = Pool(after=100)
    pool.submit(1)
    pool(r.Submitted(2, worker=1))
    pool.weigh((1, 101))
    assert pool(r.Finished(1, 1, ok=True)) == [r.Send(2, 1)]
    assert r.Exit(1) in pool(r.Finished(2, 1, ok=True))


def test_a_worker_with_several_calls_is_given_no_more_and_ends_after_the_last():
    pool = Pool(slots=2, after=100)
    pool.submit(1, 2, 3)
    pool.weigh((1, 101))
    assert pool(r.Finished(1, 1, ok=True)) == []
    ended = pool(r.Finished(2, 1, ok=True))
    assert ended[:2] == [r.Warn("retired", 1, 101), r.Exit(1)]


def test_one_with_several_calls_that_has_shrunk_is_given_more_again():
    pool = Pool(slots=2, after=100)
    pool.submit(1, 2, 3)
    pool.weigh((1, 101))
    pool(r.Finished(1, 1, ok=True))
    assert pool(r.MemorySampled(((1, 99),), 10**9)) == [r.Send(3, 1)]


def test_a_worker_over_the_hard_limit_is_killed_in_its_call():
    pool = Pool(within=200)
    pool.submit(1)
    killed = [r.Warn("killed", 1, 201), r.Kill(1, force=True)]
    assert pool.weigh((1, 201)) == killed
    assert pool.weigh((1, 300)) == [], "once"
    assert pool(r.WorkerDead(1, "gone")) == [r.Fail(1, "died", 1, "gone")]
    assert (pool.machine.weight.killed, pool.machine.deaths) == (1, 0)


def test_what_it_replied_before_it_died_counts():
    pool = Pool(within=200)
    pool.submit(1)
    pool.weigh((1, 201))
    pool(r.Finished(1, 1, ok=True))
    assert pool(r.WorkerDead(1, "gone")) == []


def test_a_call_of_a_killed_worker_may_run_again_by_its_retries():
    pool = Pool(within=200)
    pool(r.Submitted(1, retries=1))
    pool.weigh((1, 201))
    assert pool(r.WorkerDead(1, "gone")) == [r.Spawn(2)]


def test_a_call_that_is_stopped_while_its_worker_is_killed_fails_as_stopped():
    pool = Pool(within=200)
    pool.submit(1)
    pool.weigh((1, 201))
    assert pool(r.Cancelled(1, running=True)) == []
    assert pool(r.WorkerDead(1, "gone")) == [r.Fail(1, "stopped", 1, "gone")]


def test_the_hard_limit_is_one_after_calls_too():
    pool = Pool(within=200)
    pool.submit(1)
    pool(r.Finished(1, 1, ok=True))
    assert pool.weigh((1, 201)) == [r.Warn("retired", 1, 201), r.Exit(1)]
    assert pool.machine.next_tick() == EXIT_WITHIN


def test_workers_that_start_or_end_and_unknown_ones_are_left_alone():
    pool = Pool(2, ready=1, after=100, within=100)
    pool(r.Resized(1))
    assert pool.weigh((1, 500), (2, 500), (9, 500)) == []
    assert pool.state(2) is WorkerState.STARTING


# -- the machine -----------------------------------------------------------------------


def test_idle_memory_is_returned_first_now_and_then():
    pool = Pool(reserve=RESERVE)
    assert pool.left(2 * RESERVE) == []
    assert pool.left(2 * RESERVE - 1) == [r.Trim()]
    assert pool.left(2 * RESERVE - 1) == []
    pool.now += TRIM_EVERY
    assert pool.left(2 * RESERVE - 1) == [r.Trim()]


def test_a_paused_pool_begins_one_call_at_a_time():
    pool = Pool(3, reserve=RESERVE).paused()
    assert pool.submit(1, 2, 3) == [r.Send(1, 3)]
    assert pool(r.Finished(1, 3, ok=True)) == [r.Send(2, 3)]
    assert pool.machine.pending == 1


def test_no_worker_is_started_beside_the_one_that_works():
    pool = Pool(3, ready=0, reserve=RESERVE).paused()
    for number in (1, 2, 3):
        pool(r.WorkerDead(number, "gone"))
    pool = Pool(3, reserve=RESERVE).paused()
    for number in (1, 2, 3):
        pool(r.WorkerDead(number, "gone"))
    assert pool.submit(1, 2, 3) == [r.Spawn(4)]
    assert pool(r.WorkerReady(4)) == [r.Send(1, 4)]
    assert pool(r.WorkerDead(4, "gone")) == [r.Fail(1, "died", 4, "gone"), r.Spawn(5)]


def test_calls_that_run_go_on_and_the_others_wait_for_them_all():
    pool = Pool(2, reserve=RESERVE)
    pool.submit(1, 2)
    pool.paused()
    pool.submit(3)
    assert pool(r.Finished(1, 2, ok=True)) == []
    assert pool(r.Finished(2, 1, ok=True)) == [r.Send(3, 1)]


def test_when_there_is_more_again_all_go_on():
    pool = Pool(3, reserve=RESERVE).paused()
    pool.submit(1, 2, 3)
    assert pool.left(RESERVE + RESERVE // 4 - 1) == []
    assert pool.left(RESERVE + RESERVE // 4) == [r.Send(2, 2), r.Send(3, 1)]
    assert not pool.machine.paused


def test_one_more_begins_after_some_patience_since_the_first_may_wait_for_it():
    pool = Pool(3, reserve=RESERVE).paused()
    pool.submit(1, 2, 3)
    assert pool.machine.next_tick() == PATIENCE
    pool.now = PATIENCE
    assert pool(r.Tick()) == [r.Send(2, 2)]
    assert pool(r.Tick()) == []
    assert pool.machine.next_tick() == 2 * PATIENCE


def test_patience_that_finds_no_worker_is_not_asked_again_and_again():
    pool = Pool(1, reserve=RESERVE).paused()
    pool.submit(1, 2)
    pool.now = PATIENCE
    assert pool(r.Tick()) == []
    assert pool.machine.next_tick() is None
    assert pool(r.Finished(1, 1, ok=True)) == [r.Send(2, 1)]


def test_calls_for_one_worker_wait_alike():
    pool = Pool(2, reserve=RESERVE).paused()
    assert pool(r.Submitted(1, worker=1)) == [r.Send(1, 1)]
    assert pool(r.Submitted(2, worker=2)) == []
    assert pool(r.Finished(1, 1, ok=True)) == [r.Send(2, 2)]


@pytest.mark.parametrize("free", [RESERVE // 4, RESERVE // 4 - 1])
def test_calls_are_refused_below_a_quarter(free):
    pool = Pool(reserve=RESERVE).paused()
    pool.left(free)
    assert pool.machine.weight.refusing == (free < RESERVE // 4)
    pool.left(10 * RESERVE)
    assert not pool.machine.weight.refusing


def test_without_a_reserve_nothing_is_minded():
    pool = Pool(2)
    assert pool.left(0) == pool.left(0) == []
    assert pool.submit(1, 2) == [r.Send(1, 2), r.Send(2, 1)]


def test_a_closed_pool_that_is_paused_does_what_is_left():
    pool = Pool(2, reserve=RESERVE).paused()
    pool.submit(1, 2)
    pool(r.Closed())
    assert pool(r.Finished(1, 2, ok=True)) == [r.Send(2, 2)]
    assert pool(r.Finished(2, 2, ok=True)) == [r.Exit(1), r.Exit(2)]
