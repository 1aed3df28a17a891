"""One client: its requests are read, carried out and answered.

A session has three threads, and one more for each stream under way. The *reader* reads
requests, answers those that need no worker, and sees to it that all comes to its end in
time. The *caller* submits calls, which may wait for shared memory; the reader stays free
to hear of a ``cancel``, or of the client's end. The *writer* is that of the
:class:`~shmexec.cli.serving.outbox.Outbox`. What is in flight (read, its reply not
written) is bounded: past that nothing more is read, so that a client which does not read
its replies is not listened to either, and results wait in shared memory, which has a
budget.

Who waits for what, and who ends the wait:

- the reader, in a poll, for input, for room, for the end of what is in flight: the
  client, the writer, the server (``stop``), its deadline, or the client's going;
- the caller for something to call: the reader. For shared memory: in ``submit`` calls
  that end, which the reader may stop, or the pool's shutdown; and if results fill it, the
  writer, or the reader, which closes the outbox at the end;
- the writer for an outcome: the pool, which resolves every future, also when all workers
  are dead; the thread of a stream; the reader at the end. For the client to read: that
  client, or the reader, which gives it up;
- the thread of a stream for an item: the pool. For room in the outbox: the writer, or
  the reader, which closes it at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Final

from shmexec.cli.serving import jsonrpc
from shmexec.cli.serving.calls import (
    Batch,
    Call,
    outcome,
    read_arguments,
    stop_running,
    success,
)
from shmexec.cli.serving.files import make_saver
from shmexec.cli.serving.jsonrpc import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    Id,
    Lines,
    LineTooLong,
    Message,
    Refused,
    Request,
    RpcError,
)
from shmexec.cli.serving.methods import check_params
from shmexec.cli.serving.outbox import Outbox
from shmexec.cli.serving.service import Items, Service, describe
from shmexec.cli.serving.transport import Client, Waker
from shmexec.cli.serving.values import SaveArray, write_value
from shmexec.deadline import Deadline
from shmexec.errors import SharedMemoryFull

__all__ = ["FLUSH", "IN_FLIGHT", "Session"]

IN_FLIGHT: Final = 1000
"""Requests of one client that are read and not answered yet, at most."""
FLUSH: Final = 5.0
"""Seconds in which cancelled calls must end, and the client read some of what is left."""

_FOREVER = Deadline(None)


class Session:
    """Serves one client until its input ends, it goes away, or :meth:`stop`.

    Args:
        client: Whose requests are served; closed at the end.
        service: What carries them out.
        max_line: Bytes of a line, at most.
        grace: Seconds after the end of input in which calls may finish; then they are
            cancelled.
        ended: Called at the very end, in a thread of the session.

    Attributes:
        failure: Why replies could not be written, if it is not that the client went.
    """

    def __init__(
        self,
        client: Client,
        service: Service,
        *,
        max_line: int,
        grace: float,
        ended: Callable[[Session], None],
    ) -> None:
        self.failure: OSError | None = None
        self._client = client
        self._service = service
        self._max_line = max_line
        self._lines = Lines(max_line)
        self._grace = grace
        self._ended = ended
        # Guards what follows, for moments only.
        self._lock = threading.Lock()
        self._calls: dict[Id, Call] = {}
        self._nameless: set[Call] = set()
        self._streams: set[threading.Thread] = set()
        self._in_flight = 0
        self._awaits_room = False
        self._stopped: Deadline | None = None
        self._lost = False
        self._to_call: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._methods: dict[str, Callable[..., None]] = {
            "call": partial(self._later, self._call),
            "stream": partial(self._later, self._stream),
            "cancel": self._cancel,
            "functions": self._functions,
            "health": self._health,
            "stats": self._stats,
            "shutdown": self._shutdown,
        }
        self._waker = Waker()
        try:
            self._outbox = Outbox(client, self._on_written, self._on_lost)
        except OSError:  # there can be no more descriptors
            self._waker.close()
            raise
        self._caller = threading.Thread(
            target=self._call_all, name="shmexec-serve-caller", daemon=True
        )
        self._reader = threading.Thread(
            target=self._run, name="shmexec-serve-reader", daemon=True
        )

    def start(self) -> None:
        """Begin.

        Raises:
            RuntimeError: There can be no more threads; the client is closed.
        """
        try:
            self._reader.start()
        except RuntimeError:
            self._outbox.close()
            self._outbox.join(_FOREVER)
            self._client.close()
            self._waker.close()
            raise

    def stop(self, grace: float) -> None:
        """Read no more requests; calls in flight may finish for so many seconds."""
        with self._lock:
            self._stopped = Deadline(grace)
        self._waker.wake()

    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return self._in_flight

    # -- the reader --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._outbox.start()
            self._caller.start()
            self._read_requests()
            self._finish()
        except OSError:
            pass  # the client has gone: nobody is left to tell
        finally:
            self._close()

    def _wait(self, deadline: Deadline, *, reading: bool = False) -> bool:
        """Wait for a change, or for input; whether there is input."""
        if self._lost:
            msg = "the client has gone"
            raise ConnectionResetError(msg)
        return self._client.wait(self._waker, deadline, reading=reading)

    def _read_requests(self) -> None:
        while not self._stopped:
            if not self._wait(_FOREVER, reading=True):
                continue
            data = self._client.read()
            for line in self._lines.feed(data):
                self._take(line)
            if not data:
                self._take(self._lines.end())
                return

    def _take(self, line: bytes | LineTooLong) -> None:
        message: Message | list[Message] | None
        if isinstance(line, LineTooLong):
            msg = f"a line of more than {self._max_line:,} bytes was skipped"
            message = _refused(msg)
        else:
            message = jsonrpc.parse(line)
        if message is None:
            return
        batch = None
        if isinstance(message, list):
            if len(message) > IN_FLIGHT:
                msg = f"a batch may have {IN_FLIGHT} requests, not {len(message)}"
                message = _refused(msg)
            else:
                batch = Batch(len(message))
        messages = message if isinstance(message, list) else [message]
        if self._admit(len(messages)):
            for each in messages:
                self._begin(each, batch)

    def _admit(self, number: int) -> bool:
        """Wait until so many more may be in flight; False if they never may."""
        while True:
            with self._lock:
                if self._stopped:
                    return False
                if self._in_flight + number <= IN_FLIGHT:
                    self._in_flight += number
                    return True
                self._awaits_room = True
            self._wait(_FOREVER)

    def _begin(self, message: Message, batch: Batch | None) -> None:
        silent = isinstance(message, Request) and message.is_notification
        call = Call(message.id, batch, silent=silent)
        try:
            if isinstance(message, Refused):
                raise message.error
            self._enter(call)
            params = check_params(message.method, message.params)
            self._methods[message.method](call, **params)
        except Exception as error:  # noqa: BLE001  (it becomes the reply)
            self._fail(call, describe(error, INTERNAL_ERROR))

    def _enter(self, call: Call) -> None:
        """Make the call known, so that it can be cancelled."""
        with self._lock:
            if call.silent or call.id is None:
                self._nameless.add(call)
            elif call.id in self._calls:
                msg = f"id {call.id!r} is that of a request which is not answered yet"
                raise RpcError(INVALID_REQUEST, msg)
            else:
                self._calls[call.id] = call

    def _finish(self) -> None:
        """Let calls finish; cancel them when the time is up; give up, if need be."""
        ended = Deadline(self._grace)
        last: Deadline | None = None
        written = 0
        while self._is_busy():
            # A stop may have come, and cut the time short.
            deadline = last or self._stopped or ended
            if deadline.passed():
                progress, written = self._client.written > written, self._client.written
                if last is not None and (self._stopped or not progress):
                    return
                # A client that reads slowly gets its replies, unless the server ends.
                deadline = last = Deadline(FLUSH)
                self._stop_calls()
            self._wait(deadline)

    def _is_busy(self) -> bool:
        with self._lock:
            self._awaits_room = True
            return self._in_flight > 0

    def _stop_calls(self) -> None:
        with self._lock:
            calls = [*self._calls.values(), *self._nameless]
        for call in calls:
            call.cancel()

    def _close(self) -> None:
        """Stop what still runs, wait for the other threads, give the client back."""
        self._outbox.close()
        self._stop_calls()
        self._to_call.put(None)
        # A write to a terminal may block for ever; then the process ends around it.
        deadline = Deadline(FLUSH)
        with self._lock:
            streams = [*self._streams]
        for thread in (self._caller, *streams):
            if thread.ident is not None:  # it was started
                thread.join(deadline.remaining())
        if self._outbox.join(deadline):
            self._client.close()
        self._waker.close()
        self._ended(self)

    def _on_written(self, answered: int) -> None:
        with self._lock:
            self._in_flight -= answered
            awaited, self._awaits_room = self._awaits_room, False
        if awaited:
            self._waker.wake()

    def _on_lost(self, error: OSError) -> None:
        if not isinstance(error, ConnectionError):
            self.failure = error
        self._lost = True
        self._waker.wake()

    # -- the caller --------------------------------------------------------------------

    def _later(self, method: Callable[..., None], call: Call, **params: Any) -> None:
        self._to_call.put(partial(self._carry_out, method, call, params))

    def _call_all(self) -> None:
        while (begin := self._to_call.get()) is not None:
            begin()

    def _carry_out(
        self, method: Callable[..., None], call: Call, params: dict[str, Any]
    ) -> None:
        while True:
            try:
                call.check()
                method(call, **params)
            except SharedMemoryFull as error:
                # Results that the client has not read yet may be what fills it.
                if self._outbox.wait_for_less():
                    continue
                self._fail(call, describe(error))
            except Exception as error:  # noqa: BLE001  (it becomes the reply)
                self._fail(call, describe(error, INTERNAL_ERROR))
            return

    # -- outcomes, from any thread -----------------------------------------------------

    def _reply(self, call: Call, make: Callable[[], bytes]) -> None:
        self._outbox.put(partial(self._line, call, make))

    def _line(self, call: Call, make: Callable[[], bytes]) -> tuple[bytes, int]:
        """In the writer: the reply's line. Its id is free before the client sees it."""
        reply = b"" if call.silent else make()
        call.end()
        with self._lock:
            self._nameless.discard(call)
            if self._calls.get(call.id) is call:
                del self._calls[call.id]
        return call.batch.add(reply) if call.batch else (reply, 1)

    def _fail(self, call: Call, error: RpcError) -> None:
        self._reply(call, partial(jsonrpc.failure, call.id, error))

    def _answer(self, call: Call, result: object) -> None:
        self._reply(call, partial(success, call.id, result, None))

    # -- methods -----------------------------------------------------------------------

    def _call(
        self,
        call: Call,
        function: str,
        args: list[Any],
        kwargs: dict[str, Any],
        timeout: float | None,
        arrays: dict[str, Any] | None,
    ) -> None:
        save = make_saver(arrays)
        args, kwargs = read_arguments(args, kwargs)
        future = self._service.call(function, args, kwargs, timeout)
        call.started(partial(stop_running, future))
        future.add_done_callback(
            lambda done: self._reply(call, partial(outcome, call.id, done, save))
        )

    def _stream(
        self,
        call: Call,
        function: str,
        args: list[Any],
        kwargs: dict[str, Any],
        timeout: float | None,
        arrays: dict[str, Any] | None,
        buffersize: int,
    ) -> None:
        if call.silent:
            msg = "a stream needs an id, by which its items are known"
            raise RpcError(INVALID_REQUEST, msg)
        save = make_saver(arrays)
        args, kwargs = read_arguments(args, kwargs)
        items = self._service.stream(function, args, kwargs, timeout, buffersize)
        call.started(items.cancel)
        thread = threading.Thread(
            target=self._run_stream,
            args=(call, items, save),
            name="shmexec-serve-stream",
            daemon=True,
        )
        with self._lock:
            self._streams.add(thread)
        try:
            thread.start()
        except RuntimeError:  # there can be no more threads
            with self._lock:
                self._streams.discard(thread)
            items.cancel()
            raise

    def _run_stream(self, call: Call, items: Items, save: SaveArray | None) -> None:
        try:
            number = self._pass_items(call, items, save)
            call.check()  # a stream that is cancelled between two items just ends
            self._answer(call, {"items": number})
        except BaseException as error:  # noqa: BLE001  (a generator may raise any)
            items.close()  # does nothing, if it was the generator's own
            self._fail(call, describe(error))
        finally:
            with self._lock:
                self._streams.discard(threading.current_thread())

    def _pass_items(self, call: Call, items: Items, save: SaveArray | None) -> int:
        identity = jsonrpc.to_json(call.id)
        number = 0
        for item in items:
            value = write_value(item, save, "item")
            params = b'{"id":%b,"item":%b}' % (identity, value)
            line = jsonrpc.notification("stream.item", params)
            if not self._outbox.put_item(line):
                items.cancel()
                break
            number += 1
        return number

    def _cancel(self, call: Call, id: Any) -> None:  # noqa: A002  (the parameter's name)
        if isinstance(id, bool) or not isinstance(id, str | int | float):
            msg = "params.id must be a text or a number"
            raise RpcError(INVALID_PARAMS, msg)
        with self._lock:
            found = self._calls.get(id)
        self._answer(call, found is not None and found.cancel())

    def _functions(self, call: Call) -> None:
        self._answer(call, self._service.functions())

    def _health(self, call: Call) -> None:
        self._answer(call, self._service.health())

    def _stats(self, call: Call) -> None:
        self._answer(call, self._service.stats())

    def _shutdown(self, call: Call) -> None:
        # The reply is in the outbox before the end begins, and so is written.
        self._answer(call, None)
        self._service.shutdown()


def _refused(message: str) -> Refused:
    return Refused(None, RpcError(INVALID_REQUEST, message))
