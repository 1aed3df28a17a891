"""What comes from workers: read into the inbox, then handled, in its order.

Bytes go from the kernel to the inbox within one C call; a message is peeked at, handled,
then popped, and to handle it twice is harmless: so an interrupt loses nothing (see
:mod:`shmexec.runtime.leading`). Only whoever leads reads, and needs no lock for it; for
all the rest the caller holds the pool's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from shmexec.memory.views import Loan, view_of
from shmexec.runtime import reports
from shmexec.runtime.calls import Outcome, PackedCall, traceback_of
from shmexec.runtime.guard import Guard
from shmexec.runtime.leading import Poller
from shmexec.runtime.outputs import Outputs
from shmexec.runtime.quotas import Quotas
from shmexec.runtime.tables import Tables
from shmexec.runtime.workers import NOTHING, WorkerHandle
from shmexec.scheduler import records as r
from shmexec.scheduler.entities import Call as CallRecord, Worker as WorkerRecord
from shmexec.wire.channel import Framer
from shmexec.wire.messages import (
    LARGEST,
    Kind,
    MalformedMessage,
    Message,
    PackedResult,
    Ref,
    decode,
    decode_results,
)

_WITH_REFS = frozenset({Kind.RESULT, Kind.ERROR, Kind.ITEM})


def _check(handle: WorkerHandle, message: Message) -> None:
    """Raise MalformedMessage if it is another worker's, or has buffers for nothing."""
    if message.generation != handle.number:
        msg = f"worker {handle.number} speaks for {message.generation}"
        raise MalformedMessage(msg)
    if message.refs and message.kind not in _WITH_REFS:
        msg = f"buffers with a message of kind {message.kind.name}"
        raise MalformedMessage(msg)


class Replies:
    """See the module.

    Args:
        tables: The pool's.
        quotas: What workers say of memory is for it.
        outputs: What was printed before a reply is read before that is handled.
        poller: Watches the sockets; one that has ended is watched no more.
        numbers: Numbers of calls, of which items of streams take some.
        handle: Tells the scheduler of an event, and does what it says; before that,
            what it is given besides.
        remark: Has the program warned of something that no call can tell.
        guard: Looks at workers as they become idle.
    """

    def __init__(
        self,
        tables: Tables,
        quotas: Quotas,
        outputs: Outputs,
        poller: Poller,
        numbers: Iterator[int],
        handle: Callable[..., None],
        remark: Callable[[Warning], None],
        guard: Guard,
    ) -> None:
        self._tables = tables
        self._options = tables.options
        self._host = tables.host
        self._machine = tables.machine
        self._calls = tables.calls
        self._workers = tables.workers
        self._outcomes = tables.outcomes
        self._quotas = quotas
        self._outputs = outputs
        self._poller = poller
        self._numbers = numbers
        self._handle = handle
        self._remark = remark
        self._guard = guard
        self.inbox: deque[tuple[WorkerHandle, bytes]] = deque()
        self._begun: bytes | None = None  # the message that was handled last
        self._doubtful: bytes | None = None  # one that is handled for the second time
        self.refused = False
        """Whether the initializer raised."""

    # -- reading -----------------------------------------------------------------------

    def take(self, handle: WorkerHandle, descriptor: int) -> bool:
        """One read, which is one message where packets are; whether there was one."""
        inbox = self.inbox
        before = len(inbox)
        try:
            # Out of the kernel and into the inbox in one C call.
            reads = map(os.read, (descriptor,), (LARGEST,))
            inbox.extend(zip((handle,), reads, strict=False))
        except (BlockingIOError, ConnectionError):
            return False
        if len(inbox) > before and not inbox[-1][1]:
            # End of data is not yet the end of the process: the sentinel tells. If that
            # does not come, somebody closed all descriptors, and the call goes on.
            self._poller.remove(descriptor)
            return False
        return len(inbox) > before

    def take_all(self, handle: WorkerHandle) -> None:
        """Read all that a worker has said, and handle what there is of any."""
        descriptor = handle.replies.fileno()
        while self.take(handle, descriptor):
            pass
        self.empty_inbox()

    def empty_inbox(self) -> None:
        """Handle what was read."""
        inbox = self.inbox
        while inbox:
            entry = inbox[0]
            handle, data = entry
            if not data:
                # The end is read once more when it is dead.
                handle.mute = handle.mute or not handle.killed
                self._handle(r.WorkerMute(handle.number))
            elif handle.framer is None:
                self._on_data(handle, data)
            else:
                self._on_chunk(handle, handle.framer, data)
            if inbox and inbox[0] is entry:
                inbox.popleft()

    def _on_chunk(self, handle: WorkerHandle, framer: Framer, data: bytes) -> None:
        """What a stream socket gave, which may end in the middle of a message."""
        if handle.chunk is None or handle.chunk[0] is not data:
            handle.chunk = (data, *framer.split(data))
        _, messages, rest, error = handle.chunk
        while messages:
            message = messages[0]
            self._on_data(handle, message)
            if messages and messages[0] is message:
                messages.pop(0)
        if error is not None:
            self._distrust(handle, error)
        framer.rest = rest
        handle.chunk = None

    def _on_data(self, handle: WorkerHandle, data: bytes) -> None:
        """One message."""
        if handle.distrusted:
            return  # what it says after that is not listened to
        self._begun = data
        try:
            self._on_message(handle, decode(data))
        except (MalformedMessage, r.IllegalEvent, ValueError) as error:
            if data is not self._doubtful:
                self._distrust(handle, error)
        handle.accepting = NOTHING

    def _distrust(self, handle: WorkerHandle, error: Exception) -> None:
        """Its memory is not to be trusted any more; its call fails with it."""
        strange = isinstance(error, MalformedMessage)
        handle.distrusted = str(error) if strange else f"what it may not: {error}"
        handle.kill()

    def _done(self) -> None:
        """Done with a message but for what the scheduler has decided.

        Once workers were told of that, it must not be handled again.
        """
        handle, _ = self.inbox[0]
        if handle.chunk is None:
            self.inbox.popleft()
        else:
            handle.chunk[1].pop(0)

    def mend(self) -> None:
        """An interrupt may have struck as a message was handled; it will be again.

        What it says may be known by then: that is no fault of the worker's.
        """
        self._doubtful = self._begun

    def _on_message(self, handle: WorkerHandle, message: Message) -> None:
        kind = message.kind
        if message.generation != handle.number or message.refs:
            _check(handle, message)
        if message.leases:
            self._host.release_of(handle.holder, message.leases)
        if kind is Kind.RESULT or kind is Kind.ERROR:
            self._on_reply(handle, message)
        elif kind is Kind.ITEM:
            self._on_item(handle, message)
        elif kind is Kind.PACKED:
            self._on_packed(handle, message)
        elif kind is Kind.LOG:
            self._outputs.take_record(handle.output, message.payload)
        elif kind is Kind.READY:
            self._outputs.drain(handle.output)
            event = r.WorkerBegan if message.request else r.WorkerReady
            if event is r.WorkerReady:
                self._guard.ready(handle)
            self._handle(event(handle.number), self._done)
        elif kind is Kind.REFUSED:
            self._outputs.drain(handle.output)
            self._on_refused(handle, message)
        else:
            self._on_memory(handle, message)

    def _on_refused(self, handle: WorkerHandle, message: Message) -> None:
        what = "the initializer" if self._options.actor is None else "building it"
        reason = f"{what} failed: {message.payload.decode(errors='replace')}"
        before, self.refused = self.refused, True
        try:
            self._handle(r.WorkerRefused(handle.number, reason), self._done)
        except r.IllegalEvent:
            self.refused = before
            raise

    def _on_memory(self, handle: WorkerHandle, message: Message) -> None:
        kind = message.kind
        if kind is Kind.WANT:
            self._quotas.handle_want(handle, message)
        elif kind is Kind.RETURNED:
            self._quotas.handle_returned(handle, message)
        elif kind is Kind.FORGET:
            handle.arena.visited.discard(message.number)
        else:
            msg = f"a message of kind {kind.name}, which only the parent sends"
            raise MalformedMessage(msg)

    # -- results -----------------------------------------------------------------------

    def _on_reply(self, handle: WorkerHandle, message: Message) -> None:
        kind, number = message.kind, message.request
        if not number and kind is Kind.ERROR and handle.asked:
            text = reports.failed_cleanup(handle, message.payload, self._options)
            self._remark(RuntimeWarning(text))
            return
        call = self._calls.get(number)
        state, worker = self._running(handle, message)
        payload, views = self._received(handle, message, call)
        after = self._outputs.drain(handle.output)
        if call is not None and not state.stopping:
            # Noted before it is forgotten: an interrupt in between loses nothing.
            self._outcomes[number] = Outcome(
                call, kind, payload, views, None, False, handle.warning, after
            )
            self._tables.forget(call.number)
        elif call is not None and kind is Kind.ERROR and worker.flight:
            call.stack = traceback_of(payload, views)
        handle.note_reply(number)
        if handle.look_after:
            self._guard.call_ended(handle)
        ok, seconds = kind is Kind.RESULT, message.seconds
        event: r.Event = r.Finished(number, handle.number, ok, seconds)
        if number in worker.pack:
            event = r.PackReplied(handle.number, ((number, ok, seconds),), False)
        self._handle(event, self._done)

    def _on_item(self, handle: WorkerHandle, message: Message) -> None:
        number = message.request
        call = self._calls.get(number)
        state, _ = self._running(handle, message)
        if call is not None and not call.credit:
            msg = f"an item of call {number}, which is no stream"
            raise MalformedMessage(msg)
        payload, views = self._received(handle, message, call)
        if call is None or call.items is None or state.stopping:
            return  # nobody wants it: with its views end its leases
        if call.noted[0] is not self._begun:
            call.noted = (self._begun, call.future)
        future = call.noted[1]
        assert future is not None
        # Once each, also if an interrupt has this done again.
        if call.items[-1] is future:
            call.items.append(future.make_next())
        if call.future is future:
            call.future = call.items[-1]
        after = self._outputs.drain(handle.output)
        self._outcomes[next(self._numbers)] = Outcome(
            call, Kind.RESULT, payload, views, after=after, item=future
        )

    def _running(
        self, handle: WorkerHandle, message: Message
    ) -> tuple[CallRecord, WorkerRecord]:
        """The call that a worker speaks of, and the worker, as the scheduler sees them.

        Raises:
            MalformedMessage: If the worker does not run it.
        """
        state = self._machine.calls.get(message.request)
        worker = None if state is None else state.worker
        if state is None or worker is None or worker.id != handle.number:
            msg = f"a reply to call {message.request}, which this worker does not run"
            raise MalformedMessage(msg)
        return state, worker

    def _received(
        self, handle: WorkerHandle, message: Message, call: PackedCall | None
    ) -> tuple[Any, tuple[Any, ...]]:
        """The pickle that a worker sent, and the buffers that belong to it."""
        refs = message.refs
        # What goes on to another worker is not looked at here.
        sealed = call is not None and call.sealed and message.kind is not Kind.ERROR
        views: tuple[Any, ...] = ()
        if refs:
            loans = self._accept(handle, refs)
            views = tuple(loans if sealed else map(_mapped, loans))
        recorder = self._tables.recorder
        if recorder is not None:  # before the worker's figures are taken in
            recorder.note_reply(handle, message, call, views)
        handle.note_figures(message)
        handle.arena.kept = 0
        if message.spilled:
            return views[-1], views[:-1]
        return message.payload, views

    def _accept(self, handle: WorkerHandle, refs: Sequence[Ref]) -> list[Loan]:
        """Take over what a reply refers to; the same if an interrupt has it done again."""
        host = self._host
        if handle.accepting[0] is not self._begun:
            loans = [host.loan(ref.arena, ref.offset, ref.nbytes) for ref in refs]
            handle.accepting = self._begun, loans
        for ref, loan in zip(refs, handle.accepting[1], strict=True):
            if loan.lease and host.is_leased(loan):
                continue
            if ref.lease:  # an argument that comes back
                host.take_back(handle.holder, ref.lease, loan)
            elif ref.arena != handle.arena.id:
                msg = f"a result in arena {ref.arena}, not the worker's own"
                raise MalformedMessage(msg)
            else:
                host.accept(handle.arena, loan)
        return handle.accepting[1]

    # -- packs -------------------------------------------------------------------------

    def _on_results(
        self,
        handle: WorkerHandle,
        results: Sequence[PackedResult],
        *,
        ended: bool,
        done: Callable[[], None] | None = None,
    ) -> None:
        """Results of packed calls; some of them may have been taken from the log."""
        worker = self._machine.workers.get(handle.number)
        pack = worker.pack if worker is not None else {}
        came: dict[int, tuple[int, bool, float]] = {}
        recorder = self._tables.recorder
        for number, kind, seconds, payload, began in results:
            state = pack.get(number)
            if state is None:
                continue
            call = self._calls.get(number)
            if recorder is not None:
                recorder.note_packed(number, call, kind, payload, began)
            if call is not None and not state.stopping:
                after = handle.output.last
                self._outcomes[number] = Outcome(call, kind, payload, after=after)
                self._tables.forget(number)
            came[number] = number, kind is Kind.RESULT, seconds
        if ended and handle.look_after and worker is not None:
            self._guard.call_ended(handle)
        if came or ended:
            event = r.PackReplied(handle.number, tuple(came.values()), ended)
            self._handle(event, done)

    def _on_packed(self, handle: WorkerHandle, message: Message) -> None:
        handle.note_figures(message)
        self._outputs.drain(handle.output)
        results = decode_results(message.payload)
        if not message.request:
            self._on_results(handle, results, ended=False, done=self._done)
        elif handle.pack is self._ending(handle):
            done = partial(self._pack_done, handle)
            self._on_results(handle, results, ended=True, done=done)

    def _ending(self, handle: WorkerHandle) -> tuple[int, ...]:
        """The pack whose end a worker tells of, also if it was sent another one since.

        That is so if an interrupt struck when this message had been handled.
        """
        if handle.ending[0] is not self._begun:
            handle.ending = self._begun, handle.pack
        return handle.ending[1]

    def _pack_done(self, handle: WorkerHandle) -> None:
        handle.pack = ()
        self._done()

    def look(self, number: int) -> None:
        """See how far a worker came with a pack whose deadline has passed.

        The worker writes its mark, then looks at the clock, and begins a call only if
        the deadline has not passed. The mark is read here after it has: either it is
        that of the last call that ever begins, or the worker will see that it is late.
        So what comes behind the mark never begins. (CLOCK_MONOTONIC is one clock for all
        processes.) What comes before the mark has ended; its results were noted, or
        sent, before the mark was written.
        """
        handle = self._workers.get(number)
        if handle is None:
            return
        pack, begun = handle.pack, handle.begun()
        self.take_all(handle)
        worker = self._machine.workers.get(number)
        if worker is None or worker.look_at is None or handle.pack is not pack:
            return  # it has ended meanwhile; what was read tells nothing of the next one
        self._outputs.drain(handle.output)
        self._on_results(handle, handle.logged(begun), ended=False)
        self._handle(r.PackExpired(number, begun), partial(handle.keep, worker.pack))

    # -- the end of a worker -----------------------------------------------------------

    def bury(self, handle: WorkerHandle) -> None:
        """A worker's process has ended: first read all it said, then decide."""
        self.take_all(handle)
        code = handle.process.reap()
        self._outputs.drop(handle.output)
        reason = reports.death(handle, code, self._guard.hint)
        if self._options.actor is not None and handle.asked and code:
            text = reports.unfinished_cleanup(reason, self._options)
            self._remark(RuntimeWarning(text))
        not_begun, begun = handle.call_not_begun(), handle.begun()
        self._quotas.forget(handle)
        worker = self._machine.workers.get(handle.number)
        if worker is not None:
            if worker.late:
                reason = f"{reason}\n{handle.fault_text()}"
            if worker.packed:
                self._on_results(handle, handle.logged(begun), ended=False)
            event = r.WorkerDead(handle.number, reason, not_begun, begun)
            self._handle(event, handle.keep_nothing)


def _mapped(loan: Loan) -> Any:
    try:
        return view_of(loan)
    except OSError as error:  # it has no pages, and there are none to be had
        place = (loan.arena, loan.offset, loan.nbytes)
        msg = f"a result at {place}, which cannot be mapped: {error}"
        raise MalformedMessage(msg) from error
