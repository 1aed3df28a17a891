"""The worker's loop: one message in, at most one call running, one reply out.

A worker waits only for its parent: for the next message, or for an answer to a request
for quota. If the parent dies, the lifeline kills the worker wherever it is, and the
socket ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from math import inf
from multiprocessing.process import BaseProcess
from time import perf_counter
from types import CoroutineType, TracebackType
from typing import Any, NoReturn

from shmexec.deadline import now
from shmexec.errors import SerializationError
from shmexec.options import INLINE_LIMIT
from shmexec.wire import functions, objects
from shmexec.wire.channel import Receiver, receive_descriptor, send_blocking
from shmexec.wire.messages import (
    Kind,
    Message,
    decode,
    encode,
    encode_plain,
    encode_result,
    in_batches,
)
from shmexec.wire.pickling import Pickled, ReplyPickler, Source, dump, explain, load
from shmexec.worker import loop as event_loop, output
from shmexec.worker.handover import place_all
from shmexec.worker.memory import WorkerMemory
from shmexec.worker.notes import note_read_only
from shmexec.worker.setup import (
    MARK_BYTES,
    PACK_LOG_AT,
    Inherited,
    WorkerConfig,
    prepare,
)
from shmexec.worker.steps import END, Steps

_TEXT_AT_MOST = 16384
"""Bytes of a traceback that is part of a message."""

_PACKED_AT_MOST = 4096
"""Bytes of a result that goes with others."""

_PACKED_BYTES = 16384
"""Bytes of results that are worth a message of their own."""


class WorkerMain(BaseProcess):
    """The process object, as multiprocessing sends it to a new process.

    Args:
        popen: Starts it; stays behind in the parent.
        config: What the worker must know.
    """

    _start_method = None  # asked for by multiprocessing: leave its default alone

    def __init__(
        self, popen: Callable[[Any], Any] | None, config: WorkerConfig
    ) -> None:
        self._launch = popen
        self._worker_config = config
        # Not daemonic: user code may have child processes of its own.
        super().__init__(name=config.name, daemon=False)

    def _Popen(self, worker: Any) -> Any:  # noqa: N802  (the name multiprocessing calls)
        launch = worker.__dict__["_launch"]
        return launch(worker)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_launch": None}

    def run(self) -> None:
        """Serve calls until told to end."""
        config = self._worker_config
        output.redirect(config)
        worker = _Worker(config)
        prepare(config, worker.is_running)
        if config.forward_logs:
            worker.forward_logs()
        try:
            worker.loop()
        finally:
            output.flush()


class _Worker:
    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._requests = socket.socket(fileno=config.requests.number)
        self._replies = socket.socket(fileno=config.replies.number)
        self._arenas = socket.socket(fileno=config.arenas.number)
        self._receiver = Receiver(self._requests, packets=config.packets)
        self._memory = WorkerMemory(config, self._want_quota)
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self._postponed: deque[Message] = deque()
        self._credits: dict[int, int | None] = {}  # of streams; None: closed
        self._running = False
        self._initialized = False
        self._several = False  # calls run several at a time
        self._forgot = False  # shared objects, which may hold memory until collected
        self._mark = config.fault_log.number
        self._pid = os.getpid()
        self._thread = threading.get_ident()
        self._writing = threading.Lock()

    def is_running(self) -> bool:
        """Whether user code runs now, so that it can be interrupted."""
        return self._running

    def loop(self) -> None:
        """Serve until told to end, or until the parent is gone."""
        if self._config.inherited is not None:
            self._begin_initializer()
            self._report(*self._run_inherited(self._config.inherited))
        elif not self._config.has_initializer:
            self._send(Message(Kind.READY, number=self._pid))
        while True:
            try:
                message = self._next()
                if message.kind is Kind.EXIT:
                    self._end()
                    return
                self._handle(message)
                if self._config.slots > 1 and self._initialized:
                    self._serve_several()
                    self._end()
                    return
            except _ParentGone:
                return

    def _serve_several(self) -> None:
        """Serve calls several at a time, until told to end."""
        from shmexec.worker.flight import Flight, Hands

        arena = self._memory.arena
        self._several = True
        Flight(
            Hands(
                descriptor=self._requests.fileno(),
                postponed=self._postponed,
                receive_nowait=self._receive_nowait,
                handle=self._handle,
                free=self._memory.free,
                begin=self._begin,
                unpack=self._unpack,
                run=self._run,
                note_running=self._note_running,
                enter=arena.enter,
                leave=arena.leave,
                dump=_dump_as,
                dump_error=_dump_error,
                reply=self._reply,
            )
        ).serve()

    def _receive_nowait(self) -> Message | None:
        try:
            data = self._receiver.receive_nowait()
        except (EOFError, ConnectionError):
            raise _ParentGone from None
        return None if data is None else decode(data)

    def _note_running(self, running: bool) -> None:
        self._running = running

    def _next(self) -> Message:
        if self._postponed:
            return self._postponed.popleft()
        if self._forgot and not self._receiver.has_more():
            # Once for many: it takes as long as a hundred calls.
            self._forgot = False
            gc.collect()  # an object may be part of a circle, and large
            for leases in in_batches(self._memory.ended()):
                self._send(Message(Kind.RETURNED, leases=leases))
        return self._receive()

    def _receive(self) -> Message:
        """Wait for the parent; what calls left on the event loop goes on meanwhile."""
        if not self._several and event_loop.is_needed():
            event_loop.run_until_readable(self._requests.fileno())
        try:
            return decode(self._receiver.receive())
        except (EOFError, ConnectionError):
            raise _ParentGone from None

    def _handle(self, message: Message) -> None:
        kind = message.kind
        if kind is Kind.CALL:
            if message.leases:
                self._memory.free(message.leases)
            if message.request:
                self._call(message)
            else:
                self._begin_initializer()
                self._report(*self._execute(message))
        elif kind is Kind.PACK:
            self._memory.free(message.leases)
            self._pack(message)
        elif kind is Kind.FREE or kind is Kind.CREDIT:  # a late one
            self._memory.free(message.leases)
        elif kind is Kind.DEFINE:
            self._define(message)
        elif kind is Kind.TRIM:
            gc.collect()
            self._send_returned(self._memory.give_back())
        elif kind is Kind.ARENA:
            self._meet(message)
        elif kind is Kind.FORGET:
            self._memory.forget(message.leases)

    def _meet(self, message: Message) -> None:
        """Learn of an arena that calls to come will refer to."""
        descriptor = receive_descriptor(self._arenas, message.request)
        if descriptor is None:
            self._send(Message(Kind.FORGET, number=message.request))
        else:
            self._memory.meet(message.request, descriptor, message.number)

    # -- calls -------------------------------------------------------------------------

    def _begin(self, message: Message) -> float:
        self._memory.make_room()
        # From here on the call is charged if the worker dies.
        os.pwrite(self._mark, message.request.to_bytes(MARK_BYTES, "little"), 0)
        return perf_counter()

    def _call(self, message: Message) -> None:
        if message.number:
            self._stream(message)
            return
        started = self._begin(message)
        kind, pickled = self._execute(message)
        seconds = perf_counter() - started
        if os.getpid() != self._pid:
            os._exit(0)  # user code forked, and its child came back from the call
        self._reply(message, kind, pickled, seconds)

    def _stream(self, message: Message) -> None:
        """Send what a call yields, as long as there is credit; then reply, once."""
        started = self._begin(message)
        kind, made = self._start_stream(message)
        answer: tuple[Kind, Pickled] | None = kind, made
        if kind is Kind.ITEM:
            self._credits[message.request] = message.number
            answer = self._send_items(message, *made)
            del self._credits[message.request]
        del made
        if answer is not None:
            self._reply(message, *answer, perf_counter() - started)

    def _send_items(
        self,
        message: Message,
        steps: Steps,
        called: tuple[Callable[..., Any], Any, Any],
    ) -> tuple[Kind, Pickled] | None:
        """How it ended; None if that has been said."""
        request = message.request
        while self._may_yield(request):
            self._memory.make_room()
            kind, pickled = self._step(steps, called)
            if os.getpid() != self._pid:
                os._exit(0)
            if kind is not Kind.ITEM:
                if kind is Kind.ERROR:
                    self._close(steps)  # the iterator itself may be sound
                return kind, pickled
            if self._reply(message, kind, pickled, 0.0) is Kind.ERROR:
                self._close(steps)  # there was no room for the item
                return None
        return self._close(steps)

    def _start_stream(self, message: Message) -> tuple[Kind, Any]:
        called: tuple[Callable[..., Any], Any, Any] | None = None
        try:
            fn, args, kwargs = called = self._unpack(message)
            made = self._run(fn, args, kwargs, births=True)
            return Kind.ITEM, (Steps(made), called)
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is the reply)
            if called:
                note_read_only(error, *called)
            return Kind.ERROR, pickle_error(error, skip=1)

    def _step(
        self, steps: Steps, called: tuple[Callable[..., Any], Any, Any]
    ) -> tuple[Kind, Pickled]:
        try:
            item = self._run(steps.step, (), {}, births=True)
        except BaseException as error:  # noqa: BLE001
            note_read_only(error, *called)
            return Kind.ERROR, pickle_error(error, skip=1)
        if item is END:
            return Kind.RESULT, dump(None, ReplyPickler)
        kind, pickled = _dump_as(item, "item")
        return Kind.ITEM if kind is Kind.RESULT else kind, pickled

    def _close(self, steps: Steps) -> tuple[Kind, Pickled]:
        try:
            self._run(steps.close, (), {}, births=True)
        except BaseException as error:  # noqa: BLE001
            return Kind.ERROR, pickle_error(error, skip=1)
        return Kind.RESULT, dump(False, ReplyPickler)  # not to its end

    def _may_yield(self, request: int) -> bool:
        """Use credit for an item; false if nobody wants more.

        Without credit it waits for the parent, which gives more as items are taken, or
        says that the stream is closed: also when its consumer is gone, or the pool ends.
        """
        while True:
            while (data := self._receiver.receive_nowait()) is not None:
                self._postpone(decode(data))
            credit = self._credits[request]
            if credit is None:
                return False
            if credit:
                self._credits[request] = credit - 1
                return True
            self._postpone(self._receive())

    def _postpone(self, message: Message) -> None:
        """Keep a message for later, unless it is about the stream that runs."""
        if message.kind is not Kind.CREDIT or self._several:
            self._postponed.append(message)
            return
        self._memory.free(message.leases)
        credit = self._credits.get(message.request)
        if credit is not None:  # else it has ended, or is closed
            more = message.number
            self._credits[message.request] = credit + more if more else None

    def _pack(self, message: Message) -> None:
        """Run calls until the deadline has passed; the first one in any case.

        The mark comes before the look at the clock: the parent, which reads the mark
        after the deadline, relies on it (see ``Pool._look``). A result is noted where
        the parent can find it before the next call begins, since that may be long, or
        be the end of this process.
        """
        results: list[bytes] = []
        size, at = 0, PACK_LOG_AT
        deadline = inf
        for request, payload in pickle.loads(message.payload):
            os.pwrite(self._mark, request.to_bytes(MARK_BYTES, "little"), 0)
            started = now()
            if started >= deadline:
                break
            deadline = message.seconds
            call = Message(Kind.CALL, request, 0, 0, 0.0, (), (), message.key, payload)
            kind, pickled = self._execute(call)
            seconds = now() - started
            if os.getpid() != self._pid:
                os._exit(0)
            if pickled.sources or len(pickled.payload) > _PACKED_AT_MOST:
                self._reply(call, kind, pickled, seconds)
                continue
            output.flush()
            result = encode_result(request, kind, seconds, bytes(pickled.payload))
            os.pwrite(self._mark, result, at)
            at += len(result)
            results.append(result)
            size += len(result)
            if size > _PACKED_BYTES:
                self._send_results(results, ended=False)
                size = 0
        self._send_results(results, ended=True)
        # The last mark may be that of a call which did not begin here, and may come
        # again. Not before the results are sent: the parent may be looking.
        os.pwrite(self._mark, bytes(MARK_BYTES), 0)

    def _send_results(self, results: list[bytes], *, ended: bool) -> None:
        *others, last = [*in_batches(self._memory.ended())] or [()]
        for leases in others:
            self._send(Message(Kind.RETURNED, leases=leases))
        self._send(
            Message(
                Kind.PACKED,
                int(ended),
                number=self._memory.copied,
                leases=last,
                key=self._memory.new_counts(),
                payload=b"".join(results),
            )
        )
        results.clear()

    def _reply(
        self, message: Message, kind: Kind, pickled: Pickled, seconds: float
    ) -> Kind:
        """Send it; returns its kind, which is ERROR if there was no room."""
        output.flush()
        reply = None
        if pickled.sources or len(pickled.payload) >= INLINE_LIMIT:
            reply = self._place(message, kind, pickled, seconds)
        payload = bytes(pickled.payload) if reply is None else b""
        # The sources hold the result; with it may go the last views of arguments.
        del pickled
        ended = self._memory.ended()
        number, generation = self._memory.copied, self._config.generation
        counts = self._memory.new_counts()
        if reply is None and not ended:
            request = message.request
            self._write(
                encode_plain(
                    kind, request, generation, number, seconds, counts, payload
                )
            )
            return kind
        *others, last = [*in_batches(ended)] or [()]
        for leases in others:
            self._send(Message(Kind.RETURNED, leases=leases))
        if reply is None:
            reply = Message(kind, message.request, generation, number, seconds)
            reply = reply._replace(payload=payload)
        self._send(reply._replace(leases=last, key=counts))
        return reply.kind

    def _execute(self, message: Message) -> tuple[Kind, Pickled]:
        """Run the call and pickle what came of it; its arguments die on return."""
        called: tuple[Callable[..., Any], Any, Any] | None = None
        try:
            fn, args, kwargs = called = self._unpack(message)
            result = self._run(fn, args, kwargs, births=bool(message.request))
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is the reply)
            if called:
                note_read_only(error, *called)
            return Kind.ERROR, pickle_error(error, skip=1)
        if not message.request:
            result = None  # an initializer's: nobody asked for it
        return _dump_as(result, "result")

    def _run(
        self,
        fn: Callable[..., Any],
        args: Any,
        kwargs: Any,
        *,
        births: bool,
        awaits: bool = True,
    ) -> Any:
        # What an initializer makes is to stay: it belongs into private memory.
        before = self._memory.arena.enter() if births else None
        try:
            self._running = True
            try:
                result = fn(*args, **kwargs)
                if awaits and type(result) is CoroutineType:
                    return event_loop.run(result)
                return result
            finally:
                self._running = False
        finally:
            if births:
                self._memory.arena.leave(before)

    def _unpack(self, message: Message) -> tuple[Callable[..., Any], Any, Any]:
        buffers = self._memory.borrow(message.refs)
        payload: Any = buffers.pop() if message.spilled else message.payload
        key = message.key
        if not key:
            fn, args, kwargs, *around = load(payload, buffers)
            return self._surround(fn, around, message), args, kwargs
        if functions.is_digest(key):
            fn = self._functions[key]
        else:
            try:
                fn = functions.find_by_name(key)
            except Exception as error:
                error.add_note(
                    f"The worker could not import {key[1:].decode()}, "
                    "which the call refers to by name."
                )
                raise
        args, kwargs, *around = load(payload, buffers)
        return self._surround(fn, around, message), args, kwargs

    def _surround(
        self, fn: Callable[..., Any], around: list[Any], message: Message
    ) -> Callable[..., Any]:
        """The function with what its call was sent to surround it, if anything."""
        if not around:
            return fn
        from shmexec.worker.surroundings import Surrounded

        return Surrounded(fn, around[0], message.request)

    def _place(
        self, message: Message, kind: Kind, pickled: Pickled, seconds: float
    ) -> Message:
        payload: Any = pickled.payload
        spilled = len(payload) >= INLINE_LIMIT
        if spilled:
            pickled.sources.append(Source(payload))
        try:
            refs = place_all(self._memory, pickled.sources)
        except (MemoryError, SerializationError) as error:
            if kind is Kind.ERROR:
                # Not even the traceback fits: what is left is to say so.
                error = type(error)("the call raised, and its traceback does not fit")
            return self._place(message, Kind.ERROR, pickle_error(error), seconds)
        return Message(
            kind,
            message.request,
            self._config.generation,
            self._memory.copied,
            seconds,
            refs,
            payload=b"" if spilled else payload,
            spilled=spilled,
        )

    def _run_inherited(self, initializer: Inherited) -> tuple[Kind, Pickled]:
        try:
            event_loop.awaited(initializer.fn(*initializer.args))
        except BaseException as error:  # noqa: BLE001
            return Kind.ERROR, pickle_error(error, skip=1)
        return Kind.RESULT, Pickled(b"", [])

    def _begin_initializer(self) -> None:
        """Have the parent measure its time, if that is limited."""
        if self._config.has_start_limit:
            self._send(Message(Kind.READY, 1))

    def _end(self) -> None:
        """What comes last, if nothing went wrong."""
        self._clean_up()
        event_loop.close()
        _flush_traces()

    def _clean_up(self) -> None:
        """Let an actor give back what it holds; tell what it raises."""
        actor = sys.modules.get("shmexec.worker.actor")
        if actor is None:
            return
        try:
            event_loop.awaited(actor.clean_up())
        except BaseException as error:  # noqa: BLE001  (the parent warns of it)
            text = "".join(traceback.format_exception(error))
            payload = text.encode(errors="replace")[-_TEXT_AT_MOST:]
            self._send(Message(Kind.ERROR, payload=payload))

    def _report(self, kind: Kind, pickled: Pickled) -> None:
        """Tell how the initializer went."""
        output.flush()
        if kind is Kind.RESULT:
            self._initialized = True
            self._send(
                Message(
                    Kind.READY,
                    number=self._pid,
                    leases=next(iter(in_batches(self._memory.ended())), ()),
                )
            )
            return
        name, text, trace, _ = load(pickled.payload, ())
        reason = f"{name}: {text}\n{trace}".encode()[: INLINE_LIMIT - 1]
        self._send(Message(Kind.REFUSED, payload=reason))

    def _define(self, message: Message) -> None:
        if objects.is_key(message.key):
            objects.forget(message.key)
            self._forgot = True
            return
        if not message.payload:
            self._functions.pop(message.key, None)
            return
        try:
            self._functions[message.key] = pickle.loads(message.payload)
        except BaseException as error:  # noqa: BLE001  (reported by the call that needs it)
            self._functions[message.key] = _Raises(error)

    # -- talking to the parent -----------------------------------------------------------

    def _send(self, message: Message) -> None:
        if not message.generation:
            message = message._replace(generation=self._config.generation)
        self._write(encode(message))

    def _write(self, data: bytes) -> None:
        try:
            if self._config.packets:
                self._replies.sendall(data)
            else:
                with self._writing:  # user code logs in threads of its own
                    send_blocking(self._replies, data, packets=False)
        except ConnectionError:
            _leave()

    # -- log records -----------------------------------------------------------------------

    def forward_logs(self) -> None:
        """Send log records to the parent from now on."""
        from shmexec.worker.logs import Forwarder, forward

        config = self._config
        forwarder = Forwarder(
            self._send_record, self._running_call, packets=config.packets
        )
        forward(forwarder, config.log_level)

    def _running_call(self) -> int | None:
        if self._several:
            from shmexec.worker.flight import running_call

            return running_call()
        if not self._running:
            return None
        return int.from_bytes(os.pread(self._mark, MARK_BYTES, 0), "little") or None

    def _send_record(self, record: bytes) -> None:
        """In any thread of user code, perhaps in a forked child."""
        message = Message(Kind.LOG, generation=self._config.generation, payload=record)
        data = encode(message)
        if os.getpid() != self._pid:
            with contextlib.suppress(OSError):  # it may have outlived everything else
                self._replies.sendall(data)
        elif threading.get_ident() != self._thread:
            self._write(data)
        else:
            # An interrupt in the middle would leave half a message in a stream. One that
            # comes now is lost: the parent waits a moment for it, then kills.
            running, self._running = self._running, False
            try:
                self._write(data)
            finally:
                self._running = running

    def _send_returned(self, nbytes: int) -> None:
        *others, last = [*in_batches(self._memory.ended())] or [()]
        for leases in others:
            self._send(Message(Kind.RETURNED, leases=leases))
        self._send(Message(Kind.RETURNED, number=nbytes, request=1, leases=last))

    def _want_quota(self, nbytes: int, result: int) -> tuple[int, int, int]:
        """Ask the parent for room, and wait for its answer: it always gives one."""
        self._send(Message(Kind.WANT, number=nbytes, request=result))
        while True:
            message = self._receive()
            if message.kind is Kind.GRANT:
                used, budget = message.leases
                return message.number, used, budget
            self._postpone(message)


def _flush_traces() -> None:
    tracing: Any = sys.modules.get("shmexec.worker.tracing")
    if tracing is not None:
        tracing.flush()


class _ParentGone(Exception):
    """Nobody is left to serve."""


class _Raises:
    """Stands for a function that could not be rebuilt."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise self._error


def _dump_as(value: Any, what: str) -> tuple[Kind, Pickled]:
    """A result, or an item of a stream, or else why it cannot be pickled."""
    try:
        return Kind.RESULT, dump(value, ReplyPickler)
    except BaseException as error:  # noqa: BLE001  (whatever it is, it is the reply)
        failure = explain(error, {what: value}, f"the {what}")
        if hasattr(type(value), "send") and hasattr(type(value), "throw"):
            failure.add_note(
                f"The {what} is a generator, which lives in its process only: "
                "call it by stream() instead, or return list(...) of it."
            )
        return Kind.ERROR, pickle_error(failure)


def _dump_error(error: BaseException) -> tuple[Kind, Pickled]:
    return Kind.ERROR, pickle_error(error, skip=1)


def pickle_error(error: BaseException, *, skip: int = 0) -> Pickled:
    """An exception as (type name, message, traceback text, its own pickle or b"")."""
    text = "".join(
        traceback.format_exception(type(error), error, _skip(error.__traceback__, skip))
    )
    # The frames hold the arguments; the exception may well be kept by someone.
    error.__traceback__ = None
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  (a broken __str__ must not lose the failure)
        message = "<str() of the exception failed>"
    try:
        own = dump(error, ReplyPickler)
        body = bytes(own.payload) if not own.sources else _in_band(error)
    except BaseException:  # noqa: BLE001  (then it goes as RemoteError)
        body = b""
    cls = type(error)
    name = cls.__qualname__
    if cls.__module__ not in {"builtins", "__main__"}:
        name = f"{cls.__module__}.{name}"
    return Pickled(pickle.dumps((name, message, text, body), protocol=5), [])


def _in_band(error: BaseException) -> bytes:
    import cloudpickle

    data: bytes = cloudpickle.dumps(error, protocol=5)
    return data


def _skip(trace: TracebackType | None, frames: int) -> TracebackType | None:
    """Without the first frames, and those of the worker that follow."""
    for _ in range(frames):
        if trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
    outer = trace
    while trace is not None and _is_ours(trace):
        trace = trace.tb_next
    return trace or outer  # an error of the worker's own keeps them all


def _is_ours(trace: TracebackType) -> bool:
    name = trace.tb_frame.f_globals.get("__name__")
    return isinstance(name, str) and name.startswith("shmexec.worker.")


def _leave() -> NoReturn:
    """The parent is gone: nobody is left to tell."""
    sys.stderr.flush()
    os._exit(1)
