"""Who reads replies: the thread that waits for one, else the dispatcher.

The *leader* holds ``lead`` and polls. It reads every reply that comes, whosever it is.
A thread in ``result()`` leads if it can; then its reply needs no hand-over between
threads. The dispatcher, a thread of the pool, leads in all other cases:

- while nothing is going on it leads and sleeps in the poll, without a time-out;
- a thread that wants to lead claims: it wakes the dispatcher, which steps back and then
  looks each millisecond whether anybody leads. If nobody did for one interval, it
  leads again. While one thread leads for longer, it waits to be rung for instead;
- a thread that submits very many calls at once looks in between at what has come, so
  that the workers go on: it leads for that moment only, and resolves what nobody waits
  for and what has no callbacks. The dispatcher does the rest;
- while futures with callbacks are unresolved, or several threads wait, it does not step
  back: the reply may be for none of those who could lead.

Every wait and its waker: the leader's poll, by a reply, a death (the kernel), the next
deadline of the scheduler, or the waker. A thread that waits for a future it does not
lead for, by whoever leads; when a leader leaves it wakes the dispatcher if others wait,
or one of them to lead while the dispatcher is in user code.
Workers are started by the dispatcher, whom the leader rings for that; while it is in a
callback, which may itself wait for a call, by the leader. The dispatcher does not die:
what goes wrong in it breaks the pool, which resolves all. Its waits end once more when
the pool is :data:`UNSEEN` old, which has it appear to other programs.

Three rules make an interrupt at any bytecode harmless: bytes go from the kernel to the
inbox within one C call; the inbox is peeked, handled, then popped; futures are resolved
after ``lead`` is released, by number, so that doing it twice is harmless.
"""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shmexec import limits
from shmexec.deadline import Deadline
from shmexec.wire.channel import Waker

if TYPE_CHECKING:
    from shmexec.runtime.attended import Attended
    from shmexec.runtime.futures import Future

NAP = 0.001
"""Seconds that something may stay unread while nobody waits for it."""

CLAIM = 0.005
"""Seconds that a thread waits for the dispatcher to step back."""

PATIENCE = 3
"""Naps in a row under the same leader before the dispatcher waits to be rung for."""

GLANCE = 0.0001
"""Seconds that a thread which submits many calls waits to look at what has come."""

LONG_NAP = 1.0
"""Seconds after which it looks all the same."""

UNSEEN = 0.1
"""Seconds after which other programs see the pool: one that is over by then need not pay
for it, which takes a thread."""

READ, WRITE = select.POLLIN, select.POLLOUT


class Poller:
    """epoll where there is one, else poll; may be changed while another thread polls."""

    def __init__(self) -> None:
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._wanted: dict[int, int] = {}

    def add(self, descriptor: int, events: int = READ) -> None:
        """Watch a descriptor, or change what is watched for."""
        known = descriptor in self._wanted
        self._wanted[descriptor] = events
        if self._epoll is None:
            return
        if known:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Watch it no more; before it is closed."""
        if self._wanted.pop(descriptor, None) is not None and self._epoll is not None:
            self._epoll.unregister(descriptor)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Descriptors with events; at once if there are any."""
        if self._epoll is not None:
            return self._epoll.poll(timeout)
        poll = select.poll()
        for descriptor, events in list(self._wanted.items()):
            poll.register(descriptor, events)
        return poll.poll(None if timeout is None else timeout * 1000)

    def close(self) -> None:
        """Close it."""
        if self._epoll is not None:
            self._epoll.close()


class Leading:
    """See the module."""

    def __init__(self, pool: Attended) -> None:
        self._pool = pool
        self.poller = Poller()
        self.waker = Waker()
        self.poller.add(self.waker.fileno)
        self._lead = threading.Lock()
        self._bell = _Bell()
        self._claimed = False  # set by who wants to lead, cleared by the dispatcher
        self._followers: list[
            Future[Any]
        ] = []  # what threads wait for that do not lead
        self._callbacks = False
        self._dispatching = False  # the dispatcher leads
        self._parked = False  # the dispatcher waits for the bell alone
        self._led = 0  # how often a thread has led; tells the dispatcher of activity
        self._led_for: Future[Any] | None = None  # what the thread that leads waits for
        self._asleep = False  # the dispatcher leads and there is nothing to do
        self._resolving = False  # the dispatcher is in user code, maybe for long
        self._thread: threading.Thread | None = None
        self._unseen: Deadline | None = (
            None  # until when no other program sees the pool
        )

    # -- threads that wait ---------------------------------------------------------------

    def drive(self, future: Future[Any], deadline: Deadline) -> None:
        """Lead until the future is done or the deadline passes, if leading is possible.

        Else wait for those who lead.
        """
        while not future.settled and not deadline.passed():
            if not self._lead_for(future, deadline):
                if self._may_claim():
                    continue
                self._follow(future, deadline)

    def _lead_for(self, future: Future[Any], deadline: Deadline) -> bool:
        """Lead until something is to be resolved; whether leading was possible."""
        pool = self._pool
        got: list[bool] = []
        try:
            # One C call, so that an interrupt cannot fall between lock and note.
            got.extend(map(self._lead.acquire, (False,)))
            if not got[0]:
                return False
            self._led += 1
            self._led_for = future
            while not (future.settled or pool.has_resolutions() or pool.stands.torn):
                if pool.has_spawns():
                    if self._resolving:
                        break
                    self._bell.ring()
                if not self._read(deadline.remaining()) and deadline.passed():
                    break
        finally:
            if got and got[0]:
                self._led_for = None
                self._lead.release()
        self._nudge()
        if self._resolving and pool.has_spawns():
            # The dispatcher is in a callback, which may be the one that waits here.
            _uninterrupted(pool.start_workers)
        pool.resolve()
        if self._parked or self._followers or self._callbacks or pool.has_work():
            self._bell.ring()
        return True

    def leads_for(self, number: int) -> bool:
        """Whether a thread leads that waits for this call, and would not see its end.

        Asked after the end was noted in the future, which it looks at after it has said
        what it waits for.
        """
        future = self._led_for
        return future is not None and future._call == number  # noqa: SLF001

    def glance(self) -> None:
        """Take in what has come, in a thread that does not wait."""
        pool = self._pool
        got: list[bool] = []
        try:
            # Whoever leads may just be waiting for the interpreter.
            got.extend(map(self._lead.acquire, (True,), (GLANCE,)))
            # A pool that has ended has closed what would be polled.
            if got[0] and not pool.finished():
                self._led += 1
                self._read(0.0)
        finally:
            if got and got[0]:
                self._lead.release()
        self._nudge()
        pool.resolve_unwatched()
        if pool.has_resolutions() or pool.has_work():
            self._bell.ring()

    def _may_claim(self) -> bool:
        """Have the dispatcher step back, if it leads and nothing else needs it."""
        if self._followers or self._callbacks or not self._dispatching:
            return False
        self._claimed = True
        self.waker.wake()
        got: list[bool] = []
        try:
            got.extend(map(self._lead.acquire, (True,), (CLAIM,)))
        finally:
            if got and got[0]:
                self._lead.release()
        return got[0]

    def _follow(self, future: Future[Any], deadline: Deadline) -> None:
        self._pool.outputs.step_aside()
        self._followers.append(future)
        try:
            self._bell.ring()
            condition = future.make_condition()
            # Not `with condition`: an interrupt in its `__enter__` would leave it held.
            with future._lock:  # noqa: SLF001
                # Whoever leaves releases the lock, then looks for followers; this one
                # is among them, then looks at the lock.
                if not future.settled and not self._leaderless():
                    condition.wait(deadline.remaining())
        finally:
            self._followers.remove(future)
            self._nudge()  # this one was perhaps, and does not lead

    def _leaderless(self) -> bool:
        """Whether nobody leads, and the dispatcher cannot: it is in user code."""
        return self._resolving and not self._lead.locked()

    def _nudge(self) -> None:
        """Have a thread that follows try to lead, if nobody else does."""
        if self._followers and self._leaderless():
            for future in self._followers[:1]:
                condition = future.make_condition()
                with future._lock:  # noqa: SLF001
                    condition.notify_all()

    def expect_callback(self) -> None:
        """A future that may have no waiter needs its callback called."""
        if not self._callbacks:
            self._callbacks = True
            if not self._dispatching:
                self._bell.ring()

    # -- reading ---------------------------------------------------------------------------

    def _read(self, timeout: float | None) -> bool:
        """Poll once and take in what is there; the caller holds ``lead``."""
        pool = self._pool
        tick = pool.seconds_to_tick()
        if tick is not None and (timeout is None or tick < timeout):
            timeout = tick
        if pool.has_unread():
            timeout = 0.0  # an interrupt struck between reading it and handling it
        events = self.poller.poll(timeout)
        for descriptor, event in events:
            if descriptor == self.waker.fileno:
                self.waker.clear()
            else:
                pool.take(descriptor, event)
        # If something came before it was time, the next time tells.
        pool.process(ticking=tick is not None and (not events or tick <= 0.0))
        return bool(events)

    # -- the dispatcher ----------------------------------------------------------------------

    def start(self) -> None:
        """Start the dispatcher, once."""
        if self._thread is None:
            thread = threading.Thread(
                target=self._run,
                name=f"{self._pool.options.name}-dispatcher",
                daemon=True,
            )
            self._thread = thread
            self._unseen = Deadline(UNSEEN)
            self._pool.host.add_poke(self.poke)
            try:
                thread.start()
            except RuntimeError as error:
                self._thread = None
                self._pool.host.remove_poke(self.poke)
                if "can't start" not in str(error):
                    raise  # the interpreter is ending
                why = limits.no_process("no thread for the pool").strerror
                raise RuntimeError(why) from error

    @property
    def started(self) -> bool:
        """Whether the dispatcher was started."""
        return self._thread is not None

    def poke(self) -> None:
        """Wake the dispatcher if it sleeps; safe in a finalizer."""
        if self._asleep:
            self.waker.wake()

    def wake(self) -> None:
        """Have whoever leads look around, and the dispatcher take its share."""
        self.waker.wake()
        self._bell.ring()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the dispatcher to end, unless this is it."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def close(self) -> None:
        """Close the descriptors; when the dispatcher has ended."""
        self.poller.close()
        self.waker.close()

    def _run(self) -> None:
        try:
            while not self._pool.finished():
                self._pool.work()
                self._appear()
                if self._lead.acquire(blocking=False):
                    self._dispatch()
                else:
                    self._stand_by()
                self._resolve()
        except BaseException as error:  # noqa: BLE001  (nobody else is told)
            self._pool.dispatcher_failed(error)
        finally:
            self._pool.ended()

    def _resolve(self) -> None:
        self._resolving = True
        self._nudge()
        self._pool.resolve()
        self._resolving = False

    def _dispatch(self) -> None:
        """Lead until somebody else wants to, or this thread is needed elsewhere."""
        pool = self._pool
        stepping_back = False
        try:
            self._dispatching = True
            if pool.has_remains():
                self._read(0.0)  # giving them back takes long: nothing waits for that
            while not (pool.has_work() or pool.has_resolutions() or pool.finished()):
                if self._claimed:
                    self._claimed = False
                    stepping_back = not self._callbacks
                    break
                idle = not pool.unresolved()
                if idle:
                    self._callbacks = False
                self._asleep = idle
                left = pool.seconds_to_trim() if idle else None
                unseen = self._unseen
                self._read(left if unseen is None else unseen.within(left))
                self._asleep = False
                if unseen is not None and unseen.passed():
                    break
        finally:
            self._asleep = self._dispatching = False
            self._lead.release()
        if stepping_back:
            self._stand_by()

    def _appear(self) -> None:
        """Let them see it, when it has lived for so long that there may be a need."""
        if self._unseen is not None and self._unseen.passed():
            self._unseen = None
            self._pool.appear()

    def _stand_by(self) -> None:
        """Another thread leads: return when none has for a while, or on a need."""
        quiet = 0
        while True:
            led = self._led
            # One thread that leads for long is not looked at: it rings when it leaves.
            self._parked = quiet > PATIENCE
            nap = LONG_NAP if self._parked else NAP
            unseen = self._unseen
            rung = self._bell.wait(nap if unseen is None else unseen.within(nap))
            if self._parked:
                self._parked, quiet = False, 0
                self._appear()
            pool = self._pool
            if pool.has_work() or (rung and (self._followers or self._callbacks)):
                return
            if rung and pool.has_resolutions():
                self._resolve()
            if led != self._led:
                quiet = 0
            elif not self._lead.locked():
                return
            else:
                quiet += 1


def _uninterrupted(start: Callable[[], None]) -> None:
    """Call it where no Ctrl-C strikes: a process would be nobody's."""
    if threading.current_thread() is not threading.main_thread():
        start()
        return
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()  # it only starts processes


class _Bell:
    """Wakes one thread; a ring that nobody waits for is kept, a second one is not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake the thread that waits, or the next one that does."""
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def wait(self, timeout: float) -> bool:
        """Wait for a ring; whether there was one."""
        return self._lock.acquire(timeout=timeout)
