"""Samples of memory in a model world of the scheduler; for its property tests."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from shmexec.scheduler import records as r
from shmexec.scheduler.state import PATIENCE
from shmexec.scheduler.weight import Limits

limits = st.builds(
    Limits,
    after=st.none() | st.just(100),
    within=st.none() | st.just(200),
    reserve=st.sampled_from([0, 1000]),
)


class Weighing(RuleBasedStateMachine):
    """Has ``machine``, ``now``, ``calls``, ``processes`` and ``handle(event)``.

    Those that make it call :meth:`note_begin` as a call is sent.
    """

    sizes = None
    free = None
    quiet_since = None
    limits = Limits()

    @rule(
        sizes=st.lists(st.sampled_from([50, 50, 150, 250]), max_size=3),
        free=st.none() | st.sampled_from([100_000, 100_000, 1500, 900, 100]),
    )
    def sample(self, sizes, free):
        # In the order in which they are known; some of them may be gone.
        numbers = [*self.processes, 10_000][: len(sizes)]
        was_paused = self.machine.paused
        self.sizes = dict(zip(numbers, sizes, strict=False))
        self.free = free
        if not was_paused:
            self.quiet_since = self.now
        self.handle(r.MemorySampled(tuple(self.sizes.items()), free))
        if free is not None and self.limits.reserve and free > 1.25 * 1000:
            assert not self.machine.paused
        if not was_paused and self.machine.paused:
            assert free < self.limits.reserve
        if not self.machine.paused:
            assert not self.machine.weight.refusing

    def do_trim(self, _command, _event):
        assert self.free < 2 * self.limits.reserve

    def do_warn(self, command, event):
        if command.why == "paused":
            assert self.free == command.nbytes < self.limits.reserve
            return
        assert command.worker in self.processes
        limits = {"retired": self.lower_limit(), "killed": self.limits.within}
        assert command.nbytes > limits[command.why]
        if command.why == "killed":
            assert event.workers

    def lower_limit(self):
        return min(n for n in (self.limits.after, self.limits.within) if n is not None)

    def note_begin(self, *numbers):
        """A call begins, or a pack: in a paused pool one at a time, or after patience."""
        if self.machine.paused:
            running = [
                number
                for number, call in self.machine.calls.items()
                if call.state is r.CallState.RUNNING and number not in numbers
            ]
            assert not running or self.now >= self.quiet_since + PATIENCE
            self.quiet_since = self.now
