"""Replies: what came of a call, placed where the parent can reach it, and sent.

With each goes what else the parent should know: the leases that have ended, how much was
copied, how arrays fared.
"""

from __future__ import annotations

from typing import Any

from shmexec import faultpoints
from shmexec.errors import SerializationError
from shmexec.options import INLINE_LIMIT
from shmexec.wire.messages import Kind, Message, encode_plain, in_batches
from shmexec.wire.pickling import Pickled
from shmexec.wire.sources import Source
from shmexec.worker import output
from shmexec.worker.failures import pickle_error
from shmexec.worker.handover import place_all
from shmexec.worker.line import Line
from shmexec.worker.memory import WorkerMemory


class Replies:
    """Sends them.

    Args:
        line: To the parent.
        memory: Where large results are placed.
    """

    def __init__(self, line: Line, memory: WorkerMemory) -> None:
        self._line = line
        self._memory = memory
        self._generation = line.generation

    def reply(
        self,
        message: Message,
        kind: Kind,
        pickled: Pickled,
        seconds: float,
        began: float,
    ) -> Kind:
        """Send it; returns its kind, which is ERROR if there was no room."""
        output.flush()
        reply = None
        if pickled.sources or len(pickled.payload) >= INLINE_LIMIT:
            reply = self._place(message, kind, pickled, seconds, began)
        if faultpoints.hook is not None:
            faultpoints.hook("worker.writing", self._line)
        payload = bytes(pickled.payload) if reply is None else b""
        # The sources hold the result; with it may go the last views of arguments.
        del pickled
        ended = self._memory.ended()
        number, generation = self._memory.copied, self._generation
        counts = self._memory.new_counts()
        if reply is None and not ended:
            request = message.request
            self._line.write(
                encode_plain(
                    kind, request, generation, number, seconds, counts, payload, began
                )
            )
            return kind
        last = self._send_all_but_last(ended)
        if reply is None:
            reply = Message(kind, message.request, generation, number, seconds)
            reply = reply._replace(payload=payload, began=began)
        self._line.send(reply._replace(leases=last, key=counts))
        return reply.kind

    def _place(
        self,
        message: Message,
        kind: Kind,
        pickled: Pickled,
        seconds: float,
        began: float,
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
            failed = pickle_error(error)
            return self._place(message, Kind.ERROR, failed, seconds, began)
        return Message(
            kind,
            message.request,
            self._generation,
            self._memory.copied,
            seconds,
            refs,
            payload=b"" if spilled else payload,
            spilled=spilled,
            began=began,
        )

    def send_results(self, results: list[bytes], *, ended: bool) -> None:
        """Send results of packed calls, and forget them.

        Args:
            results: Each as :func:`encode_result` makes it.
            ended: They are the last ones of their pack.
        """
        last = self._send_all_but_last(self._memory.ended())
        self._line.send(
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

    def give_back(self) -> None:
        """Give back what memory is not needed, as the parent has asked, and tell it."""
        nbytes = self._memory.give_back()
        last = self._send_all_but_last(self._memory.ended())
        self._line.send(Message(Kind.RETURNED, number=nbytes, request=1, leases=last))

    def send_ended(self) -> None:
        """Tell which leases have ended."""
        for leases in in_batches(self._memory.ended()):
            self._line.send(Message(Kind.RETURNED, leases=leases))

    def _send_all_but_last(self, ended: list[int]) -> tuple[int, ...]:
        """Tell of leases that have ended; returns those that go with another message."""
        *others, last = [*in_batches(ended)] or [()]
        for leases in others:
            self._line.send(Message(Kind.RETURNED, leases=leases))
        return last
