"""What goes to workers: calls, and whatever else they are told.

The caller holds the pool's lock, for all of it. Nothing here blocks: what a socket does
not take is kept by the handle's sender, and goes on when the poller says so.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

from shmexec import faultpoints
from shmexec.runtime.calls import Outcome, PackedCall
from shmexec.runtime.leading import WRITE, Poller
from shmexec.runtime.tables import Tables
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler import records as r
from shmexec.wire.messages import (
    Kind,
    Message,
    Ref,
    encode,
    encode_plain,
)
from shmexec.wire.reloads import reloads


class Sending:
    """See the module.

    Args:
        tables: The pool's.
        poller: Tells when a socket that was full takes more.
        tell_later: Has the scheduler told an event, when what it said last is done.
    """

    def __init__(
        self, tables: Tables, poller: Poller, tell_later: Callable[[r.Event], None]
    ) -> None:
        self._tables = tables
        self._host = tables.host
        self._calls = tables.calls
        self._workers = tables.workers
        self._poller = poller
        self._tell_later = tell_later
        self._full: dict[int, WorkerHandle] = {}  # by the descriptors of their sockets

    # -- calls -------------------------------------------------------------------------

    def send(self, command: r.Send) -> None:
        """Send a call, unless it was cancelled a moment ago."""
        call, handle = self._calls[command.call], self._workers[command.worker]
        future = call.future
        if not future.begin():
            # The worker goes on to the next call.
            self._never_begins(call, handle)
            return
        if call.closed:
            # A stream that came back from a worker which died before it began.
            self._tables.outcomes[call.number] = Outcome(call, None, cancelled=True)
            self._never_begins(call, handle)
            return
        error = self._give_arenas(call, handle)
        if error is not None:
            self._tables.outcomes[call.number] = Outcome(call, None, error=error)
            self._never_begins(call, handle)
            return
        self._send_call(call, handle, call.number)

    def _never_begins(self, call: PackedCall, handle: WorkerHandle) -> None:
        self._tables.forget(call.number)
        self._tell_later(r.Finished(call.number, handle.number, ok=False, begun=False))

    def initialize(self, call: PackedCall, handle: WorkerHandle) -> None:
        """Send a new worker the initializer; end it if that cannot be."""
        if self._give_arenas(call, handle) is not None:
            handle.kill()
        self._send_call(call, handle, 0)

    def _give_arenas(self, call: PackedCall, handle: WorkerHandle) -> OSError | None:
        """Have a worker know the arenas that a call refers to; why it cannot."""
        for argument in call.arguments:
            arena = argument.key[0]
            if arena not in handle.arenas:
                try:
                    handle.send_arena(arena)
                except OSError as error:
                    return OSError(
                        error.errno,
                        f"call {call.number} of {call.name}: worker {handle.number} "
                        "could not be given the memory of a shared array: "
                        f"{error.strerror}. Submit it again, or with a copy of the array",
                    )
        return None

    def _send_call(self, call: PackedCall, handle: WorkerHandle, request: int) -> None:
        function = call.function
        handle.output.context = call.context
        if function.pickled or handle.reloads != reloads.stamp:
            handle.send_function(function)
        if call.objects:
            handle.note_objects(call.objects)
        refs: tuple[Ref, ...] = ()
        host = self._host
        if handle.arena.gone:
            handle.send_gone()
        if host.returns.ended:
            host.settle()  # so that this worker can use its dropped results again
        if call.arguments:
            with host.lock:
                refs = tuple(
                    Ref(host.lease(key, handle.holder), key[0], offset, nbytes, mode)
                    for key, offset, nbytes, mode in call.arguments
                )
                handle.leased = refs
            if faultpoints.hook is not None:
                faultpoints.hook("parent.leased", handle)
        number = handle.number
        key, payload = function.key, call.payload
        frees: tuple[int, ...] = ()
        if refs or handle.arena.frees:
            frees = handle.frees()
            spilled = call.spilled
            data = encode(
                Message(
                    Kind.CALL,
                    request,
                    number,
                    call.credit,
                    0.0,
                    refs,
                    frees,
                    key,
                    payload,
                    spilled,
                )
            )
        else:
            data = encode_plain(
                Kind.CALL, request, number, call.credit, 0.0, key, payload
            )
        sender = handle.sender
        # First what is to be sent, then that it was: see `WorkerHandle.mend`.
        sender.doing = data
        handle.leased = ()
        handle.note_sent(request, frees)
        if not sender.go():
            self._watch(handle)
        if frees:
            handle.freed(frees)

    def send_pack(self, command: r.SendPack) -> None:
        """Send several calls of one function in one message."""
        handle = self._workers[command.worker]
        entries = []
        dropped = []
        function = None
        for number in command.calls:
            call = self._calls[number]
            if call.future.begin():
                entries.append((number, call.payload))
                function = call.function
                handle.output.context = call.context
            else:  # cancelled a moment ago
                self._tables.forget(number)
                dropped.append((number, False, 0.0))
        if dropped:
            ended = function is None
            self._tell_later(r.PackReplied(handle.number, dropped, ended))
        if function is None:
            return
        if function.pickled or handle.reloads != reloads.stamp:
            handle.send_function(function)
        if self._host.returns.ended:
            self._host.settle()
        frees = handle.frees()
        data = encode(
            Message(
                Kind.PACK,
                0,
                handle.number,
                0,
                command.deadline,
                (),
                frees,
                function.key,
                pickle.dumps(entries, 5),
            )
        )
        handle.sender.doing = data
        handle.pack = tuple([number for number, _ in entries])
        handle.freeing = frees
        if not handle.sender.go():
            self._watch(handle)
        handle.freed(frees)

    # -- the rest ----------------------------------------------------------------------

    def give_credit(self, number: int, credit: int) -> None:
        """Let a stream's call yield so many items more; with 0, have it end."""
        call = self._tables.machine.calls.get(number)
        if call is None or call.worker is None or call.stopping:
            return
        handle = self._workers[call.worker.id]
        if self._host.returns.ended:
            self._host.settle()  # items that were dropped make room for others
        frees = handle.frees()
        self.tell(handle, Message(Kind.CREDIT, number, number=credit, leases=frees))

    def interrupt(self, command: r.Interrupt) -> None:
        """Ask a worker to cancel one call of several that it runs."""
        self.tell(self._workers[command.worker], Message(Kind.CANCEL, command.call))

    def exit(self, command: r.Exit) -> None:
        """Ask a worker to end."""
        handle = self._workers.get(command.worker)
        if handle is not None:
            self.ask_to_end(handle)

    def ask_to_end(self, handle: WorkerHandle) -> None:
        """The same, of one that may not be in the tables yet."""
        self.tell(handle, Message(Kind.EXIT))
        handle.asked = True

    def tell(self, handle: WorkerHandle, message: Message) -> None:
        """Send a worker a message."""
        if not handle.send(message):
            self._watch(handle)

    # -- sockets that are full -----------------------------------------------------------

    def _watch(self, handle: WorkerHandle) -> None:
        descriptor = handle.sender.sock.fileno()
        self._full[descriptor] = handle
        self._poller.add(descriptor, WRITE)

    def mend(self, handle: WorkerHandle) -> None:
        """An interrupt may have struck as something was sent: have it go out."""
        handle.mend()
        if not handle.sender.flush():
            self._watch(handle)

    def go_on(self, descriptor: int, event: int) -> None:
        """A socket takes more, or never will."""
        handle = self._full.get(descriptor)
        if handle is not None and (handle.sender.flush() or event & ~WRITE):
            self._unwatch(descriptor)

    def forget(self, handle: WorkerHandle) -> None:
        """A worker has ended; before its socket is closed."""
        self._unwatch(handle.sender.sock.fileno())

    def _unwatch(self, descriptor: int) -> None:
        self._poller.remove(descriptor)
        self._full.pop(descriptor, None)

    def after_fork_in_child(self) -> None:
        """The sockets are the parent's."""
        self._full.clear()
