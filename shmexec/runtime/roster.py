"""Workers come and go: how one is started and taken in, and how it takes its leave.

A process is started without the pool's lock, which is then taken for what it becomes
one of. For the rest the caller holds it, but for :meth:`Roster.sweep`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shmexec.memory.remains import Remains
from shmexec.memory.whole import Whole
from shmexec.runtime import reports
from shmexec.runtime.counting import Counting
from shmexec.runtime.leading import READ, Leading
from shmexec.runtime.outputs import Outputs
from shmexec.runtime.replies import Replies
from shmexec.runtime.sending import Sending
from shmexec.runtime.starting import Starting
from shmexec.runtime.tables import Tables
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler import records as r

SWEEP = 0.005
"""Seconds at a time that the dispatcher gives a dead worker's memory back."""


class Roster:
    """See the module.

    Args:
        tables: The pool's.
        whole: Stands behind its lock.
        leading: Watches what workers write, and their ends.
        outputs: What they print.
        starting: Starts them.
        sending: They are told no more, when they have ended.
        replies: What came before is handled before their end is.
        counting: Keeps what they counted.
        handle: Tells the scheduler of an event, and does what it says.
        remark: Has the program warned.
    """

    def __init__(
        self,
        tables: Tables,
        whole: Whole,
        leading: Leading,
        outputs: Outputs,
        starting: Starting,
        sending: Sending,
        replies: Replies,
        counting: Counting,
        handle: Callable[[r.Event], None],
        remark: Callable[[Warning], None],
    ) -> None:
        self._tables = tables
        self._workers = tables.workers
        self._whole = whole
        self._leading = leading
        self._outputs = outputs
        self._starting = starting
        self._sending = sending
        self._replies = replies
        self._counting = counting
        self._handle = handle
        self._remark = remark
        self._remarked: set[str] = set()  # what need not be said again
        self.by_descriptor: dict[int, WorkerHandle] = {}
        """Whose a descriptor is that the leader reads."""
        self.ended: deque[WorkerHandle] = deque()
        """Those whose process has ended, and who are to be buried."""
        self.remains: deque[Remains] = deque()
        """Memory of dead workers, to be given back to the system."""

    # -- they come ---------------------------------------------------------------------

    def start_due(self) -> None:
        """Start those that are to be started, together with other threads that do."""
        tables = self._tables
        while True:
            with tables.lock, self._whole:
                number = self._starting.take()
            if number is None:
                return
            try:
                handle = self._starting.start(number)
            except BaseException as error:
                reason, scarce = reports.not_started(error)
                with tables.lock, self._whole:
                    self._starting.under_way.discard(number)
                    self._handle(r.WorkerDead(number, reason, scarce=scarce))
                    running = len(self._workers)
                if scarce and running:
                    self._remark_once(
                        "fewer", reports.fewer(tables.options, running, reason)
                    )
                self._leading.waker.wake()  # whoever leads: the next try has its time
                if isinstance(error, Exception):
                    continue  # the machine decides
                raise
            with tables.lock, self._whole:
                self._adopt(handle)

    def _remark_once(self, what: str, text: str) -> None:
        if what not in self._remarked:
            self._remarked.add(what)
            self._remark(RuntimeWarning(text))

    def _adopt(self, handle: WorkerHandle) -> None:
        if handle.process.instead:
            self._remark_once("instead", handle.process.instead)
        self._tables.adopt(handle)
        for descriptor in (handle.replies.fileno(), handle.process.sentinel):
            self.by_descriptor[descriptor] = handle
            self._leading.poller.add(descriptor, READ)
        for descriptor in handle.output.descriptors:
            self.by_descriptor[descriptor] = handle
        self._outputs.adopt(handle.output)
        self._starting.greet(handle)
        self._starting.under_way.discard(handle.number)

    # -- they go -----------------------------------------------------------------------

    def bury_ended(self) -> None:
        """Let go of those whose processes have ended."""
        while self.ended:
            self.bury(self.ended[0])
            self.ended.popleft()

    def bury(self, handle: WorkerHandle) -> None:
        """A worker's process has ended: take its words in, then let it go."""
        if handle.number in self._workers:  # else an interrupt struck as it was closed
            self._take_leave(handle)
        remains = handle.close()
        if remains is not None and remains not in self.remains:
            self.remains.append(remains)
            self._leading.wake()  # the dispatcher sees to them, after new workers

    def _take_leave(self, handle: WorkerHandle) -> None:
        self._replies.bury(handle)
        self._counting.bury(handle)
        self._sending.forget(handle)
        for number in (
            handle.replies.fileno(),
            handle.process.sentinel,
            *handle.output.descriptors,
        ):
            self._leading.poller.remove(number)
            self.by_descriptor.pop(number, None)
        self._workers.pop(handle.number, None)

    def sweep(self) -> None:
        """Give some of dead workers' memory back; the dispatcher calls it."""
        if self.remains and not self.remains[0].sweep(SWEEP):
            self.remains.popleft()

    def sweep_all(self) -> None:
        """Give all of it back."""
        while self.remains:
            self.remains.popleft().sweep()

    def after_fork_in_child(self, keep: set[int]) -> None:
        """They are the parent's."""
        self.remains.clear()
        for handle in self._workers.values():
            handle.close_in_child(keep)
        self._workers.clear()
        self.by_descriptor.clear()
