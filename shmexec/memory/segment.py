"""A piece of memory that several processes map; has no name that anybody could guess.

On Linux it is a sealed, sparse ``memfd``. Elsewhere, and on request, it is a segment of
``multiprocessing.shared_memory`` whose name is removed as soon as it exists: both kinds
travel as a descriptor and vanish with the last process that holds them.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from typing import Literal

import numpy as np

from shmexec import limits
from shmexec.memory.allocator import CHUNK

Kind = Literal["memfd", "posix"]

# Linux 5.14 and later; the module mmap has no names for them yet.
_POPULATE_READ = 22
_POPULATE_WRITE = 23
_SMALLEST = 1 << 20


class Segment:
    """One mapping of ``size`` bytes, readable and, if not ``readonly``, writable.

    Attributes:
        kind: ``"memfd"`` or ``"posix"``.
        size: Bytes of address space; pages exist only where committed.
        address: Where this process maps it.
    """

    def __init__(
        self, kind: Kind, descriptor: int, size: int, *, readonly: bool = False
    ) -> None:
        """Map an existing segment; takes the descriptor over."""
        self.kind = kind
        self._populate = _POPULATE_READ if readonly else _POPULATE_WRITE
        self.size = size
        self._descriptor = descriptor
        try:
            access = mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE
            self.map = mmap.mmap(descriptor, size, access=access)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                doing = f"cannot map {limits.amount(size)} of shared memory"
                raise limits.explained(error, doing) from error
            raise
        # A core dump would otherwise touch, and so allocate, every page.
        if hasattr(mmap, "MADV_DONTDUMP"):
            self.map.madvise(mmap.MADV_DONTDUMP)
        self._bytes = np.frombuffer(self.map, np.uint8)
        self.address: int = self._bytes.__array_interface__["data"][0]
        # Chunks that were populated, as far up as any ever was.
        self._mapped = bytearray()

    @classmethod
    def create(cls, kind: Kind, size: int) -> Segment:
        """Make a segment of ``size`` bytes, or of half as often as it must be.

        A limit on address space (``ulimit -v``) leaves it its share, and may refuse the
        mapping all the same: then the size is halved, down to 1 MiB.

        Raises:
            MemoryError: If not even 1 MiB can be mapped.
            OSError: If there can be no segment at all.
        """
        size = -(-limits.arena_bytes(size) // CHUNK) * CHUNK
        while True:
            try:
                return cls(kind, _open(kind, size), size)
            except OSError as error:
                if error.errno not in {errno.ENOMEM, errno.EINVAL, errno.EFBIG}:
                    raise
                if size // 2 < _SMALLEST:
                    raise MemoryError(error.strerror) from error
                size = size // 2 // CHUNK * CHUNK

    @property
    def descriptor(self) -> int:
        """To be passed to the processes that shall map it too."""
        return self._descriptor

    def part(self, offset: int, nbytes: int) -> np.ndarray:
        """The bytes of a block, writable. They keep the mapping, not the block."""
        return self._bytes[offset : offset + nbytes]

    def commit(self, offset: int, nbytes: int) -> None:
        """Have pages allocated before anybody touches them.

        Raises:
            MemoryError: If the system has none; nothing was touched.
        """
        try:
            if self.kind == "posix" and hasattr(os, "posix_fallocate"):
                # /dev/shm has a size of its own: past it, touching is SIGBUS.
                os.posix_fallocate(self._descriptor, offset, nbytes)
            self.populate(offset, nbytes)
        except OSError as error:
            raise MemoryError(self._refused(error)) from error

    def write(self, offset: int, data: np.ndarray) -> None:
        """Copy bytes to pages that nobody touched yet, by way of the file.

        It allocates them on the way, in little more than half the time of page faults
        and a copy. They are not mapped here then, as `populate` can do later.

        Args:
            offset: Where; any range in which nothing else is.
            data: Contiguous ``uint8``.

        Raises:
            MemoryError: If the system has no memory for them.
        """
        rest = data.data
        while rest:
            try:
                done = os.pwrite(self._descriptor, rest, offset)
            except OSError as error:
                if error.errno not in {errno.ENOSPC, errno.ENOMEM}:
                    raise
                raise MemoryError(self._refused(error)) from error
            rest, offset = rest[done:], offset + done

    def _refused(self, error: OSError) -> str:
        if self.kind == "posix":
            return str(limits.shm_refused(error).strerror)
        return str(limits.explained(error, "no shared memory").strerror)

    def populate(self, offset: int, nbytes: int) -> None:
        """Enter pages into this process's page table, in one go, at first sight."""
        first, last = offset // CHUNK, -(-(offset + nbytes) // CHUNK)
        if last > len(self._mapped):
            self._mapped.extend(bytes(last - len(self._mapped)))
        fresh = self._mapped.find(0, first, last)
        if fresh < 0:
            return
        start, stop = fresh * CHUNK, min(last * CHUNK, self.size)
        try:
            self.map.madvise(self._populate, start, stop - start)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # An older kernel, or none of Linux: pages come as they are touched.
            if self.kind == "memfd" and self._descriptor >= 0:
                os.posix_fallocate(self._descriptor, start, stop - start)
        self._mapped[fresh:last] = b"\x01" * (last - fresh)

    def punch(self, offset: int, nbytes: int) -> None:
        """Give pages back to the system; the range reads as zeros afterwards."""
        first = offset // CHUNK
        last = min((offset + nbytes) // CHUNK, len(self._mapped))
        if first < last:
            self._mapped[first:last] = bytes(last - first)
        if hasattr(mmap, "MADV_REMOVE"):
            self.map.madvise(mmap.MADV_REMOVE, offset, nbytes)

    def close(self) -> None:
        """Close the descriptor. The mapping goes when its last view dies."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Borrowed:
    """Another process's segment, mapped in the ways in which it is used.

    Args:
        kind: Its kind.
        descriptor: Is taken over.
        size: Its bytes.
    """

    def __init__(self, kind: Kind, descriptor: int, size: int) -> None:
        self._kind = kind
        self._descriptor = descriptor
        self._size = size
        self._mapped: dict[bool, Segment] = {}

    def segment(self, *, readonly: bool) -> Segment:
        """All of it, mapped once read-only and once writable, each at first use.

        Raises:
            OSError: If it cannot be mapped.
        """
        found = self._mapped.get(readonly)
        if found is None:
            found = Segment(
                self._kind, os.dup(self._descriptor), self._size, readonly=readonly
            )
            found.close()  # its owner commits its pages; the mapping is enough
            self._mapped[readonly] = found
        return found

    def private(self, offset: int, nbytes: int) -> PrivatePages:
        """A range of it; pages that are written to become this process's own.

        Raises:
            OSError: If it cannot be mapped.
            ValueError: If the range is not inside.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self._size:
            msg = f"range [{offset}, +{nbytes}) lies outside of {self._size} bytes"
            raise ValueError(msg)
        return PrivatePages(self._descriptor, offset, nbytes, self._size)

    def close(self) -> None:
        """Let go of it. A mapping goes when its last view dies."""
        self._mapped.clear()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class PrivatePages:
    """A private mapping of some of a segment's pages; ends with its last view.

    Attributes:
        address: Where the segment would begin, were all of it mapped.
        size: Bytes of that segment.
    """

    def __init__(self, descriptor: int, offset: int, nbytes: int, size: int) -> None:
        self.size = size
        first = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        length = offset + max(nbytes, 1) - first
        pages = mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY, offset=first)
        self._bytes = np.frombuffer(pages, np.uint8)
        self.address: int = self._bytes.__array_interface__["data"][0] - first

    def populate(self, offset: int, nbytes: int) -> None:
        """Pages come as they are touched: few may be."""


def _open(kind: Kind, size: int) -> int:
    return _memfd(size) if kind == "memfd" else _unlinked_shm(size)


def _memfd(size: int) -> int:
    import fcntl

    try:
        descriptor = os.memfd_create("shmexec", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise limits.explained(error, "no shared memory") from error
    try:
        # Nobody can name it; who finds it below /proc shall have to be this user, too.
        os.fchmod(descriptor, 0o600)
        _grow(descriptor, size)
        # Otherwise any worker could truncate it under everyone's feet.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _unlinked_shm(size: int) -> int:
    from multiprocessing import shared_memory

    # Where it may grow, it is made small: a size that is refused would upset the resource
    # tracker, which is told of segments only when they have theirs.
    grows = sys.platform == "linux"
    try:
        first = CHUNK if grows else size
        memory = shared_memory.SharedMemory(create=True, size=first)
    except OSError as error:
        raise limits.shm_refused(error) from error
    try:
        # No public name for the descriptor; the segment has no other portable handle.
        descriptor = os.dup(memory._fd)  # type: ignore[attr-defined] # noqa: SLF001
    finally:
        memory.unlink()
        memory.close()
    if grows:
        try:
            _grow(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def _grow(descriptor: int, size: int) -> None:
    try:
        os.ftruncate(descriptor, size)
    except OSError as error:
        raise limits.explained(error, "shared memory") from error
