"""Several calls at once: the worker's loop inside of its event loop.

For workers whose calls are mostly coroutines that wait for something. A call begins as it
is read, in the order in which calls were sent; a coroutine or an asynchronous generator
then goes on as a task of its own, anything else runs here and now, and holds up the
others for as long.

What a task waits for: what its coroutine awaits; in a stream, credit from the parent,
which gives some as items are taken, or says that nobody wants more. The parent's end
ends this process (see the lifeline).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from types import CoroutineType, coroutine
from typing import Any

from shmexec.deadline import now
from shmexec.wire.messages import Kind, Message
from shmexec.wire.pickling import Pickled
from shmexec.worker import loop as event_loop
from shmexec.worker.calls import Called, Calls
from shmexec.worker.failures import dump_as, dump_error
from shmexec.worker.line import Line
from shmexec.worker.memory import WorkerMemory
from shmexec.worker.notes import note_read_only
from shmexec.worker.replies import Replies
from shmexec.worker.stacks import Interrupted
from shmexec.worker.steps import END, Steps

Outcome = tuple[Kind, Pickled]

_call: ContextVar[int] = ContextVar("shmexec_call", default=0)


def running_call() -> int | None:
    """The number of the call that this code belongs to."""
    return _call.get() or None


class Flight:
    """See the module.

    Args:
        line: To the parent.
        memory: The worker's.
        calls: Runs user code.
        replies: Sends what comes of it.
        handle: Takes the messages that are about no call.
    """

    def __init__(
        self,
        line: Line,
        memory: WorkerMemory,
        calls: Calls,
        replies: Replies,
        handle: Callable[[Message], None],
    ) -> None:
        self._line = line
        self._memory = memory
        self._calls = calls
        self._replies = replies
        self._handle = handle
        self._loop = event_loop.own()
        self._pid = os.getpid()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._credits: dict[int, _Credit] = {}
        self._unwanted: set[int] = set()  # cancelled before they were begun
        self._error: BaseException | None = None

    def serve(self) -> None:
        """Serve until told to end."""
        self._loop.add_reader(self._line.requests.fileno(), self._look)
        self._loop.call_soon(self._look)  # some may be there already
        try:
            self._loop.run_forever()
        finally:
            self._loop.remove_reader(self._line.requests.fileno())
        if self._error is not None:
            raise self._error

    def _look(self) -> None:
        """Take in what has come; begin the calls among it."""
        waiting = self._line.postponed
        try:
            while True:
                # Before each: it may tell that the next call is not wanted any more.
                self._take_in()
                if not waiting:
                    return
                message = waiting.popleft()
                if message.kind is Kind.EXIT:
                    self._loop.stop()
                    return
                if message.kind is Kind.CALL:
                    self._memory.free(message.leases)
                    self._begin(message)
                elif not self._is_about_call(message):
                    self._handle(message)
        except BaseException as error:  # noqa: BLE001  (nobody above would see it)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._loop.stop()

    def _take_in(self) -> None:
        while (message := self._line.receive_nowait()) is not None:
            if not self._is_about_call(message):
                self._line.postpone(message)

    def _is_about_call(self, message: Message) -> bool:
        """Whether it was about a call that has begun, or never shall; if so, it is done."""
        if message.kind is Kind.CANCEL:
            self._cancel(message.request)
            return True
        credit = self._credits.get(message.request)
        if message.kind is not Kind.CREDIT or credit is None:
            return False  # if the stream has not begun, its turn comes after that
        self._memory.free(message.leases)
        credit.give(message.number)
        return True

    def _cancel(self, request: int) -> None:
        task = self._tasks.get(request)
        if task is not None:
            # Not at once: it must have begun, to be able to reply.
            self._loop.call_soon(task.cancel)
        elif any(each.request == request for each in self._line.postponed):
            self._unwanted.add(request)

    # -- calls -------------------------------------------------------------------------

    def _begin(self, message: Message) -> None:
        request = message.request
        started = self._calls.begin(message)
        if request in self._unwanted:
            self._unwanted.remove(request)
            self._reply(message, dump_error(asyncio.CancelledError()), started)
            return
        outcome = self._start(message, started)
        if outcome is not None:
            self._reply(message, outcome, started)

    def _start(self, message: Message, started: float) -> Outcome | None:
        """Call the function; None if it goes on in a task."""
        called: Called | None = None
        token = _call.set(message.request)  # tasks that begin here have it, too
        try:
            fn, args, kwargs = called = self._calls.unpack(message)
            made = self._calls.run(fn, args, kwargs, births=True, awaits=False)
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is the reply)
            if called:
                note_read_only(error, *called)
            return self._failed(error)
        finally:
            _call.reset(token)
        if message.number:
            self._credits[message.request] = _Credit(message.number)
        elif type(made) is not CoroutineType:
            return dump_as(made, "result")
        going = self._go_on(message, made, called)
        name = f"call {message.request}"
        task = self._loop.create_task(self._finish(message, going, started), name=name)
        self._tasks[message.request] = task
        return None

    async def _finish(
        self,
        message: Message,
        going: Coroutine[Any, Any, Outcome | None],
        started: float,
    ) -> None:
        """A call's task: see it to its end, and reply."""
        try:
            outcome = await going
            # With its frame went the arguments.
            self._tasks.pop(message.request, None)
            self._credits.pop(message.request, None)
            if outcome is not None:
                self._reply(message, outcome, started)
        except BaseException as error:  # noqa: BLE001  (a bug, or the parent is gone)
            self._fail(error)

    async def _go_on(
        self,
        message: Message,
        made: Any,
        called: Called,
    ) -> Outcome | None:
        # In this task's own context: arrays of other tasks are none of this call's.
        before = self._memory.arena.enter()
        _call.set(message.request)
        try:
            if message.number:
                return await self._stream(message, made)
            result = await _guarded(made, self._calls.note_running)
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is the reply)
            note_read_only(error, *called)
            return self._failed(error)
        finally:
            self._memory.arena.leave(before)
        return dump_as(result, "result")

    def _failed(self, error: BaseException) -> Outcome:
        """The reply to a call that raised."""
        if isinstance(error, Interrupted):
            # The parent has no use for that of a call that it wants to stop; so this is
            # of one that was only in its way.
            from shmexec.errors import WorkerDied

            error = WorkerDied(
                f"the worker (pid {self._pid}) was stopped: a call beside this one was "
                "cancelled and did not end, perhaps since this one held it up. The "
                "actor is rebuilt from its arguments: its state starts afresh",
                pid=self._pid,
            ).with_traceback(error.__traceback__)
        return dump_error(error)

    def _reply(self, message: Message, outcome: Outcome, started: float = 0.0) -> Kind:
        """Send it; an item of a stream does not say when its call has started."""
        if os.getpid() != self._pid:
            os._exit(0)  # user code forked, and its child came back from the call
        seconds = now() - started if started else 0.0
        kind = self._replies.reply(message, *outcome, seconds, started)
        if self._line.postponed:
            # Replying may wait for room; what came meanwhile would not wake anybody.
            self._loop.call_soon(self._look)
        return kind

    # -- streams -----------------------------------------------------------------------

    async def _stream(self, message: Message, made: Any) -> Outcome | None:
        """Send what a call yields; how it ended, None if that has been said."""
        note_running = self._calls.note_running
        if type(made) is CoroutineType:
            made = await _guarded(made, note_running)
        steps = Steps(made)
        del made
        try:
            return await self._send_items(message, steps)
        except BaseException:
            # Cancelled, or the generator raised; the iterator itself may be sound.
            await _guarded(steps.aclose(), note_running)
            raise

    async def _send_items(self, message: Message, steps: Steps) -> Outcome | None:
        credit = self._credits[message.request]
        while await credit.take():
            item = await _guarded(steps.astep(), self._calls.note_running)
            if item is END:
                return dump_as(None, "result")
            outcome = dump_as(item, "item")
            del item
            if outcome[0] is Kind.ERROR:
                await _guarded(steps.aclose(), self._calls.note_running)
                return outcome
            sent = self._reply(message, (Kind.ITEM, outcome[1]))
            if sent is Kind.ERROR:  # there was no room for it: that was the reply
                await _guarded(steps.aclose(), self._calls.note_running)
                return None
            await asyncio.sleep(0)  # a plain generator lets others have their turn
        await _guarded(steps.aclose(), self._calls.note_running)
        return dump_as(False, "result")  # not to its end


class _Credit:
    """How many items a stream may still send."""

    def __init__(self, number: int) -> None:
        self._number: int | None = number  # None: nobody wants more
        self._more = asyncio.Event()

    def give(self, number: int) -> None:
        """So many more; 0 closes."""
        if self._number is not None:
            self._number = self._number + number if number else None
        self._more.set()

    async def take(self) -> bool:
        """Use one; waits for it. False if nobody wants more."""
        while self._number == 0:
            self._more.clear()
            await self._more.wait()
        if self._number is None:
            return False
        self._number -= 1
        return True


@coroutine
def _guarded(
    user: Coroutine[Any, Any, Any], note_running: Callable[[bool], None]
) -> Generator[Any, Any, Any]:
    """Drive a coroutine; while it runs, and only then, it can be interrupted.

    What an interrupt raises in it stays in its task, where the event loop would end.
    """
    value: Any = None
    raised: BaseException | None = None
    while True:
        note_running(True)
        try:
            waits_for = user.send(value) if raised is None else user.throw(raised)
        except StopIteration as stop:
            return stop.value
        finally:
            note_running(False)
        try:
            value, raised = (yield waits_for), None
        except BaseException as error:  # noqa: BLE001  (it is the coroutine's)
            value, raised = None, error
