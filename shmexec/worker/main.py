"""The worker's loop: one message in, at most one call running, one reply out.

The parts it is made of: ``line``, the sockets to the parent; ``calls``, running one;
``replies``, ``streaming`` and ``packing``, what is sent of it. Where calls run several
at a time, ``flight`` has the loop.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from shmexec import faultpoints
from shmexec.deadline import now
from shmexec.options import INLINE_LIMIT
from shmexec.wire import objects
from shmexec.wire.messages import Kind, Message, in_batches
from shmexec.wire.pickling import Pickled, load
from shmexec.worker import loop as event_loop, output
from shmexec.worker.calls import Calls
from shmexec.worker.failures import pickle_error
from shmexec.worker.line import Line, ParentGone
from shmexec.worker.memory import WorkerMemory
from shmexec.worker.packing import run_pack
from shmexec.worker.replies import Replies
from shmexec.worker.setup import NOT_STARTED, Inherited, WorkerConfig, prepare
from shmexec.worker.streaming import Streams

_TEXT_AT_MOST = 16384
"""Bytes of a traceback that is part of a message."""


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
        try:
            faultpoints.install(config.extra_env)
            faultpoints.reach("worker.starting", config)
            output.redirect(config)
            worker = _Worker(config)
            prepare(config, worker.calls.is_running)
        except (OSError, MemoryError) as error:
            # The parent tells why, once, and not each worker for itself.
            os.write(config.fault_log.number, f"{error}".encode(errors="replace"))
            sys.exit(NOT_STARTED)
        if config.forward_logs:
            from shmexec.worker.logs import forward_to

            forward_to(worker.line, worker.calls, config.log_level)
        try:
            worker.loop()
        finally:
            output.flush()


class _Worker:
    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._mark = config.fault_log.number
        self._pid = os.getpid()
        self._initialized = False
        self._forgot = False  # shared objects, which may hold memory until collected
        self.line = Line(config)
        self._memory = WorkerMemory(config, self.line.want_quota)
        self.line.on_free = self._memory.free
        self.calls = Calls(self._memory, self._mark)
        self._replies = Replies(self.line, self._memory)
        self._streams = Streams(self.line, self._memory, self.calls, self._replies)

    def loop(self) -> None:
        """Serve until told to end, or until the parent is gone."""
        if self._config.inherited is not None:
            self._begin_initializer()
            self._report(*self._run_inherited(self._config.inherited))
        elif not self._config.has_initializer:
            self.line.send(Message(Kind.READY, number=self._pid))
        while True:
            try:
                message = self._next()
                if message.kind is Kind.EXIT:
                    faultpoints.reach("worker.ending", self.line)
                    self._end()
                    return
                self._handle(message)
                if self._config.slots > 1 and self._initialized:
                    self._serve_several()
                    self._end()
                    return
            except ParentGone:
                return

    def _serve_several(self) -> None:
        """Serve calls several at a time, until told to end."""
        from shmexec.worker.flight import Flight

        self.line.several = True
        Flight(self.line, self._memory, self.calls, self._replies, self._handle).serve()

    def _next(self) -> Message:
        if self.line.postponed:
            return self.line.postponed.popleft()
        if self._forgot and not self.line.has_more():
            # Once for many: it takes as long as a hundred calls.
            self._forgot = False
            gc.collect()  # an object may be part of a circle, and large
            self._replies.send_ended()
        if faultpoints.hook is not None:
            faultpoints.hook("worker.idle", self.line)
        return self.line.receive()

    def _handle(self, message: Message) -> None:
        kind = message.kind
        if kind is Kind.CALL:
            if message.leases:
                self._memory.free(message.leases)
            if message.request:
                self._call(message)
            else:
                self._begin_initializer()
                self._report(*self.calls.execute(message))
        elif kind is Kind.PACK:
            self._memory.free(message.leases)
            run_pack(message, self.calls, self._replies, self._mark)
        elif kind is Kind.DEFINE:
            self._define(message)
        elif kind is Kind.RELOAD:
            self.calls.reloads += message.payload.decode().split("\n")
        else:
            self._on_memory(message)

    def _on_memory(self, message: Message) -> None:
        kind = message.kind
        if kind is Kind.FREE or kind is Kind.CREDIT:  # a late one
            self._memory.free(message.leases)
        elif kind is Kind.TRIM:
            self._replies.give_back()
        elif kind is Kind.ARENA:
            self._meet(message)
        elif kind is Kind.FORGET:
            self._memory.forget(message.leases)

    def _call(self, message: Message) -> None:
        if faultpoints.hook is not None:
            faultpoints.hook("worker.read", self.line)
        if message.number:
            self._streams.run(message)
            return
        started = self.calls.begin(message)
        kind, pickled = self.calls.execute(message)
        seconds = now() - started
        if os.getpid() != self._pid:
            os._exit(0)  # user code forked, and its child came back from the call
        self._replies.reply(message, kind, pickled, seconds, started)
        if faultpoints.hook is not None:
            faultpoints.hook("worker.replied", self.line)

    def _meet(self, message: Message) -> None:
        """Learn of an arena that calls to come will refer to."""
        descriptor = self.line.receive_arena(message.request)
        if descriptor is None:
            self.line.send(Message(Kind.FORGET, number=message.request))
        else:
            self._memory.meet(message.request, descriptor, message.number)

    def _define(self, message: Message) -> None:
        if objects.is_key(message.key):
            objects.forget(message.key)
            self._forgot = True
        else:
            self.calls.define(message.key, message.payload)

    # -- the begin and the end -------------------------------------------------------

    def _begin_initializer(self) -> None:
        """Have the parent measure its time, if that is limited."""
        if self._config.has_start_limit:
            self.line.send(Message(Kind.READY, 1))

    def _run_inherited(self, initializer: Inherited) -> tuple[Kind, Pickled]:
        try:
            event_loop.awaited(initializer.fn(*initializer.args))
        except BaseException as error:  # noqa: BLE001
            return Kind.ERROR, pickle_error(error, skip=1)
        return Kind.RESULT, Pickled(b"", [])

    def _report(self, kind: Kind, pickled: Pickled) -> None:
        """Tell how the initializer went."""
        output.flush()
        if kind is Kind.RESULT:
            self._initialized = True
            self.line.send(
                Message(
                    Kind.READY,
                    number=self._pid,
                    leases=next(iter(in_batches(self._memory.ended())), ()),
                )
            )
            return
        name, text, trace, _ = load(pickled.payload, ())
        reason = f"{name}: {text}\n{trace}".encode()[: INLINE_LIMIT - 1]
        self.line.send(Message(Kind.REFUSED, payload=reason))

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
            self.line.send(Message(Kind.ERROR, payload=payload))


def _flush_traces() -> None:
    tracing: Any = sys.modules.get("shmexec.worker.tracing")
    if tracing is not None:
        tracing.flush()
