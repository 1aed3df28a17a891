"""Results of calls that are kept, in memory or in a folder, by a key.

A result is kept as a pickle and copies of its buffers, in the memory of this process, not
in shared memory. Whoever is given it gets copies of those again: results are their
owner's, to write to. So keeping costs one copy, and giving another.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import pickle
import struct
import threading
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cloudpickle

from shmexec.options import byte_count

_OVERHEAD = 500
"""Bytes that an entry takes beside its contents."""


class Blob(NamedTuple):
    """A pickled result."""

    payload: bytes
    buffers: tuple[bytes, ...]

    @classmethod
    def of(cls, value: object) -> Blob | None:
        """A result as bytes; None if it cannot be pickled."""
        for dumps in (pickle.dumps, cloudpickle.dumps):
            buffers: list[pickle.PickleBuffer] = []
            try:
                payload = dumps(value, 5, buffer_callback=buffers.append)
                return cls(payload, tuple(_bytes(each) for each in buffers))
            except Exception:  # noqa: BLE001, S112  (then it is not kept)
                continue
        return None

    def value(self) -> Any:
        """The result, once more; what it is made of is writable."""
        return pickle.loads(self.payload, buffers=map(bytearray, self.buffers))

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return _OVERHEAD + len(self.payload) + sum(map(len, self.buffers))


def _bytes(buffer: pickle.PickleBuffer) -> bytes:
    return bytes(buffer.raw())


class Store(Protocol):
    """Where results are kept."""

    def get(self, key: bytes) -> Blob | None:
        """What was kept under a key; None if it is not there, or damaged."""

    def put(self, key: bytes, blob: Blob) -> None:
        """Keep it, if there is room."""


class MemoryStore:
    """Keeps so many bytes; of more, drops those that were not used longest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._blobs: OrderedDict[bytes, Blob] = OrderedDict()
        # Guards these three; held for bookkeeping only.
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Blob | None:
        """See :class:`Store`."""
        with self._lock:
            blob = self._blobs.get(key)
            if blob is not None:
                self._blobs.move_to_end(key)
            return blob

    def put(self, key: bytes, blob: Blob) -> None:
        """See :class:`Store`."""
        if blob.nbytes > self._limit:
            return
        with self._lock:
            before = self._blobs.pop(key, None)
            if before is not None:
                self._used -= before.nbytes
            self._blobs[key] = blob
            self._used += blob.nbytes
            while self._used > self._limit:
                _, oldest = self._blobs.popitem(last=False)
                self._used -= oldest.nbytes


_MAGIC = b"shmexec result 1\n"
_NUMBER = struct.Struct("<Q")
_CHECK_BYTES = 32
_UNFINISHED = ".unfinished"


class FolderStore:
    """Keeps each result in a file of its own; nothing is ever dropped.

    A file appears under its name when it is complete. One that is damaged is as none.

    Raises:
        OSError: If the folder cannot be made, or not be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._told = False
        folder.mkdir(parents=True, exist_ok=True)
        probe = self._new_name(b"probe")
        probe.touch()
        probe.unlink()

    def get(self, key: bytes) -> Blob | None:
        """See :class:`Store`."""
        try:
            data = self._place(key).read_bytes()
        except OSError:
            return None
        head = len(_MAGIC) + _CHECK_BYTES
        if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : head] != _check(
            memoryview(data)[head:]
        ):
            return None
        (count,) = _NUMBER.unpack_from(data, head)
        sizes = struct.unpack_from(f"<{count}Q", data, head + _NUMBER.size)
        at = head + _NUMBER.size * (count + 1)
        parts = []
        for size in sizes:
            parts.append(data[at : at + size])
            at += size
        return Blob(parts[0], tuple(parts[1:]))

    def put(self, key: bytes, blob: Blob) -> None:
        """See :class:`Store`."""
        parts = (blob.payload, *blob.buffers)
        head = struct.pack(f"<{1 + len(parts)}Q", len(parts), *map(len, parts))
        place, new = self._place(key), self._new_name(key)
        try:
            place.parent.mkdir(exist_ok=True)
            with new.open("wb") as file:
                file.write(_MAGIC + _check(head, *parts) + head)
                file.writelines(parts)
            new.replace(place)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            self._tell(error)

    def _place(self, key: bytes) -> Path:
        name = key.hex()
        return self._folder / name[:2] / name[2:]

    def _new_name(self, key: bytes) -> Path:
        """A name that no other process or thread uses."""
        number = f"{os.getpid()}-{threading.get_ident()}-{next(self._numbers)}"
        return self._folder / f"{key.hex()[:16]}-{number}{_UNFINISHED}"

    def _tell(self, error: OSError) -> None:
        """Say once that results are not kept; the calls went well nevertheless."""
        if self._told:
            return
        self._told = True
        msg = f"results cannot be kept in {str(self._folder)!r}: {error}"
        # As an error it would be taken for the call's.
        with contextlib.suppress(RuntimeWarning):
            warnings.warn(msg, RuntimeWarning, stacklevel=2)


def _check(*parts: bytes | memoryview) -> bytes:
    check = hashlib.blake2b(digest_size=_CHECK_BYTES)
    for part in parts:
        check.update(part)
    return check.digest()


def make_store(cache: object) -> Store | None:
    """What the setting ``cache=`` asks for.

    Raises:
        TypeError, ValueError: If it is no amount of memory, folder or None.
        OSError: If the folder cannot be written to.
    """
    if cache is None:
        return None
    if isinstance(cache, os.PathLike):
        return FolderStore(Path(cache))
    try:
        limit = byte_count("cache", cache)
    except ValueError as error:
        msg = f"{error}; a folder must be a pathlib.Path"
        raise ValueError(msg) from None
    assert limit is not None
    return MemoryStore(limit)
