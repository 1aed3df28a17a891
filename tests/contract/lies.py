"""What a worker whose memory is damaged might say. Light: every worker imports this."""

from __future__ import annotations

import os
import random
import signal
import sys
from typing import Any, NoReturn

import numpy as np

from shmexec.wire.channel import send_blocking
from shmexec.wire.messages import (
    Kind,
    Message,
    Ref,
    encode,
    encode_counts,
    encode_result,
)


def line() -> Any:
    """This worker's line to its parent."""
    frame = sys._getframe()
    while frame is not None:
        found = getattr(frame.f_locals.get("self"), "line", None)
        if hasattr(found, "replies"):
            return found
        frame = frame.f_back  # type: ignore[assignment]
    raise LookupError


def arena() -> Any:
    """This worker's arena."""
    frame = sys._getframe()
    while frame is not None:
        found = getattr(frame.f_locals.get("self"), "_memory", None)
        if found is not None and hasattr(found, "arena"):
            return found.arena
        frame = frame.f_back  # type: ignore[assignment]
    raise LookupError


def say(data: bytes) -> None:
    """Send bytes as they are."""
    send_blocking(line().replies, data, packets=line().packets)


def request() -> int:
    """The number of the call that runs."""
    frame = sys._getframe()
    while frame is not None:
        message = frame.f_locals.get("message")
        if isinstance(message, Message):
            return message.request
        frame = frame.f_back  # type: ignore[assignment]
    raise LookupError


def message(**fields: Any) -> Message:
    """A reply to this call, unless the fields say otherwise."""
    start = {
        "kind": Kind.RESULT,
        "request": request(),
        "generation": line().generation,
        "key": encode_counts(0, 0, 0.0),
    }
    return Message(**{**start, **fields})


def ref(**fields: Any) -> Ref:
    """A block of this worker's arena."""
    start = {"lease": 0, "arena": arena().id, "offset": 0, "nbytes": 4096}
    return Ref(**{**start, **fields})


def with_ref(**fields: Any) -> Message:
    """A result in such a block."""
    return message(refs=(ref(**fields),), payload=b"")


HUGE = 2**64 - 1

LIES: dict[str, Any] = {
    "a block past the end": lambda: with_ref(offset=2**62),
    "a block whose end overflows": lambda: with_ref(offset=64, nbytes=HUGE - 32),
    "a huge block": lambda: with_ref(nbytes=2**48),
    "an empty block": lambda: with_ref(nbytes=0),
    "a block beyond its quota": lambda: with_ref(nbytes=1 << 30),
    "the parent's arena": lambda: with_ref(arena=1),
    "an arena that is not there": lambda: with_ref(arena=2**32 - 1),
    "a lease of others": lambda: with_ref(lease=1, arena=1),
    "a lease that is not there": lambda: with_ref(lease=HUGE),
    "another call": lambda: message(request=request() + 1000),
    "no call": lambda: message(request=0),
    "an error about no call": lambda: message(kind=Kind.ERROR, request=0),
    "another worker": lambda: message(generation=line().generation + 1),
    "counts that are none": lambda: message(key=b"123"),
    "fewer bytes than none": lambda: message(number=-1),
    "an item of no stream": lambda: message(kind=Kind.ITEM),
    "ready again": lambda: message(kind=Kind.READY, request=0),
    "its initializer begins": lambda: message(kind=Kind.READY, request=1),
    "refused": lambda: message(kind=Kind.REFUSED, payload=b"\xff"),
    "a pack it was not sent": lambda: message(kind=Kind.PACKED),
    "packed nonsense": lambda: message(kind=Kind.PACKED, payload=b"?" * 30),
    "quota for nothing": lambda: message(kind=Kind.WANT, number=-5),
    "buffers with a log record": lambda: message(kind=Kind.LOG, refs=(ref(),)),
    **{
        f"{kind.name}, which is the parent's": lambda kind=kind: message(kind=kind)
        for kind in (
            Kind.CALL,
            Kind.DEFINE,
            Kind.GRANT,
            Kind.FREE,
            Kind.TRIM,
            Kind.EXIT,
            Kind.ARENA,
            Kind.PACK,
            Kind.CREDIT,
            Kind.CANCEL,
            Kind.RELOAD,
        )
    },
}


def lie(name: str) -> NoReturn:
    """Say it, and wait for what comes of it."""
    said = LIES[name]()
    say(encode(said))
    while True:
        signal.pause()


def say_time(**times: float) -> NoReturn:
    """Claim that the call took so long, or began then."""
    say(encode(message(**times, payload=b"\x80\x05N.")))
    while True:
        signal.pause()


def answer_with(kind: int, payload: bytes) -> NoReturn:
    """Answer with this pickle, and end."""
    say(encode(message(kind=Kind(kind), payload=payload)))
    os._exit(0)


def garble(seed: int, number: int) -> int:
    """Send messages as workers do, but for some bytes; then return."""
    rng = random.Random(seed)
    result = encode_result(request(), Kind.RESULT, 0.1, b"\x80\x05N.", 0.1)
    for _ in range(number):
        kind = rng.choice([*Kind])
        said = message(
            kind=kind,
            number=rng.choice([0, 1, 4096, 2**40]),
            refs=tuple(ref(offset=4096 * i) for i in range(rng.randrange(3))),
            leases=tuple(rng.randrange(40) for _ in range(rng.randrange(3))),
            payload=rng.choice([b"", b"\x80\x05N.", result, result * 2]),
        )
        data = bytearray(encode(said))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.choice([0, 1, 255, rng.randrange(256)])
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        say(bytes(data))
    return os.getpid()


def sent_objects(dtype: str) -> Any:
    """A result whose pickle makes an array of objects of bytes."""
    return _Rebuilt(np.full(100_000, 255, np.uint8), dtype, (8,), (8,))


def sent_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """A result whose pickle makes an array with these strides."""
    return _Rebuilt(np.full(100_000, 255, np.uint8), "u1", shape, strides)


class _Rebuilt:
    """Pickles as what this package's own pickles do for a view, with wrong figures."""

    def __init__(self, near: np.ndarray, *parts: Any) -> None:
        self.near, self.parts = near, parts

    def __reduce__(self) -> Any:
        from shmexec.wire.pickling import rebuild_view

        dtype, shape, strides = self.parts
        return _on_window, (rebuild_view, self.near, dtype, shape, strides)


def _on_window(rebuild: Any, near: np.ndarray, dtype: str, *figures: Any) -> Any:
    window: Any = near
    while type(window.base).__name__ != "Loan":
        window = window.base
    return rebuild(near, dtype, *figures, window.base.offset, None)
