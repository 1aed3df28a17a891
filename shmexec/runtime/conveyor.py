"""Items on their way through the stages of a pipeline: carries out what the flow decides.

What a stage returns is passed on to the next one as a parcel, unopened. It is passed on
by whoever brings news: the dispatcher of the stage whose reply came, in the callback of
its future, or the thread that enters an item or takes a result. Who waits here, for room
or for a result, is woken by those. They live as long as the pools do, and a pool that
breaks or ends fails its futures, which is news too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from shmexec.errors import PoolClosed, QueueFull, SerializationError
from shmexec.runtime.waiting import may_block
from shmexec.scheduler.flow import Begin, Command, Deliver, Entry, Flow, Flush, Stream
from shmexec.worker.stages import FlushedAll

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping
    from weakref import WeakSet

    from shmexec.runtime.backend import Feeder


class Replica(Protocol):
    """One instance of a stage, which works on one item at a time."""

    feeders: WeakSet[Feeder]
    """Who is told if this process was forked."""

    def submit(
        self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Future[Any]:
        """Call a method of the last stage; the future has what it returns."""

    def submit_sealed(self, method: str, *item: Any) -> Future[Any]:
        """The same of another one; the future has a parcel."""

    def seal(self, item: Any) -> Any:
        """A parcel of an item."""


class Station(Protocol):
    """A stage where it runs."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def flushes(self) -> bool:
        """Whether it is to be flushed at the end of a stream."""

    @property
    def replicas(self) -> Sequence[Replica]:
        """Its instances."""

    def close(self, *, wait: bool) -> None:
        """Take no more calls."""


class Ticket(NamedTuple):
    """What an entry is known by: its number, and the future of one that was submitted."""

    number: int
    future: Future[Any] | None = None


@dataclass(eq=False, slots=True)
class Reading(Stream):
    """The stream of one :meth:`Pipeline.map`.

    Attributes:
        came: What was delivered and not yet taken.
        has_end: Whether its end has entered.
        forsaken: Whether its iterator is gone: whoever can is to :meth:`Conveyor.leave`.
    """

    came: Entry | None = None
    has_end: bool = False
    forsaken: bool = False


class Conveyor:
    """See the module.

    Its condition guards the flow and the streams. Nothing is submitted, sealed or
    resolved while it is held.
    """

    def __init__(
        self,
        stations: Sequence[Station],
        buffersize: int,
        owner: object,
    ) -> None:
        self.stations = stations
        self._owner = owner  # the executor would close them if it was dropped
        self.flow = Flow(
            [len(station.replicas) for station in stations],
            [station.flushes for station in stations],
            buffersize,
        )
        # Entered as a lock: a condition's own `__enter__` could be interrupted with it held.
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.active: Reading | None = None
        self.closed = False
        self._submitted = Stream(endless=True)
        self._numbers = count()
        self._wakers: list[Callable[[], object]] = []
        self._here = threading.local()
        self._ended = False
        self._why_closed = "the pipeline is closed: make another one"
        stations[0].replicas[0].feeders.add(self)

    # -- what is decided -------------------------------------------------------------

    def advance(self) -> None:
        """Do all that can be done now; after each change, without the lock."""
        here = self._here
        if getattr(here, "advancing", False):
            return  # called back by what is done below, which goes on afterwards
        here.advancing = True
        try:
            while self._next(here):
                self._do(here.command)
                here.command = None
        except BaseException as error:
            command, here.command = here.command, None
            if command is not None:  # an interrupt of this thread hit it
                self._failed(command, error)
            raise
        finally:
            here.advancing = False
        if self.closed and not self._ended:
            self._end_if_empty()

    def _next(self, here: Any) -> bool:
        with self.lock:
            here.command = command = self.flow.next()
            if command is None:
                return False
            if isinstance(command, Deliver):
                stream = command.entry.stream
                if isinstance(stream, Reading):
                    stream.came = command.entry
            self.notify()
            return True

    def notify(self) -> None:
        """Wake who waits; with the lock."""
        self.changed.notify_all()
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def _do(self, command: Command) -> None:
        if isinstance(command, Deliver):
            _settle(command.entry)
            return
        try:
            future = self._submit(command)
        except Exception as error:  # noqa: BLE001  (it belongs to the item)
            self._done(command, None, error)
        else:
            future.add_done_callback(partial(self._came, command))

    def _failed(self, command: Command, error: BaseException) -> None:
        if isinstance(command, Deliver):
            _settle(command.entry)
        elif not command.entry.ready:
            self._done(command, None, CancelledError(f"interrupted by {error!r}"))

    def _submit(self, command: Begin | Flush) -> Future[Any]:
        replica = self.stations[command.stage].replicas[command.replica]
        sealed = command.stage + 1 < len(self.stations)
        args: tuple[Any, ...] = ()
        if isinstance(command, Begin):
            entry = command.entry
            if command.stage == 0 and not _begin(entry):
                entry.cancelled = True
                raise CancelledError
            # Taken out of the entry: it ends when it was delivered.
            args, entry.value = (entry.value,), None
        method = "flush" if isinstance(command, Flush) else "process"
        # A dispatcher's thread has other context variables than whoever sent the item.
        # A copy, since what was flushed shares one, and another thread may be in it.
        run = command.entry.context.copy().run
        future: Future[Any]
        if sealed:
            future = run(replica.submit_sealed, method, *args)
        else:
            future = run(replica.submit, method, args, {})
        return future

    def _came(self, command: Begin | Flush, future: Future[Any]) -> None:
        error: BaseException | None
        try:
            error = future.exception()
        except CancelledError as cancelled:
            error = cancelled
        if isinstance(error, FlushedAll) and isinstance(command, Flush):
            with self.lock:
                self.flow.flushed(command)
                self.notify()
        else:
            self._done(command, None if error else future.result(), error)
        self.advance()

    def _done(
        self, command: Begin | Flush, value: Any, error: BaseException | None
    ) -> None:
        if error is not None:
            what = "while it was flushed"
            if isinstance(command, Begin):
                tag = command.entry.tag
                what = (
                    "what was flushed before" if tag is None else f"item {tag.number}"
                )
            error.add_note(f"{self.where(command.stage)}, {what}")
        with self.lock:
            self.flow.done(command, value, error)
            self.notify()

    def where(self, stage: int) -> str:
        """The words for a stage."""
        name = self.stations[stage].name
        return f"stage {stage + 1} of {len(self.stations)} ({name})"

    async def news(self, has_news: Callable[[], bool]) -> None:
        """Await what `has_news` looks for."""
        import asyncio

        loop = asyncio.get_running_loop()
        while True:
            with self.lock:
                if has_news():
                    return
                came: asyncio.Future[None] = loop.create_future()
                self._wakers.append(partial(_wake, loop, came))
            await came

    # -- what goes in ----------------------------------------------------------------

    def check_open(self) -> None:
        """Raise PoolClosed if it is closed."""
        if self.closed:
            raise PoolClosed(self._why_closed)

    def reserve(self) -> bool:
        """Take a place before the first stage, if there is one; with the lock."""
        if not self.flow.has_room:
            return False
        self.flow.reserved += 1
        return True

    def enter(self, *entries: Entry) -> None:
        """Use a reserved place: for an entry and an end behind it perhaps, or for none."""
        with self.lock:
            self.flow.reserved -= 1
            for entry in entries:
                if entry.dropped:
                    continue
                entry.context = copy_context()
                if isinstance(entry.stream, Reading):
                    entry.stream.has_end |= entry.ends
                self.flow.enter(entry)
            self.notify()
        self.advance()

    def sealed(self, stream: Stream, ticket: Ticket, item: Any) -> Entry:
        """An entry of an item, or of the reason why it cannot be sent.

        Raises:
            SharedMemoryFull: If there is no room for it.
            PoolClosed, PoolBroken: If there is no first stage any more.
        """
        entry = Entry(stream, ticket)
        try:
            entry.value = self.stations[0].replicas[0].seal(item)
        except SerializationError as error:
            error.add_note(f"item {ticket.number}, before {self.where(0)}")
            entry.error = error
        return entry

    def submit(self, item: Any) -> Future[Any]:
        """See :meth:`Pipeline.submit`."""
        with self.lock:
            self.check_open()
            while not self.reserve():
                if not may_block():
                    waiting = self.flow.buffersize
                    msg = (
                        f"{waiting} items wait before the first stage, and this thread "
                        "must not (in a callback, or under an event loop): use map() "
                        "with `async for`, or a larger buffersize"
                    )
                    raise QueueFull(msg, limit=waiting)
                # Woken by whatever moves on.
                self.changed.wait()
                self.check_open()
            number = next(self._numbers)
        future: Future[Any] = Future()
        try:
            entry = self.sealed(self._submitted, Ticket(number, future), item)
        except BaseException:
            self.enter()
            raise
        self.enter(entry)
        return future

    def begin(self) -> Reading:
        """A new stream.

        Raises:
            RuntimeError: If there is one already.
        """
        active = self.active
        if active is not None and active.forsaken:
            self.leave(active)  # the finalizer's thread is about to
        with self.lock:
            self.check_open()
            if self.active is not None:
                msg = (
                    "the pipeline is being read by another iterator: read that to its "
                    "end, or close() it, before the next map()"
                )
                raise RuntimeError(msg)
            self.active = stream = Reading()
        return stream

    def leave(self, stream: Reading) -> None:
        """Nobody reads this any more. It ends here, so that the stages are flushed."""
        with self.lock:
            if stream is not self.active:
                return
            self.active = None
            self.flow.drop(stream)
            stream.came = None
            if not stream.has_end:
                stream.has_end = True
                self.flow.enter(Entry(stream, context=copy_context(), ends=True))
            self.notify()
        self.advance()

    # -- the end -----------------------------------------------------------------------

    def close(self, *, cancel: bool) -> None:
        """Take no more; what was entered goes on, but for what can be cancelled."""
        with self.lock:
            self.closed = True
            active = self.active
            waiting = self.flow.waiting if cancel else ()
            self.notify()
        for entry in waiting:
            if entry.tag is not None and entry.tag.future is not None:
                entry.tag.future.cancel()
        if active is not None:
            self.leave(active)
        self.advance()

    def wait_for_end(self) -> None:
        """Until all that was entered has left."""
        with self.lock:
            # Woken by whoever finds the flow empty.
            self.changed.wait_for(lambda: self._ended)
        for station in self.stations:
            station.close(wait=True)

    def feed_last(self, *, cancel: bool) -> None:
        """The first stage ends: which it does when there is nothing to feed it with."""

    def disown(self, error: BaseException) -> None:
        """In a forked child: the workers are the parent's, and so are the items."""
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self._here = threading.local()
        self._wakers = []
        self.closed = self._ended = True
        self._why_closed = str(error)
        if self.active is not None:
            self.active.dropped = True
            self.active = None
        for entry in self.flow.entries:
            if entry.tag is not None and entry.tag.future is not None:
                _disown(entry.tag.future, error)

    def _end_if_empty(self) -> None:
        with self.lock:
            if not self.flow.empty or self._ended:
                return
            self._ended = True
            self.notify()
        for station in self.stations:
            station.close(wait=False)


def _wake(loop: asyncio.AbstractEventLoop, news: asyncio.Future[None]) -> None:
    def tell() -> None:
        if not news.done():
            news.set_result(None)

    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(tell)


def _disown(future: Future[Any], error: BaseException) -> None:
    # Another thread may have held the condition at the fork; it does not exist here.
    future._condition = threading.Condition()  # noqa: SLF001
    future._waiters = []  # noqa: SLF001
    future._done_callbacks = []  # type: ignore[attr-defined]  # noqa: SLF001
    if not future.done():
        future.set_exception(error)


def _begin(entry: Entry) -> bool:
    """Whether an item was not cancelled; it can no longer be then."""
    future: Future[Any] | None = None if entry.tag is None else entry.tag.future
    return future is None or future.set_running_or_notify_cancel()


def _settle(entry: Entry) -> None:
    """Put what came into the future of an item that was submitted."""
    future = None if entry.tag is None else entry.tag.future
    if future is None:
        return
    with suppress(InvalidStateError):  # cancelled before it began
        if entry.error is not None:
            future.set_exception(entry.error)
        else:
            future.set_result(entry.value)
