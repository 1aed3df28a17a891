"""The one record that crosses a pipe, and its codec. Pure.

A message is small and bounded: bulk lies in blocks that it refers to. Every field that
arrives is checked here for shape; whether a range lies inside its arena is checked
where the arena is known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

LARGEST = 65536
"""Bytes of the largest message; a reader that takes this much takes a whole one."""

LONGEST = 1e12
"""Seconds; no duration and no time is as long. What is not a number is none, either."""

REFS_AT_MOST = 512
LEASES_AT_MOST = 1024


class Kind(IntEnum):
    """What a message is about. The comment says who sends it."""

    CALL = 1  # parent: run this
    DEFINE = 2  # parent: keep this function, forget that one
    GRANT = 3  # parent: `number` bytes more of quota, 0 for none
    FREE = 4  # parent: the results at these offsets are no longer used
    TRIM = 5  # parent: give idle memory back
    EXIT = 6  # parent: end
    READY = 7  # worker: initialised; `number` is its process id. With `request` set:
    #            its initializer begins
    REFUSED = 8  # worker: the initializer failed; the payload says why
    RESULT = 9  # worker: the call returned
    ERROR = 10  # worker: the call raised; if about none, what its clean-up raised
    WANT = 11  # worker: `number` bytes of quota, for a result of `request` bytes;
    #            with 0 for arrays of calls to come, to be answered at once
    RETURNED = 12  # worker: gave `number` bytes of quota back; ended these leases
    ARENA = 13  # parent: arena `request` has `number` bytes; its descriptor came aside
    FORGET = 14  # parent: these arenas are gone; worker: `number` did not arrive
    PACK = 15  # parent: run these, beginning none after `seconds` on the clock
    PACKED = 16  # worker: results of a pack; the last ones if `request` is set
    ITEM = 17  # worker: the call yielded; more comes
    CREDIT = 18  # parent: call `request` may yield `number` items more; 0: no more
    LOG = 19  # worker: a log record, for the program's loggers
    CANCEL = 20  # parent: cancel call `request`, one of several that are under way
    RELOAD = 21  # parent: it reloaded the modules in the payload, before the next call


class Mode(IntEnum):
    """How a receiver may use a buffer."""

    PRIVATE = 0  # its own, writable
    SHARED = 1  # read-only
    WRITABLE = 2  # shared and writable
    COPY = 3  # to be copied before use: the call may have to run again
    COPY_ON_WRITE = 4  # its own pages as soon as it writes to them


class Ref(NamedTuple):
    """A buffer that lies in a block."""

    lease: int
    arena: int
    offset: int
    nbytes: int
    mode: int = Mode.PRIVATE


class Message(NamedTuple):
    """One message; fields that a kind does not use stay at their defaults.

    Attributes:
        kind: See :class:`Kind`.
        request: Number of the call, unique in the parent; 0 if about none.
        generation: Number of the worker, unique in the parent.
        number: Depends on the kind. In a call: how many items it may yield before there
            is more credit; 0 if it is not streamed.
        seconds: Duration of the call, in replies; a time of ``time.monotonic`` in packs.
        refs: Buffers; with ``spilled`` the last one holds the payload.
        leases: Leases that ended (from workers) or offsets to free (to them).
        key: How the function is known, see :mod:`shmexec.wire.functions`; in replies
            the worker's counts of blocks and of copying, if they are new.
        payload: A pickle.
        spilled: The payload lies in the last ref instead.
        began: When the call began, in replies, by the worker's ``time.monotonic``.
    """

    kind: Kind
    request: int = 0
    generation: int = 0
    number: int = 0
    seconds: float = 0.0
    refs: tuple[Ref, ...] = ()
    leases: tuple[int, ...] = ()
    key: bytes = b""
    payload: bytes = b""
    spilled: bool = False
    began: float = 0.0


class MalformedMessage(ValueError):
    """Bytes that no peer of this version would send."""


_HEADER = struct.Struct("<BBHHHIQqddI")
_REF = struct.Struct("<QIQQB")
_HEADER_SIZE, _REF_SIZE = _HEADER.size, _REF.size
_MAGIC = 0xA5


def encode_plain(
    kind: int,
    request: int,
    generation: int,
    number: int,
    seconds: float,
    key: bytes,
    payload: bytes,
    began: float = 0.0,
) -> bytes:
    """As :func:`encode`, for the many messages that have neither refs nor leases.

    Raises:
        ValueError: If it would be larger than :data:`LARGEST`.
    """
    size = len(payload)
    if size > LARGEST - _HEADER.size - len(key):
        msg = f"a message with a payload of {size} bytes is larger than {LARGEST}"
        raise ValueError(msg)
    return (
        _HEADER.pack(
            _MAGIC,
            kind,
            0,
            0,
            len(key),
            generation,
            request,
            number,
            seconds,
            began,
            size,
        )
        + key
        + payload
    )


_COUNTS = struct.Struct("<QQd")


class Counts(NamedTuple):
    """What a worker has done so far; travels in the key of a reply."""

    recycled: int = 0
    """Blocks that it gave out."""
    faulted: int = 0
    """Such blocks of new memory."""
    placing: float = 0.0
    """Seconds that it copied results, and waited for room for them."""


def encode_counts(recycled: int, faulted: int, placing: float) -> bytes:
    """The :class:`Counts` as bytes."""
    return _COUNTS.pack(recycled, faulted, placing)


def decode_counts(key: bytes) -> Counts:
    """What :func:`encode_counts` was given.

    Raises:
        MalformedMessage: If it is none.
    """
    if len(key) != _COUNTS.size:
        msg = f"{len(key)} bytes that are no counts of blocks"
        raise MalformedMessage(msg)
    recycled, faulted, placing = _COUNTS.unpack(key)
    if not 0.0 <= placing < LONGEST:
        msg = f"{placing} seconds of copying"
        raise MalformedMessage(msg)
    return Counts(recycled, faulted, placing)


def encode(message: Message) -> bytes:
    """A message as bytes.

    Raises:
        ValueError: If it would be larger than :data:`LARGEST`.
    """
    (
        kind,
        request,
        generation,
        number,
        seconds,
        refs,
        leases,
        key,
        payload,
        spilled,
        began,
    ) = message
    head = _HEADER.pack(
        _MAGIC,
        kind | (0x80 if spilled else 0),
        len(refs),
        len(leases),
        len(key),
        generation,
        request,
        number,
        seconds,
        began,
        len(payload),
    )
    if refs or leases:
        table = b"".join([_REF.pack(*ref) for ref in refs])
        data = b"".join(
            (head, table, struct.pack(f"<{len(leases)}Q", *leases), key, payload)
        )
    else:
        data = head + key + payload
    if len(data) > LARGEST:
        msg = f"a message of {len(data)} bytes is larger than {LARGEST}"
        raise ValueError(msg)
    return data


def decode(data: bytes) -> Message:
    """The message that these bytes are.

    Raises:
        MalformedMessage: If they are none.
    """
    try:
        (
            magic,
            kind,
            n_refs,
            n_leases,
            n_key,
            generation,
            request,
            number,
            secs,
            began,
            size,
        ) = _HEADER.unpack_from(data)
    except struct.error:
        msg = f"{len(data)} bytes that are no message, but less than its head"
        raise MalformedMessage(msg) from None
    refs_at = _HEADER_SIZE
    leases_at = refs_at + n_refs * _REF_SIZE
    key_at = leases_at + n_leases * 8
    payload_at = key_at + n_key
    spilled = kind & 0x80
    if (
        magic != _MAGIC
        or payload_at + size != len(data)
        or kind & 0x7F not in _KINDS
        or (spilled and not n_refs)
        or not 0.0 <= secs < LONGEST
        or not 0.0 <= began < LONGEST
    ):
        msg = f"{len(data)} bytes that are no message (kind {kind}, magic {magic})"
        raise MalformedMessage(msg)
    refs: tuple[Ref, ...] = ()
    if n_refs:
        refs = tuple(map(Ref._make, _REF.iter_unpack(data[refs_at:leases_at])))
    leases: tuple[int, ...] = ()
    if n_leases:
        leases = struct.unpack_from(f"<{n_leases}Q", data, leases_at)
    return Message(
        _KINDS[kind & 0x7F],
        request,
        generation,
        number,
        secs,
        refs,
        leases,
        data[key_at:payload_at],
        data[payload_at:],
        bool(spilled),
        began,
    )


_KINDS = {int(kind): kind for kind in Kind}


class PackedResult(NamedTuple):
    """What came of one call of a pack."""

    request: int
    kind: Kind
    seconds: float
    payload: bytes
    began: float


_RESULT = struct.Struct("<QBddI")


def encode_result(
    request: int, kind: Kind, seconds: float, payload: bytes, began: float
) -> bytes:
    """A packed result as bytes; they are strung together."""
    return _RESULT.pack(request, kind, seconds, began, len(payload)) + payload


def decode_results(data: bytes) -> list[PackedResult]:
    """The packed results that these bytes are.

    Raises:
        MalformedMessage: If they are none.
    """
    found = []
    at, end = 0, len(data)
    while at < end:
        result, at = decode_result(data, at)
        found.append(result)
    return found


def decode_result(data: bytes, at: int) -> tuple[PackedResult, int]:
    """The packed result at an offset, and the offset behind it.

    Raises:
        MalformedMessage: If there is none.
    """
    start = at + _RESULT.size
    if start > len(data):
        msg = f"a packed result of {len(data) - at} bytes"
        raise MalformedMessage(msg)
    request, number, seconds, began, size = _RESULT.unpack_from(data, at)
    kind = _KINDS.get(number)
    if (
        (kind is not Kind.RESULT and kind is not Kind.ERROR)
        or start + size > len(data)
        or not 0.0 <= seconds < LONGEST
        or not 0.0 <= began < LONGEST
    ):
        msg = f"a packed result of kind {number} and {size} bytes"
        raise MalformedMessage(msg)
    payload = data[start : start + size]
    return PackedResult(request, kind, seconds, payload, began), start + size


def in_batches(numbers: Iterable[int]) -> Iterable[tuple[int, ...]]:
    """Split numbers so that each batch fits into one message."""
    batch: list[int] = []
    for number in numbers:
        batch.append(number)
        if len(batch) == LEASES_AT_MOST:
            yield tuple(batch)
            batch.clear()
    if batch:
        yield tuple(batch)
