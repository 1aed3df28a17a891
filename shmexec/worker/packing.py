"""Packs: several calls in one message, whose results go together where they are small."""

from __future__ import annotations

import os
import pickle
from math import inf

from shmexec.deadline import now
from shmexec.wire.messages import Kind, Message, encode_result
from shmexec.worker import output
from shmexec.worker.calls import Calls
from shmexec.worker.replies import Replies
from shmexec.worker.stacks import MARK_BYTES, PACK_LOG_AT

_PACKED_AT_MOST = 4096
"""Bytes of a result that goes with others."""

_PACKED_BYTES = 16384
"""Bytes of results that are worth a message of their own."""


def run_pack(message: Message, calls: Calls, replies: Replies, mark: int) -> None:
    """Run calls until the deadline has passed; the first one in any case.

    The mark comes before the look at the clock: the parent, which reads the mark
    after the deadline, relies on it (see ``Pool._look``). A result is noted where
    the parent can find it before the next call begins, since that may be long, or
    be the end of this process.

    Args:
        message: The pack.
        calls: Runs them.
        replies: Sends what comes of them.
        mark: Descriptor of the fault log.
    """
    pid = os.getpid()
    results: list[bytes] = []
    size, at = 0, PACK_LOG_AT
    deadline = inf
    for request, arguments in pickle.loads(message.payload):
        os.pwrite(mark, request.to_bytes(MARK_BYTES, "little"), 0)
        started = now()
        if started >= deadline:
            break
        deadline = message.seconds
        call = Message(Kind.CALL, request, 0, 0, 0.0, (), (), message.key, arguments)
        kind, pickled = calls.execute(call)
        seconds = now() - started
        if os.getpid() != pid:
            os._exit(0)  # user code forked, and its child came back from the call
        if pickled.sources or len(pickled.payload) > _PACKED_AT_MOST:
            replies.reply(call, kind, pickled, seconds, started)
            continue
        output.flush()
        payload = bytes(pickled.payload)
        result = encode_result(request, kind, seconds, payload, started)
        os.pwrite(mark, result, at)
        at += len(result)
        results.append(result)
        size += len(result)
        if size > _PACKED_BYTES:
            replies.send_results(results, ended=False)
            size = 0
    replies.send_results(results, ended=True)
    # The last mark may be that of a call which did not begin here, and may come
    # again. Not before the results are sent: the parent may be looking.
    os.pwrite(mark, bytes(MARK_BYTES), 0)
