"""What workers print and log: from their pipes to the program's streams and loggers.

The leader reads (:meth:`Outputs.take`, and :meth:`Outputs.drain` when a worker replies)
and puts what it read into a queue; whoever resolves futures writes it first, outside of
all locks, since ``sys.stdout`` may be anything. The queue has one writer at a time, so
that it is written in order; its numbers tell what must be written before a future may be
resolved.

Each piece is written in the context of the call that its worker was sent last, if that
has one: see :mod:`shmexec.runtime.cells`.

Every wait and its waker: a thread whose future needs text that another thread writes
waits for that one to end its turn, for :data:`PATIENCE` at most, since what the program
has for a stream may itself wait for this thread. A worker that prints into a full pipe
waits for the leader. Pipes are left to fill only while a thread is writing, and it wakes
the leader when it is done.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Collection
from contextvars import Context
from typing import TYPE_CHECKING, Any

from shmexec.runtime.calls import is_for_this_thread
from shmexec.runtime.waiting import unblocking

if TYPE_CHECKING:
    from shmexec.runtime.leading import Leading

CHUNK = 65536
"""Bytes of one read: what a pipe holds, if nobody changed that."""

READS_AT_MOST = 32
"""Reads of one pipe in a row: a pipe holds 1 MiB at most, unless root made it larger."""

QUEUED_AT_MOST = 64
"""Pieces that wait while a thread is writing, before pipes are left to fill."""

HELD_AT_MOST = 65536
"""Characters of a line that are held back until it ends."""

PATIENCE = 1.0
"""Seconds that a result waits for another thread to write what was printed before."""


class WorkerOutput:
    """What comes from one worker; the pool's lock and the leader guard it.

    Attributes:
        descriptors: Reading ends of its pipes; none if its output does not come here.
        last: Number of the last piece that came.
        context: Of the call that the worker was sent last; None where it is no matter.
    """

    def __init__(self, descriptors: tuple[int, ...] = ()) -> None:
        self.descriptors = descriptors
        names = ("stdout", "stderr")[: len(descriptors)]
        self.streams = [_Stream(self, name) for name in names]
        self.unfinished = False
        self.last = 0
        self.context: Context | None = None

    def close(self, keep: Collection[int] = ()) -> None:
        """Close the reading ends, but for ``keep``."""
        descriptors, self.descriptors = self.descriptors, ()
        for descriptor in descriptors:
            if descriptor not in keep:
                os.close(descriptor)


class _Stream:
    """One of its pipes: bytes in, whole lines out."""

    def __init__(self, output: WorkerOutput, name: str) -> None:
        self.output = output
        self.landed: list[bytes] = []  # read, and not in the queue yet
        self.unfinished = False
        self._name = name
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""

    def write(self, data: bytes) -> None:
        """Write the lines that are whole; without data all that there is."""
        text = self._held + self._decoder.decode(data, final=not data)
        end = len(text)
        if data:
            # A carriage return ends what a progress bar draws.
            end = max(text.rfind("\n"), text.rfind("\r")) + 1
            if len(text) - end > HELD_AT_MOST:
                end = len(text)
        self._held = text[end:]
        if end:
            _print(self._name, text[:end])


class _Records:
    """Log records, for the program's loggers."""

    @staticmethod
    def write(data: bytes) -> None:
        """Have the logger of that name here handle it, if it wants that level."""
        import logging
        import pickle

        fields, extra = pickle.loads(data)
        with contextlib.suppress(Exception):  # of a class that is not known here
            fields.update(pickle.loads(extra))
        record = logging.makeLogRecord(fields)
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)


_RECORDS = _Records()


def _print(name: str, text: str) -> None:
    stream = getattr(sys, name)
    if stream is None:
        return
    try:
        stream.write(text)
    except UnicodeEncodeError as error:
        stream.write(
            text.encode(error.encoding, "backslashreplace").decode(error.encoding)
        )


class Outputs:
    """See the module. One for each pool."""

    def __init__(self, leading: Leading) -> None:
        from shmexec.runtime.leading import Poller

        self._leading = leading
        self._check = (
            Poller()
        )  # the same pipes: tells at once whether anything is there
        self._streams: dict[int, _Stream] = {}
        self._number = 0
        self.queue: deque[tuple[int, Any, bytes, Context | None]] = deque()
        self.written = 0
        """Number of the last piece that was written, or given up."""
        self.writer: int | None = None
        """The thread that is writing."""
        self.muted: set[int] = set()
        """Pipes that are left to fill."""
        self._turn = threading.Lock()

    # -- for the leader ----------------------------------------------------------------

    def adopt(self, output: WorkerOutput) -> None:
        """Read a worker's pipes from now on."""
        for descriptor, stream in zip(output.descriptors, output.streams, strict=True):
            self._streams[descriptor] = stream
            self._check.add(descriptor)
            self._leading.poller.add(descriptor)

    def drop(self, output: WorkerOutput) -> int:
        """Its worker has ended: read what is left, and no more; as :meth:`drain`."""
        for descriptor in output.descriptors:
            self._read_all(descriptor)
            self._forget(descriptor)
        self._finish(output)
        return output.last

    def _forget(self, descriptor: int) -> None:
        # Before anything else: a pipe that all writers have closed is always ready.
        self._leading.poller.remove(descriptor)
        self._check.remove(descriptor)
        self.muted.discard(descriptor)
        self._streams.pop(descriptor, None)

    def take(self, descriptor: int) -> None:
        """Read once, unless a thread is still writing a good deal."""
        if self._is_writing() and len(self.queue) > QUEUED_AT_MOST:
            self._leading.poller.remove(descriptor)
            self.muted.add(descriptor)
            if not self._is_writing():  # it ended just now, and may not have seen this
                self._leading.waker.wake()
        else:
            self._read(descriptor)

    def _is_writing(self) -> bool:
        return self.writer is not None

    def unmute(self) -> None:
        """Read all pipes again, if what waited is written."""
        if self.writer is None or len(self.queue) <= QUEUED_AT_MOST:
            while self.muted:
                self._leading.poller.add(self.muted.pop())

    def drain(self, output: WorkerOutput) -> int:
        """Read what came before a reply; the number of this worker's last piece.

        It was written before the reply, so it is there. Whatever others printed
        meanwhile comes along.
        """
        if self._streams:
            for descriptor, _ in self._check.poll(0.0):
                self._read_all(descriptor)
        if output.unfinished:
            self._finish(output)
        return output.last

    def _read_all(self, descriptor: int) -> None:
        for _ in range(READS_AT_MOST):
            if self._read(descriptor) < CHUNK:
                break

    def _read(self, descriptor: int) -> int:
        """Read once; how many bytes there were."""
        stream = self._streams.get(descriptor)
        if stream is None:
            return 0
        landed = stream.landed
        try:
            # Out of the kernel and into a list in one C call, as replies are.
            landed.extend(map(os.read, (descriptor,), (CHUNK,)))
        except BlockingIOError:
            return 0
        except OSError:
            landed.append(b"")
        size = len(landed[-1]) if landed else 0
        if not size:
            self._forget(descriptor)
        # An interrupt may have left some there.
        while landed and not landed[-1]:
            landed.pop()
        while landed:
            stream.unfinished = landed[0][-1] != 10
            stream.output.unfinished |= stream.unfinished
            output = stream.output
            number, context = self._next(output), (output.context,)
            self.queue.extend(
                zip((number,), (stream,), map(landed.pop, (0,)), context, strict=False)
            )
        return size

    def _finish(self, output: WorkerOutput) -> None:
        """Have a last line without an end written as it is."""
        for stream in output.streams:
            if stream.unfinished:
                self.queue.append((self._next(output), stream, b"", output.context))
                stream.unfinished = False
        output.unfinished = False

    def _next(self, output: WorkerOutput) -> int:
        self._number += 1
        output.last = self._number
        return self._number

    def take_record(self, output: WorkerOutput, data: bytes) -> None:
        """A log record came."""
        self.queue.append((self._next(output), _RECORDS, data, output.context))

    # -- for who resolves futures --------------------------------------------------------

    def write(self) -> None:
        """Write what has come, unless another thread does so just now."""
        if self.queue:
            self._take_turn(0.0)

    def settle(self, number: int) -> None:
        """Have all up to a number written: here, or by the thread that does so now."""
        if self.written < number:
            self._take_turn(PATIENCE)

    def _take_turn(self, timeout: float) -> None:
        me = threading.get_ident()
        if self.writer == me:  # the stream called back into the pool
            self._write(len(self.queue))
            return
        got: list[bool] = []
        noted = False
        try:
            # One C call, so that an interrupt cannot fall between lock and note.
            got.extend(map(self._turn.acquire, (True,), (timeout,)))
            if got[0]:
                self.writer, noted = me, True
                unblocking(self._write, len(self.queue))
        finally:
            if noted:
                self.step_aside()
            elif got and got[0]:
                self._turn.release()

    def step_aside(self) -> None:
        """If this thread is writing, let others do so.

        It has done its share; or the stream called back into the pool, and waits for
        what another thread must resolve, after what that one has to write.
        """
        if self.writer == threading.get_ident():
            self.writer = None
            self._turn.release()
            if self.queue or self.muted:
                # It came meanwhile, and who read it left it to this thread.
                self._leading.wake()

    def _write(self, pieces: int) -> None:
        """So many and no more: this thread has other things to do, others print on."""
        me = threading.get_ident()
        for _ in range(pieces):
            if self.writer != me:  # it stepped aside
                break
            try:
                number, stream, data, context = self.queue.popleft()
            except IndexError:  # the stream called back, and that was written there
                break
            try:
                if context is None:
                    stream.write(data)
                else:  # a copy: what is written may have more written, in the same one
                    context.copy().run(stream.write, data)
            except BaseException as error:
                # Whatever is wrong with a stream here is no fault of a call.
                if is_for_this_thread(error):
                    raise
            finally:
                self.written = max(self.written, number)

    # -- the end -------------------------------------------------------------------------

    def close(self) -> None:
        """Close what asks the pipes."""
        self._check.close()

    def after_fork_in_child(self) -> None:
        """The program's own output is not this process's."""
        self._turn = threading.Lock()
        self.writer = None
        self.queue.clear()
        self._streams.clear()
        self.close()
