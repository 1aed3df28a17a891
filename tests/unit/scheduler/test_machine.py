"""Each rule of the scheduler, by example. Commands are compared whole, in order."""

from __future__ import annotations

import pytest

from shmexec.scheduler import records as r
from shmexec.scheduler.crew import BACKOFF, SCARCE_AT_MOST, SCARCE_PAUSE
from shmexec.scheduler.machine import Machine
from shmexec.scheduler.memory import KEPT
from shmexec.scheduler.records import CallState, WorkerState
from shmexec.scheduler.slots import CANCEL_WITHIN
from shmexec.scheduler.state import EXIT_WITHIN, KILL_AFTER, MUTE_AT_MOST


class Pool:
    """A machine with a clock; every step is validated."""

    def __init__(self, max_workers=1, **settings):
        self.machine = Machine(max_workers, **settings)
        self.now = 0.0

    def __call__(self, event):
        commands = self.machine.handle(event, self.now)
        self.machine.validate()
        return commands

    def submit(self, *calls, **settings):
        return [c for call in calls for c in self(r.Submitted(call, **settings))]

    def after(self, seconds):
        self.now += seconds
        return self(r.Tick())

    def with_ready(self, count):
        self(r.Everyone())
        for number in list(self.machine.workers)[:count]:
            self(r.WorkerReady(number))
        return self


# -- calls and workers meet ------------------------------------------------------------


def test_workers_start_as_calls_need_them_up_to_the_maximum():
    pool = Pool(2)
    assert pool.submit(1) == [r.Spawn(1)]
    assert pool.submit(2) == [r.Spawn(2)]
    assert pool.submit(3) == []
    assert pool(r.WorkerReady(2)) == [r.Send(1, 2)]
    assert pool(r.WorkerReady(1)) == [r.Send(2, 1)]
    assert pool(r.Finished(1, 2, ok=True)) == [r.Send(3, 2)]


def test_an_idle_worker_is_used_before_another_one_starts():
    pool = Pool(2).with_ready(1)
    assert pool.submit(1) == [r.Send(1, 1)]


def test_the_worker_that_became_idle_last_is_used_first():
    pool = Pool(3).with_ready(3)
    assert pool.submit(1) == [r.Send(1, 3)]
    pool(r.Finished(1, 3, ok=True))
    assert pool.submit(2) == [r.Send(2, 3)]


def test_higher_priority_first_and_first_in_first_out_within_one():
    pool = Pool(1)
    pool.submit(1, 2)
    pool.submit(3, 4, priority=1)
    pool.submit(5, priority=-1)
    order, commands = [], pool(r.WorkerReady(1))
    while commands:
        [send] = commands
        order.append(send.call)
        commands = pool(r.Finished(send.call, 1, ok=True))
    assert order == [3, 4, 1, 2, 5]


def test_a_worker_is_idle_before_a_follow_up_arrives():
    pool = Pool(1).with_ready(1)
    pool.submit(1)
    assert pool(r.Finished(1, 1, ok=False)) == []
    assert pool.submit(2) == [r.Send(2, 1)]
    assert pool.machine.counts[CallState.FAILED] == 1


# -- deaths ------------------------------------------------------------------------------


def test_a_call_that_had_begun_fails_with_its_worker_and_the_next_gets_a_new_one():
    pool = Pool(1).with_ready(1)
    pool.submit(1, 2)
    assert pool(r.WorkerDead(1, "killed")) == [
        r.Fail(1, "died", 1, "killed"),
        r.Spawn(2),
    ]
    assert pool(r.WorkerReady(2)) == [r.Send(2, 2)]


def test_what_a_pool_had_before_and_lacks_now_is_tried_for_a_while():
    pool = Pool(1, max_restarts=1).with_ready(1)
    pool(r.WorkerDead(1, "killed"))
    assert pool.submit(1) == [r.Spawn(2)]
    number, pause = 2, BACKOFF
    while pool.now < SCARCE_AT_MOST:
        assert pool(r.WorkerDead(number, "none left", scarce=True)) == []
        assert pool.after(0.9 * pause) == []
        number += 1
        assert pool.after(0.1 * pause + 1e-9) == [r.Spawn(number)]
        pause = min(2 * pause, SCARCE_PAUSE)
    pool(r.WorkerReady(number))
    assert pool.machine.counts[CallState.FAILED] == 0
    # It was there again: the time for the next shortage starts afresh.
    assert pool(r.WorkerDead(number, "killed", unread=True)) == [r.Spawn(number + 1)]
    assert pool(r.WorkerDead(number + 1, "none left", scarce=True)) == []
    pool.after(SCARCE_AT_MOST + 1)
    for each in (number + 2, number + 3):
        found = pool(r.WorkerDead(each, "none left", scarce=True))
    assert found[0] == r.Broke(("none left", "none left"))


def test_a_worker_that_cannot_reply_any_more_has_a_moment_to_end():
    pool = Pool(1).with_ready(1)
    pool.submit(1)
    assert pool(r.WorkerMute(1)) == []
    assert pool.machine.has_timers
    assert pool.after(MUTE_AT_MOST) == [r.Kill(1, force=True)]
    assert pool(r.WorkerDead(1, "killed")) == [r.Fail(1, "died", 1, "killed")]
    assert not pool.machine.has_timers
    assert pool.machine.deaths == 1


def test_one_with_several_calls_that_cannot_reply_any_more():
    pool = Pool(1, slots=2).with_ready(1)
    pool.submit(1, 2, timeout=60)
    pool(r.WorkerMute(1))
    assert pool.after(MUTE_AT_MOST) == [r.Kill(1, force=True)]
    assert pool.after(1) == []


def test_one_that_has_been_asked_to_end_keeps_its_time_for_that():
    pool = Pool(1).with_ready(1)
    assert pool(r.Closed(cancel_pending=False)) == [r.Exit(1)]
    assert pool(r.WorkerMute(1)) == []
    assert pool.after(MUTE_AT_MOST) == []
    assert pool(r.WorkerMute(7)) == [], "it has died meanwhile"


def test_an_unread_call_waits_again_in_its_old_place():
    pool = Pool(1).with_ready(1)
    pool.submit(1, 2)
    assert pool(r.WorkerDead(1, "killed", unread=True)) == [r.Spawn(2)]
    assert pool(r.WorkerReady(2)) == [r.Send(1, 2)]


def test_unread_calls_of_several_workers_wait_in_order():
    pool = Pool(2).with_ready(2)
    pool.submit(1, 2, 3)
    pool(r.WorkerDead(1, "killed", unread=True))  # had call 2
    pool(r.WorkerDead(2, "killed", unread=True))  # had call 1
    assert pool(r.WorkerReady(4)) == [r.Send(1, 4)]
    assert pool(r.WorkerReady(3)) == [r.Send(2, 3)]


def test_unread_costs_no_retry():
    pool = Pool(1).with_ready(1)
    pool.submit(1, retries=1)
    pool(r.WorkerDead(1, "a", unread=True))
    pool(r.WorkerReady(2))
    assert pool(r.WorkerDead(2, "b")) == [r.Spawn(3)]
    pool(r.WorkerReady(3))
    assert pool(r.WorkerDead(3, "c")) == [r.Fail(1, "died", 3, "c")]


def test_retries_are_counted():
    pool = Pool(1).with_ready(1)
    pool.submit(1, retries=2)
    for number in (1, 2):
        assert pool(r.WorkerDead(number, "x")) == [r.Spawn(number + 1)]
        assert pool(r.WorkerReady(number + 1)) == [r.Send(1, number + 1)]
    assert pool(r.WorkerDead(3, "x")) == [r.Fail(1, "died", 3, "x")]


def test_calls_that_kill_their_workers_never_break_the_pool():
    pool = Pool(1, max_restarts=1)
    for number in range(1, 8):
        assert pool.submit(number) == [r.Spawn(number)]
        pool(r.WorkerReady(number))
        [failed] = pool(r.WorkerDead(number, "segfault"))
        assert failed == r.Fail(number, "died", number, "segfault")
    assert not pool.machine.broken
    assert pool.machine.deaths == 7


def test_deaths_of_idle_workers_never_break_the_pool():
    pool = Pool(1, max_restarts=0)
    for number in range(1, 5):
        pool(r.Everyone())
        pool(r.WorkerReady(number))
        assert pool(r.WorkerDead(number, "killed")) == []
    assert pool.submit(1) == [r.Spawn(5)]


# -- starts that fail --------------------------------------------------------------------


def test_back_off_doubles_and_then_the_pool_is_broken():
    pool = Pool(1, max_restarts=3)
    pool.submit(1)
    assert pool(r.WorkerDead(1, "a")) == [r.Spawn(2)]  # the first one at once
    delay = BACKOFF
    for number in (2, 3):
        assert pool(r.WorkerDead(number, "a")) == []
        assert pool.machine.next_tick() == pytest.approx(pool.now + delay)
        assert pool.after(delay * 0.9) == []
        assert pool.after(delay * 0.1 + 1e-9) == [r.Spawn(number + 1)]
        delay *= 2
    broke, failed = pool(r.WorkerDead(4, "d"))
    assert broke == r.Broke(("a", "a", "a", "d"))
    assert failed == r.Fail(1, "broken", None, "a; a; a; d")
    assert pool.submit(2) == [r.Fail(2, "broken", None, "a; a; a; d")]
    assert pool.machine.next_tick() is None


def test_max_restarts_0_breaks_at_the_first_failed_start():
    pool = Pool(1, max_restarts=0)
    pool.submit(1)
    assert pool(r.WorkerDead(1, "a"))[0] == r.Broke(("a",))


def test_a_success_resets_the_count():
    pool = Pool(1, max_restarts=1)
    for number in (1, 3, 5):
        pool.submit(number)
        assert pool(r.WorkerDead(number, "a")) == [r.Spawn(number + 1)]
        pool(r.WorkerReady(number + 1))
        pool(r.WorkerDead(number + 1, "b"))
    assert not pool.machine.broken


def test_a_success_resets_the_delay():
    pool = Pool(3, max_restarts=9)
    pool.submit(1, 2, 3)
    pool(r.WorkerDead(1, "a"))
    pool(r.WorkerDead(2, "b"))  # from now on: wait
    assert pool(r.WorkerReady(3))[0] == r.Send(1, 3)
    pool.after(0)
    starting = [
        w for w in pool.machine.workers.values() if w.state is WorkerState.STARTING
    ]
    assert len(starting) == 2


def test_an_initializer_that_refuses_breaks_the_pool_at_once():
    pool = Pool(2)
    pool.submit(1, 2)
    assert pool(r.WorkerRefused(1, "bad")) == [
        r.Exit(1),
        r.Broke(("bad",)),
        r.Fail(1, "broken", None, "bad"),
        r.Fail(2, "broken", None, "bad"),
        r.Exit(2),
    ]


def test_a_broken_pool_lets_running_calls_end():
    pool = Pool(2).with_ready(1)
    pool.submit(1)
    pool(r.WorkerRefused(2, "bad"))
    assert pool(r.Finished(1, 1, ok=True)) == []
    assert pool.machine.counts[CallState.DONE] == 1


# -- calls that must stop ----------------------------------------------------------------


def test_a_timeout_interrupts_then_kills_and_its_slot_is_free_at_once():
    pool = Pool(1).with_ready(1)
    pool.submit(1, timeout=2.0)
    pool.submit(2)
    assert pool.machine.next_tick() == 2.0
    assert pool.after(1.9) == []
    assert pool.after(0.1) == [r.Kill(1), r.Spawn(2)]
    assert pool.after(KILL_AFTER) == [r.Kill(1, force=True)]
    assert pool(r.WorkerReady(2)) == [r.Send(2, 2)]
    assert pool(r.WorkerDead(1, "killed")) == [r.Fail(1, "timeout", 1, "killed")]
    assert pool.machine.deaths == 0


def test_the_time_counts_from_the_start_of_the_call():
    pool = Pool(1)
    pool.submit(1, timeout=1.0)
    assert pool.after(100) == []
    pool(r.WorkerReady(1))
    assert pool.machine.next_tick() == 101.0


def test_a_reply_after_the_timeout_is_not_a_result():
    pool = Pool(1).with_ready(1)
    pool.submit(1, timeout=1.0)
    pool.after(1.0)
    assert pool(r.Finished(1, 1, ok=True)) == [r.Fail(1, "timeout", 1)]
    assert pool.after(KILL_AFTER) == [r.Kill(1, force=True)]


def test_time_outs_are_not_failed_starts():
    pool = Pool(1, max_restarts=0)
    for number in range(1, 6):
        assert r.Spawn(number) in pool.submit(number, timeout=1.0)
        pool(r.WorkerReady(number))
        assert pool.after(1.0) == [r.Kill(number)]
        pool(r.WorkerDead(number, "killed"))
    assert not pool.machine.broken


def test_a_timed_out_call_is_not_retried():
    pool = Pool(1).with_ready(1)
    pool.submit(1, timeout=1.0, retries=5)
    pool.after(1.0)
    assert pool(r.WorkerDead(1, "x")) == [r.Fail(1, "timeout", 1, "x")]


def test_cancel_drops_a_pending_call():
    pool = Pool(1)
    pool.submit(1, 2)
    assert pool(r.Cancelled(1)) == [r.Drop(1)]
    assert pool(r.WorkerReady(1)) == [r.Send(2, 1)]


def test_cancel_leaves_a_running_call_unless_told_to_stop_it():
    pool = Pool(1).with_ready(1)
    pool.submit(1)
    assert pool(r.Cancelled(1)) == []
    assert pool(r.Cancelled(1, running=True)) == [r.Kill(1)]
    assert pool(r.Cancelled(1, running=True)) == []  # once is enough
    assert pool(r.WorkerDead(1, "x")) == [r.Fail(1, "stopped", 1, "x")]


def test_cancelling_what_is_over_or_unknown_does_nothing():
    pool = Pool(1).with_ready(1)
    pool.submit(1)
    pool(r.Finished(1, 1, ok=True))
    assert pool(r.Cancelled(1, running=True)) == pool(r.Cancelled(99)) == []


# -- the size of the pool ------------------------------------------------------------------


def test_max_calls_replaces_a_worker():
    pool = Pool(1, max_calls=2).with_ready(1)
    pool.submit(1, 2, 3)
    assert pool(r.Finished(1, 1, ok=True)) == [r.Send(2, 1)]
    assert pool(r.Finished(2, 1, ok=True)) == [r.Exit(1), r.Spawn(2)]
    assert pool(r.WorkerReady(2)) == [r.Send(3, 2)]
    assert pool.after(EXIT_WITHIN) == [r.Kill(1, force=True)]  # it did not end
    assert pool(r.WorkerDead(1, "x")) == []


def test_idle_workers_end_after_idle_timeout():
    pool = Pool(2, idle_timeout=5.0).with_ready(2)
    pool.now = 1.0
    pool.submit(1)  # to worker 2, the last one in
    pool(r.Finished(1, 2, ok=True))
    assert pool.machine.next_tick() == 5.0
    assert pool.after(4.0) == [r.Exit(1)]
    assert pool.after(1.0) == [r.Exit(2)]


def test_a_pool_that_shrinks_lets_idle_workers_go_now_and_busy_ones_later():
    pool = Pool(3).with_ready(3)
    pool.submit(1, 2)
    assert pool(r.Resized(1)) == [r.Exit(1)]
    assert pool(r.Finished(1, 3, ok=True)) == [r.Exit(3)]
    assert pool(r.Finished(2, 2, ok=True)) == []


def test_a_pool_that_grows_starts_workers_for_what_waits():
    pool = Pool(1).with_ready(1)
    pool.submit(1, 2, 3)
    assert pool(r.Resized(2)) == [r.Spawn(2)]


def test_everyone_starts_workers_up_to_the_maximum():
    pool = Pool(3).with_ready(0)
    assert len(pool.machine.workers) == 3
    assert pool(r.Everyone()) == []


def test_a_pinned_call_waits_for_its_worker():
    pool = Pool(2).with_ready(2)
    pool.submit(1)  # worker 2
    assert pool.submit(2, worker=2) == []
    assert pool.submit(3, worker=1) == [r.Send(3, 1)]
    assert pool(r.Finished(1, 2, ok=True)) == [r.Send(2, 2)]


def test_a_pinned_call_fails_with_its_worker():
    pool = Pool(1).with_ready(1)
    pool.submit(1)
    pool.submit(2, worker=1)
    assert pool(r.WorkerDead(1, "x")) == [
        r.Fail(1, "died", 1, "x"),
        r.Fail(2, "gone", 1, "x"),
    ]


def test_a_pinned_call_that_waits_asks_for_no_ticks():
    """Else whoever leads would spin."""
    pool = Pool(2).with_ready(2)
    pool.submit(1)  # worker 2
    pool.submit(2, worker=2)
    pool(r.Resized(3))
    pool.after(0)
    due = pool.machine.next_tick()
    assert due is None or due > pool.now


# -- the end -------------------------------------------------------------------------------


def test_close_lets_what_was_submitted_run():
    pool = Pool(1).with_ready(1)
    pool.submit(1, 2)
    assert pool(r.Closed()) == []
    assert pool(r.Finished(1, 1, ok=True)) == [r.Send(2, 1)]
    assert pool(r.Finished(2, 1, ok=True)) == [r.Exit(1)]
    assert not pool.machine.finished
    pool(r.WorkerDead(1, "exited"))
    assert pool.machine.finished


def test_close_with_cancel_fails_what_waits():
    pool = Pool(1).with_ready(1)
    pool.submit(1, 2)
    assert pool(r.Closed(cancel_pending=True)) == [r.Fail(2, "cancelled")]
    assert pool(r.Finished(1, 1, ok=True)) == [r.Exit(1)]
    assert pool.machine.counts[CallState.CANCELLED] == 1


def test_close_of_an_idle_pool_ends_its_workers():
    pool = Pool(2).with_ready(1)  # the other one still starts
    assert pool(r.Closed()) == [r.Exit(1), r.Exit(2)]
    assert pool(r.WorkerReady(2)) == []


def test_close_with_workers_that_die_still_runs_what_waits():
    pool = Pool(1).with_ready(1)
    pool.submit(1, 2)
    pool(r.Closed())
    assert pool(r.WorkerDead(1, "x")) == [r.Fail(1, "died", 1, "x"), r.Spawn(2)]


# -- what cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        r.Submitted(1),
        r.Submitted(9, worker=7),
        r.WorkerReady(1),
        r.WorkerReady(7),
        r.WorkerRefused(7, "x"),
        r.WorkerDead(7, "x"),
        r.Finished(1, 2, ok=True),
        r.Finished(2, 1, ok=True),
    ],
    ids=repr,
)
def test_an_illegal_event_raises(event):
    pool = Pool(1).with_ready(1)
    pool.submit(1)
    with pytest.raises(r.IllegalEvent):
        pool(event)
    assert pool(r.Finished(1, 1, ok=True)) == []


@pytest.mark.parametrize("busy", [False, True])
def test_only_a_worker_that_starts_can_refuse(busy):
    pool = Pool(1).with_ready(1)
    if busy:
        pool.submit(1)
    with pytest.raises(r.IllegalEvent):
        pool(r.WorkerRefused(1, "x"))
    assert not pool.machine.broken


def test_nothing_is_submitted_to_a_closed_pool():
    pool = Pool(1)
    pool(r.Closed())
    with pytest.raises(r.IllegalEvent):
        pool.submit(1)


def test_a_story():
    pool = Pool(1)
    pool.submit(1, retries=1)
    pool.now = 1.5
    pool(r.WorkerReady(1))
    pool.now = 2.0
    pool(r.WorkerDead(1, "x"))
    assert pool.machine.story(1) == [
        (0.0, "submitted", None),
        (1.5, "sent", 1),
        (2.0, "waits again: x; it runs again", None),
    ]
    assert pool.machine.story(2) is None


def test_the_story_of_a_finished_call():
    pool = Pool(1).with_ready(1)
    pool.submit(1)
    pool.now = 3.0
    pool(r.Finished(1, 1, ok=True, seconds=2.5))
    assert pool.machine.story(1) == [
        (0.0, "submitted", None),
        (0.0, "sent", 1),
        (3.0, "done, after 2.500000 s in the worker", None),
    ]


def test_the_story_of_a_call_that_timed_out():
    pool = Pool(1).with_ready(1)
    pool.submit(1, timeout=1.0)
    pool.now = 1.0
    pool(r.Tick())
    pool.now = 1.25
    pool(r.WorkerDead(1, "killed"))
    assert pool.machine.story(1)[2:] == [
        (1.0, "is to stop: its time is up", 1),
        (1.25, "failed: timeout: killed", 1),
    ]


def test_a_cancelled_call_has_a_story():
    pool = Pool(1)
    pool.submit(1)
    pool(r.Cancelled(1))
    assert [what for _, what, _ in pool.machine.story(1)] == ["submitted", "cancelled"]


def test_stories_are_kept_of_so_many_calls_and_no_more():
    pool = Pool(1).with_ready(1)
    pool.submit(1)
    pool(r.Finished(1, 1, ok=False))
    for number in range(2, KEPT + 3):
        pool.submit(number)
        pool(r.Finished(number, 1, ok=True))
    assert pool.machine.story(1), "what failed is kept apart"
    assert pool.machine.story(2) is None
    assert pool.machine.story(3)


def test_what_waits_for_longest():
    pool = Pool(1)
    assert pool.machine.oldest_pending() is None
    for number in (1, 2, 3):
        pool.now = float(number)
        pool.submit(number, priority=number)
    assert pool.machine.oldest_pending().id == 1
    pool(r.WorkerReady(1))
    assert pool.machine.oldest_pending().id == 1
    assert pool.machine.pending_priorities() == [1, 2]


# -- workers that hold something -------------------------------------------------------


def test_a_start_that_takes_too_long_breaks_the_pool():
    pool = Pool(1, start_timeout=1.0, exclusive=True)
    assert pool.submit(1) == [r.Spawn(1)]
    pool.now = 5.0  # until it begins no time counts
    assert pool(r.WorkerBegan(1)) == []
    assert pool.after(0.9) == []
    assert pool.after(0.1) == [r.Kill(1)]
    why = "it took longer than its time limit of 1 s: interrupted"
    assert pool(r.WorkerRefused(1, "interrupted")) == [
        r.Broke((why,)),
        r.Fail(1, "broken", None, why),
    ]


def test_also_if_it_must_be_killed():
    pool = Pool(1, start_timeout=1.0, exclusive=True)
    pool.submit(1)
    pool(r.WorkerBegan(1))
    assert pool.after(1.0) == [r.Kill(1)]
    assert pool.after(KILL_AFTER) == [r.Kill(1, force=True)]
    broke, failed = pool(r.WorkerDead(1, "killed"))
    assert broke.reasons[0].endswith("1 s: killed")
    assert failed.why == "broken"


def test_a_start_in_time_limits_no_call():
    pool = Pool(1, start_timeout=1.0, exclusive=True)
    pool.submit(1)
    pool(r.WorkerBegan(1))
    assert pool(r.WorkerReady(1)) == [r.Send(1, 1)]
    assert pool.after(9.0) == []


def test_an_exclusive_worker_is_replaced_only_when_it_is_gone():
    pool = Pool(1, exclusive=True).with_ready(1)
    pool.submit(1, timeout=1.0)
    pool.submit(2)
    assert pool.after(1.0) == [r.Kill(1)]
    # It came back: it may clean up, and is killed only if that takes long.
    assert pool(r.Finished(1, 1, ok=False)) == [r.Fail(1, "timeout", 1), r.Exit(1)]
    assert pool.after(KILL_AFTER) == []
    assert pool.after(EXIT_WITHIN) == [r.Kill(1, force=True)]
    assert pool(r.WorkerDead(1, "killed")) == [r.Spawn(2)]


# -- several calls in a worker -----------------------------------------------------------


def test_calls_share_a_worker_as_far_as_it_has_slots():
    pool = Pool(1, slots=2).with_ready(1)
    assert pool.submit(1, 2, 3) == [r.Send(1, 1), r.Send(2, 1)]
    assert pool(r.Finished(2, 1, ok=True)) == [r.Send(3, 1)]
    assert pool(r.Finished(1, 1, ok=True)) == []
    assert pool(r.Finished(3, 1, ok=True)) == []
    assert pool.machine.workers[1].state is WorkerState.IDLE


def test_each_of_them_has_its_own_time_out_and_is_asked_to_end():
    pool = Pool(1, slots=3).with_ready(1)
    pool.submit(1, timeout=2.0)
    pool.submit(2, timeout=1.0)
    pool.submit(3)
    assert pool.after(1.0) == [r.Interrupt(2, 1)]
    failed = r.Fail(2, "timeout", 1, gently=True)
    assert pool(r.Finished(2, 1, ok=False)) == [failed]
    assert pool.after(1.0) == [r.Interrupt(1, 1)]
    assert pool(r.Finished(3, 1, ok=True)) == []


def test_one_that_does_not_end_costs_the_worker_and_all_it_had_begun():
    pool = Pool(1, slots=3, exclusive=True).with_ready(1)
    pool.submit(1, 2, 3, 4)
    assert pool(r.Cancelled(2, running=True)) == [r.Interrupt(2, 1)]
    assert pool(r.Cancelled(2, running=True)) == []
    assert pool.after(CANCEL_WITHIN) == [r.Kill(1)]
    assert pool(r.Finished(1, 1, ok=True)) == []
    assert pool.after(KILL_AFTER) == [r.Kill(1, force=True)]
    stopped, died, spawned = pool(r.WorkerDead(1, "gone", begun=3))
    assert (stopped.call, stopped.why) == (2, "stopped")
    assert (died.call, died.why) == (3, "died")
    assert (
        died.detail
        == "gone (it was stopped, since call 2 was cancelled and did not end)"
    )
    assert spawned == r.Spawn(2)
    assert pool(r.WorkerReady(2)) == [r.Send(4, 2)]


def test_what_was_sent_but_not_begun_when_it_died_waits_again():
    pool = Pool(1, slots=3).with_ready(1)
    pool.submit(1, 2, 3)
    [died, spawned] = pool(r.WorkerDead(1, "gone", begun=1))
    assert (died.call, spawned) == (1, r.Spawn(2))
    assert pool(r.WorkerReady(2)) == [r.Send(2, 2), r.Send(3, 2)]


def test_what_was_sent_before_one_that_has_finished_had_begun():
    pool = Pool(1, slots=3).with_ready(1)
    pool.submit(1, 2, 3)
    pool(r.Finished(2, 1, ok=True))
    # The mark is that of a call which is done.
    [died, _] = pool(r.WorkerDead(1, "gone", begun=2))
    assert died.call == 1


def test_one_that_was_never_sent_says_nothing_of_those_before():
    pool = Pool(1, slots=3).with_ready(1)
    pool.submit(1, 2)
    pool(r.Finished(2, 1, ok=False, begun=False))
    assert pool(r.WorkerDead(1, "gone")) == [r.Spawn(2)]
