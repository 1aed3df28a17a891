"""Streams, where calls run one at a time: what a call yields, as long as there is credit."""

from __future__ import annotations

import os
from typing import Any

from shmexec.deadline import now
from shmexec.wire.messages import Kind, Message
from shmexec.wire.pickling import Pickled, ReplyPickler, dump
from shmexec.worker.calls import Called, Calls
from shmexec.worker.failures import dump_as, pickle_error
from shmexec.worker.line import Line
from shmexec.worker.memory import WorkerMemory
from shmexec.worker.notes import note_read_only
from shmexec.worker.replies import Replies
from shmexec.worker.steps import END, Steps


class Streams:
    """Runs them; takes over what the line hears of credit.

    Args:
        line: To the parent.
        memory: The worker's.
        calls: Runs user code.
        replies: Sends items.
    """

    def __init__(
        self, line: Line, memory: WorkerMemory, calls: Calls, replies: Replies
    ) -> None:
        self._line = line
        self._memory = memory
        self._calls = calls
        self._replies = replies
        self._pid = os.getpid()
        self._credits: dict[int, int | None] = {}  # None: closed
        line.on_credit = self._on_credit

    def run(self, message: Message) -> None:
        """Send what a call yields; then reply, once."""
        started = self._calls.begin(message)
        kind, made = self._start(message)
        answer: tuple[Kind, Pickled] | None = kind, made
        if kind is Kind.ITEM:
            self._credits[message.request] = message.number
            answer = self._send_items(message, *made)
            del self._credits[message.request]
        del made
        if answer is not None:
            self._replies.reply(message, *answer, now() - started, started)

    def _send_items(
        self, message: Message, steps: Steps, called: Called
    ) -> tuple[Kind, Pickled] | None:
        """How it ended; None if that has been said."""
        request = message.request
        while self._may_yield(request):
            self._memory.make_room()
            kind, pickled = self._step(steps, called)
            if os.getpid() != self._pid:
                os._exit(0)  # user code forked, and its child came back from the call
            if kind is not Kind.ITEM:
                if kind is Kind.ERROR:
                    self._close(steps)  # the iterator itself may be sound
                return kind, pickled
            if self._replies.reply(message, kind, pickled, 0.0, 0.0) is Kind.ERROR:
                self._close(steps)  # there was no room for the item
                return None
        return self._close(steps)

    def _start(self, message: Message) -> tuple[Kind, Any]:
        called: Called | None = None
        try:
            fn, args, kwargs = called = self._calls.unpack(message)
            made = self._calls.run(fn, args, kwargs, births=True)
            return Kind.ITEM, (Steps(made), called)
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is the reply)
            if called:
                note_read_only(error, *called)
            return Kind.ERROR, pickle_error(error, skip=1)

    def _step(self, steps: Steps, called: Called) -> tuple[Kind, Pickled]:
        try:
            item = self._calls.run(steps.step, (), {}, births=True)
        except BaseException as error:  # noqa: BLE001
            note_read_only(error, *called)
            return Kind.ERROR, pickle_error(error, skip=1)
        if item is END:
            return Kind.RESULT, dump(None, ReplyPickler)
        kind, pickled = dump_as(item, "item")
        return Kind.ITEM if kind is Kind.RESULT else kind, pickled

    def _close(self, steps: Steps) -> tuple[Kind, Pickled]:
        try:
            self._calls.run(steps.close, (), {}, births=True)
        except BaseException as error:  # noqa: BLE001
            return Kind.ERROR, pickle_error(error, skip=1)
        return Kind.RESULT, dump(False, ReplyPickler)  # not to its end

    def _may_yield(self, request: int) -> bool:
        """Use credit for an item; false if nobody wants more.

        Without credit it waits for the parent, which gives more as items are taken, or
        says that the stream is closed: also when its consumer is gone, or the pool ends.
        """
        while True:
            while (message := self._line.receive_nowait()) is not None:
                self._line.postpone(message)
            if self._line.take_postponed(Kind.TRIM) is not None:
                # The stream may go on for long, and others need the memory.
                self._replies.give_back()
            credit = self._credits[request]
            if credit is None:
                return False
            if credit:
                self._credits[request] = credit - 1
                return True
            self._line.postpone(self._line.receive())

    def _on_credit(self, message: Message) -> None:
        self._memory.free(message.leases)
        credit = self._credits.get(message.request)
        if credit is not None:  # else it has ended, or is closed
            more = message.number
            self._credits[message.request] = credit + more if more else None
