"""The parent's handle of one worker: its process, sockets, memory and fault log."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import partial
from itertools import islice

from shmexec.memory import native
from shmexec.memory.host import Host
from shmexec.memory.remains import Remains
from shmexec.memory.views import Loan
from shmexec.options import Options
from shmexec.runtime import lifecycle
from shmexec.runtime.faultlog import FaultLog
from shmexec.runtime.footprint import Footprint
from shmexec.runtime.monitor import Gauge
from shmexec.runtime.outputs import WorkerOutput
from shmexec.runtime.processes import WorkerProcess
from shmexec.wire.channel import Framer, Sender, pair, send_descriptor
from shmexec.wire.functions import KEPT_AT_MOST, FunctionRef, is_digest
from shmexec.wire.messages import (
    LEASES_AT_MOST,
    Counts,
    Kind,
    MalformedMessage,
    Message,
    PackedResult,
    Ref,
    decode,
    decode_counts,
    encode,
)
from shmexec.wire.objects import SharedObject
from shmexec.wire.reloads import reloads
from shmexec.worker.setup import Inherited, PassedDescriptor, WorkerConfig
from shmexec.worker.stacks import INTERRUPT

_FREEING = frozenset({Kind.CALL, Kind.PACK, Kind.CREDIT, Kind.FREE})
"""Messages whose leases are results that the worker may free."""


_NAMES_AT_MOST = 50
"""Modules whose names go in one message: it would take longer ones."""

NOTHING: tuple[bytes | None, list[Loan]] = (None, [])
"""Of no message."""


class WorkerHandle:
    """See the module. The pool's lock guards all of it but :attr:`process`.

    Attributes:
        number: The worker's number, its generation in messages.
        request: The call it was sent last, 0 after its reply.
        pack: Or the calls, in their order, until the pack has ended.
        reloads: Up to which state of the program's modules it was told what is reloaded.
        flight: Or the calls that share it, until their replies.
        ending: The last message that told of a pack's end, and that pack.
        accepting: The message that is handled, and what of its results was taken over.
        chunk: What a stream socket gave, the messages of it that are not handled yet, the
            rest, and what is wrong with that.
        warning: To be given with the result of that call.
        asked: Whether it was asked to end.
        killed: Whether it was killed by this program.
        mute: Whether it has closed its end of the connection.
        distrusted: What was wrong with what it sent, if it was killed for that.
        footprint: Its private memory.
        gauge: Reads that, if it is looked at often.
        look_after: Whether to look at that after its call.
        verdict: Why it was killed, if for its memory.
    """

    def __init__(
        self,
        number: int,
        options: Options,
        host: Host,
        account: Hashable,
        inherited: Inherited | None = None,
    ) -> None:
        self.number = number
        self.host = host
        self.holder = ("worker", id(self), number)
        self.request = 0
        self.pack: tuple[int, ...] = ()
        self.flight: dict[int, None] = {}
        self.freeing: tuple[int, ...] = ()  # frees that are just being told of
        self.leased: tuple[Ref, ...] = ()  # for a call that is just being sent
        self.slots = options.actor.slots if options.actor is not None else 1
        self.accepting = NOTHING
        self.ending: tuple[bytes | None, tuple[int, ...]] = (None, ())
        self.chunk: tuple[bytes, list[bytes], bytes, MalformedMessage | None] | None = (
            None
        )
        self.trimming = False
        self.trim_until = 0.0
        self.footprint = Footprint()
        self.gauge: Gauge | None = None
        self.look_after = False
        self.verdict = ""
        self.exitcode: int | None = None
        self.copied_out = 0
        self.counts = Counts()
        self.warning = ""
        self.asked = self.killed = self.mute = False
        self.distrusted = ""
        self._known: OrderedDict[bytes, None] = OrderedDict()
        # It imports nothing before its process starts.
        self.reloads = reloads.stamp
        self._objects: dict[bytes, weakref.ref[SharedObject]] = {}
        self._objects_gone: deque[bytes] = deque()
        packets = options.segment == "memfd" and sys.platform == "linux"
        self._closed = False
        self._remains: Remains | None = None
        self._lifeline = -1
        self.log: FaultLog | None = None
        self._sockets: list[socket.socket] = []
        self.output = WorkerOutput()
        self.arena = host.new_worker_arena(account)
        self.arena.visited |= {host.arena.id, self.arena.id}
        lifecycle.opening.add(self)
        try:
            self._open(options, packets=packets, inherited=inherited)
        except BaseException:
            host.bury(self.arena, self.holder)
            raise
        finally:
            lifecycle.opening.discard(self)

    def _open(
        self, options: Options, *, packets: bool, inherited: Inherited | None
    ) -> None:
        # Each descriptor has who closes it at once: the next one may be one too many.
        with contextlib.ExitStack() as ends, contextlib.ExitStack() as failed:
            failed.callback(self._close_pipes)
            requests, requests_end = self._pair(ends, packets=packets)
            self.replies, replies_end = self._pair(ends, packets=packets)
            self._arenas, arenas_end = self._pair(ends, packets=packets)
            self.replies.setblocking(False)
            self.sender = Sender(requests, packets=packets)
            self.framer = None if packets else Framer()
            lifeline, self._lifeline = os.pipe()
            ends.callback(os.close, lifeline)
            self.log = FaultLog()
            self.output, printed = _output(options.worker_output)
            for descriptor in printed.values():
                ends.callback(os.close, descriptor)
            config = self._config(
                options,
                packets=packets,
                requests=requests_end,
                replies=replies_end,
                arenas=arenas_end,
                fault_log=self.log.descriptor,
                lifeline=lifeline,
                printed=printed,
                inherited=inherited,
            )
            with (
                lifecycle.launch
            ):  # a fork must keep this worker's descriptors, and only those
                passed = _descriptors(config)
                lifecycle.keep_in_child.update(passed)
                try:
                    self.process = WorkerProcess(options.start_method, config)
                finally:
                    lifecycle.keep_in_child.difference_update(passed)
            failed.pop_all()

    def _pair(
        self, ends: contextlib.ExitStack, *, packets: bool
    ) -> tuple[socket.socket, socket.socket]:
        """Sockets between this process and the worker: our end, and the worker's."""
        ours, other = pair(packets=packets)
        self._sockets.append(ours)
        ends.enter_context(other)
        return ours, other

    def _config(
        self,
        options: Options,
        *,
        packets: bool,
        requests: socket.socket,
        replies: socket.socket,
        arenas: socket.socket,
        fault_log: int,
        lifeline: int,
        printed: Mapping[int, int],
        inherited: Inherited | None,
    ) -> WorkerConfig:
        own = self.host.arena
        stdout, stderr = (
            PassedDescriptor(printed[number]) if number in printed else None
            for number in (1, 2)
        )
        return WorkerConfig(
            generation=self.number,
            name=f"{options.name}-worker-{self.number}",
            segment_kind=self.host.kind,
            packets=packets,
            threads=options.threads_per_worker,
            parent_arena=own.id,
            parent_size=own.segment.size,
            own_arena=self.arena.id,
            own_size=self.arena.segment.size,
            requests=PassedDescriptor(requests.fileno()),
            replies=PassedDescriptor(replies.fileno()),
            arenas=PassedDescriptor(arenas.fileno()),
            parent_segment=PassedDescriptor(own.segment.descriptor),
            own_segment=PassedDescriptor(self.arena.segment.descriptor),
            fault_log=PassedDescriptor(fault_log),
            lifeline=PassedDescriptor(lifeline),
            stdout=stdout,
            stderr=stderr,
            forward_logs=options.worker_output == "forward",
            log_level=logging.getLogger().level,
            native=options.native and native.is_built(),
            has_initializer=options.initializer is not None,
            has_start_limit=options.actor is not None
            and options.actor.start_timeout is not None,
            slots=self.slots,
            inherited=inherited,
            env=dict(os.environ),
            extra_env=options.worker_env,
            path=list(sys.path),
            folder=_folder(),
        )

    @property
    def memory(self) -> int | None:
        """Its private memory in bytes when last looked at, None if never."""
        return self.footprint.now

    @property
    def arenas(self) -> set[int]:
        """Those that the worker knows."""
        return self.arena.visited

    # -- messages ------------------------------------------------------------------------

    def send(self, message: Message) -> bool:
        """Send a message, with the results to be freed as they fit."""
        if message.generation != self.number:
            message = message._replace(generation=self.number)
        return self.go(
            encode(message), message.leases if message.kind in _FREEING else ()
        )

    def go(self, data: bytes, frees: tuple[int, ...] = ()) -> bool:
        """Send an encoded message that tells of so many :meth:`frees`."""
        sender = self.sender
        # In this order: see `mend`.
        sender.doing = data
        self.freeing = frees
        whole = sender.go()
        if frees:
            self.freed(frees)
        return whole

    def note_sent(self, request: int, frees: tuple[int, ...]) -> None:
        """A call is just being sent, with such frees: it is the sender's already."""
        self.request = request
        self.freeing = frees
        if self.slots > 1:
            self.flight[request] = None

    def note_reply(self, call: int) -> None:
        """It has replied to that call."""
        self.request = 0
        self.warning = ""
        self.flight.pop(call, None)

    def keep(self, calls: Collection[int]) -> None:
        """Of its pack these are left; all that came behind them goes elsewhere.

        The first one stays in any case: by it one knows that the pack has not ended.
        """
        pack = self.pack
        while len(pack) > 1 and pack[-1] not in calls:
            pack = pack[:-1]
        self.pack = pack

    def keep_nothing(self) -> None:
        """It is dead: what it was sent, and had not begun, goes elsewhere."""
        self.pack = ()
        self.request = 0
        self.flight.clear()

    @property
    def sent(self) -> tuple[int, ...]:
        """Calls that it was sent; it may have replied to some."""
        if self.slots > 1:
            return tuple(self.flight)
        return self.pack or ((self.request,) if self.request else ())

    def mend(self) -> None:
        """An interrupt may have struck as something was sent: do the rest of it."""
        data = self.sender.doing
        if data is not None:
            # It will be sent: note what its sender would have.
            message = decode(data)
            frees = message.leases if message.kind in _FREEING else ()
            if message.kind is Kind.CALL:
                self.leased = ()
                self.note_sent(message.request, frees)
            elif message.kind is Kind.PACK:
                self.pack = tuple(number for number, _ in pickle.loads(message.payload))
            self.freeing = frees
        self.sender.mend()
        self.freed(self.freeing)
        # Leases for a call that it was not sent.
        self.host.release([ref.lease for ref in self.leased])
        self.leased = ()

    def send_function(self, function: FunctionRef) -> None:
        """Make the worker know a function, and what it may refer to.

        Nothing to do if it does.
        """
        if self.reloads != reloads.stamp:
            self._send_reloads()
        if not is_digest(function.key):
            return
        if function.key in self._known:
            self._known.move_to_end(function.key)
            return
        # Told first, then noted: an interrupt in between has it told twice, not never.
        self.send(Message(Kind.DEFINE, key=function.key, payload=function.pickled))
        self._known[function.key] = None
        if len(self._known) > KEPT_AT_MOST:
            oldest = next(iter(self._known))
            self.send(Message(Kind.DEFINE, key=oldest))
            del self._known[oldest]

    def _send_reloads(self) -> None:
        """Have the worker reload what the program has reloaded since it was told."""
        names, stamp = reloads.since(self.reloads)
        for start in range(0, len(names), _NAMES_AT_MOST):
            text = "\n".join(names[start : start + _NAMES_AT_MOST])
            self.send(Message(Kind.RELOAD, payload=text.encode()))
        # Told first, then noted: as functions are.
        self.reloads = stamp

    def send_arena(self, arena: int) -> None:
        """Give the worker the memory of another one, before a call that refers to it.

        The descriptor goes first, on a socket of its own; then the message that it is
        there. So the worker need not wait for it, and this end never waits either: if
        the worker is stopped and the socket full, this raises. If the worker is dead,
        nothing is lost: its calls are recovered as ever.

        Raises:
            OSError: If the descriptor cannot be sent; the worker is told nothing then.
        """
        segment = self.host.segment_of(arena)
        try:
            send_descriptor(self._arenas, arena, segment.descriptor)
        except ConnectionError:
            return
        self.send(Message(Kind.ARENA, arena, number=segment.size))
        self.arena.visited.add(arena)

    def note_objects(self, objects: Sequence[SharedObject]) -> None:
        """A call that needs these is sent next: the worker keeps them from then on.

        And it is to forget those that have died since.
        """
        gone = self._objects_gone
        for shared in objects:
            if shared.key not in self._objects:
                callback = partial(_note_key, gone, shared.key)
                self._objects[shared.key] = weakref.ref(shared, callback)
        self.forget_objects()

    def forget_objects(self) -> None:
        """Have the worker forget the shared objects that no call can need any more."""
        gone = self._objects_gone
        while gone:
            key = gone[0]
            self._objects.pop(key, None)
            self.send(Message(Kind.DEFINE, key=key))
            gone.popleft()

    def frees(self) -> tuple[int, ...]:
        """Offsets of results that are no longer used, as many as fit in a message.

        When it is sent they are to be :meth:`freed`.
        """
        return tuple(islice(self.arena.frees, LEASES_AT_MOST))

    def freed(self, offsets: tuple[int, ...]) -> None:
        """The worker has been told of these, in a message."""
        frees = self.arena.frees
        for offset in offsets:
            # Not so where an interrupt struck, and it was done already.
            if frees and frees[0] == offset:
                frees.popleft()
        self.freeing = ()

    def flush_frees(self) -> None:
        """Tell the worker at once which results and arenas are no longer used."""
        self.send_gone()
        self.forget_objects()
        while offsets := self.frees():
            self.send(Message(Kind.FREE, leases=offsets))

    def send_gone(self) -> None:
        """Tell the worker which arenas of others are gone, so that it unmaps them."""
        gone = self.arena.gone
        while gone:
            arenas = tuple(islice(gone, LEASES_AT_MOST))
            self.send(Message(Kind.FORGET, leases=arenas))
            for _ in arenas:
                gone.popleft()

    def note_figures(self, message: Message) -> None:
        """Take the worker's own counts from a reply.

        Raises:
            MalformedMessage: If there are no such counts.
        """
        if message.number < 0:
            msg = f"{message.number} bytes copied"
            raise MalformedMessage(msg)
        self.copied_out = message.number
        if message.key:
            self.counts = decode_counts(message.key)

    def call_not_begun(self) -> bool:
        """Whether the worker never began its last call; once it is dead.

        It marks the call it begins. What it did not read from its socket says less: a
        dying process may still take a message out.
        """
        return self.request > 0 and self.begun() != self.request

    def begun(self) -> int:
        """The call that the worker has begun last, 0 if none."""
        return 0 if self.log is None else self.log.begun()

    def logged(self, begun: int) -> list[PackedResult]:
        """Results of the pack's calls before ``begun``.

        They were noted before that mark was written, so they are there, and whole.
        """
        if begun not in self.pack or self.log is None:
            return []
        return self.log.results(set(self.pack[: self.pack.index(begun)]))

    # -- its end -------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Have it write its stacks to the fault log and raise in its main thread."""
        if self.log is not None:
            self.log.begin_last_text()
        self.process.signal(INTERRUPT or signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.killed = True
        self.process.signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    def fault_text(self) -> str:
        """What faulthandler wrote."""
        return "" if self.log is None else self.log.last_text()

    def close(self) -> Remains | None:
        """Give everything back, once it is reaped, but for what may wait."""
        if self._closed:
            return self._remains
        self.accepting = NOTHING
        # Kept until the end: an interrupt may have this done again.
        self._remains = self.host.bury(self.arena, self.holder) or self._remains
        self.process.close()
        self._close_pipes()
        self._closed = True
        return self._remains

    def _close_pipes(self) -> None:
        self.output.close()
        if self.gauge is not None:
            self.gauge.close()
        for sock in self._sockets:
            sock.close()
        if self.log is not None:
            self.log.close()
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)

    def close_in_child(self, keep: set[int]) -> None:
        """In a forked child: let go of what is the parent's, but for ``keep``.

        Above all the writing end of the lifeline: the worker must die with the parent,
        not with the last of its children.
        """
        self.output.close(keep)
        if self.gauge is not None:
            self.gauge.close()
        for sock in self._sockets:
            if sock.fileno() in keep:
                sock.detach()
            else:
                sock.close()
        if self.log is not None and self.log.descriptor not in keep:
            self.log.close()
        if self._lifeline >= 0 and self._lifeline not in keep:
            os.close(self._lifeline)
        self._lifeline = -1


def _note_key(gone: deque[bytes], key: bytes, _: object) -> None:
    gone.append(key)  # in a finalizer: no more than that


def _descriptors(config: WorkerConfig) -> set[int]:
    return {
        value.number
        for value in vars(config).values()
        if isinstance(value, PassedDescriptor)
    }


def _output(mode: str) -> tuple[WorkerOutput, dict[int, int]]:
    """What comes from a worker, and what it gets as its descriptors 1 and 2, if any."""
    passed: dict[int, int] = {}
    reading: list[int] = []
    try:
        for number in (1, 2):
            if mode == "forward":
                end, passed[number] = os.pipe()
                reading.append(end)
                os.set_blocking(end, False)
            elif mode == "inherit":
                with contextlib.suppress(OSError):  # this process has none
                    passed[number] = os.dup(number)
    except OSError:
        for descriptor in (*reading, *passed.values()):
            os.close(descriptor)
        raise
    return WorkerOutput(tuple(reading)), passed


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None  # it was removed
