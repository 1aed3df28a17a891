"""Arrays that lie in files, and travel by path: each process maps the file itself.

That is possible for any view of an ``np.memmap``, as long as the path still leads to the
file that is mapped here. Whether it does is looked up, never assumed: on both sides the
file is known by device and inode, which nobody else gets while it is mapped.
"""

from __future__ import annotations

import errno
import mmap
import os
import weakref
from collections.abc import Collection
from typing import Any, NamedTuple, cast

import numpy as np

_OF_A_PROCESS = ("/proc/", "/dev/fd/")
"""Paths that lead elsewhere in another process."""

_mapped: weakref.WeakKeyDictionary[mmap.mmap, tuple[int | None, int]] = (
    weakref.WeakKeyDictionary()
)
"""Inodes of this process's mappings, and the address of byte 0 of the file, mapped or
not. Both never change.
"""

_maps: weakref.WeakValueDictionary[tuple[int, int], mmap.mmap] = (
    weakref.WeakValueDictionary()
)
"""Files that are mapped, whole and read-only, for arrays that are alive."""


class FileArray(NamedTuple):
    """An array in a file: where, and which file it must be.

    Attributes:
        path: Absolute path.
        inode: Device and inode of the file.
        dtype: The array's.
        shape: The array's.
        strides: In bytes, of any sign.
        offset: Of the first element, in bytes from the start of the file.
        writable: Whether what is written goes to the file.
        as_memmap: Whether it opens as ``np.memmap`` rather than as plain array.
    """

    path: str
    inode: tuple[int, int]
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    writable: bool
    as_memmap: bool

    def rows(self, start: int, stop: int) -> FileArray:
        """The same for some rows."""
        return self._replace(
            shape=(stop - start, *self.shape[1:]),
            offset=self.offset + start * self.strides[0],
        )

    def span(self) -> tuple[int, int]:
        """First byte in the file, and the one after the last."""
        low, high = 0, self.dtype.itemsize
        for length, stride in zip(self.shape, self.strides, strict=True):
            if stride < 0:
                low += (length - 1) * stride
            else:
                high += (length - 1) * stride
        return self.offset + low, self.offset + high

    def overlaps(self, other: FileArray) -> bool:
        """Whether both may have bytes of a file in common."""
        (low, high), (others, end) = self.span(), other.span()
        return self.inode == other.inode and low < end and others < high

    def open(self) -> np.ndarray:
        """Map it; views of one file that are read share a mapping while one lives.

        Raises:
            FileNotFoundError: If the path no longer leads to that file.
            ValueError: If the file has become too short, or such an array lies in none.
        """
        if self.span()[0] < 0 or self.dtype.hasobject:
            msg = f"{self.path} cannot hold an array of {self.dtype} from {self.span()}"
            raise ValueError(msg)
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        mapped, start = self._map()
        # Typed loosely: NumPy's stubs know no subclass here.
        new: Any = np.ndarray.__new__
        array: Any = new(
            np.memmap if self.as_memmap else np.ndarray,
            self.shape,
            self.dtype,
            buffer=mapped,
            offset=self.offset - start,
            strides=self.strides,
        )
        if self.as_memmap:
            array._mmap = mapped  # noqa: SLF001
            array.filename = self.path
            array.offset = self.offset
            array.mode = "r+" if self.writable else "r"
        return array  # type: ignore[no-any-return]

    def _map(self) -> tuple[mmap.mmap, int]:
        """A mapping that has it, and where in the file that begins."""
        low, high = self.span()
        found = _maps.get(self.inode)
        try:
            if self.writable or found is None or len(found) < high:
                return self._map_anew(low, high)
            self._check(os.stat(self.path), high)
        except FileNotFoundError as error:
            error.add_note(
                f"{self.path} was memory-mapped when this call was submitted, and is "
                "mapped again in the worker. Keep the file until the call is done."
            )
            raise
        return found, 0

    def _map_anew(self, low: int, high: int) -> tuple[mmap.mmap, int]:
        flags = os.O_RDWR if self.writable else os.O_RDONLY
        descriptor = os.open(self.path, flags | os.O_CLOEXEC)
        try:
            self._check(os.fstat(descriptor), high)
            if self.writable:
                # Only what is needed: flushing takes its time for all that is mapped.
                start = low - low % mmap.ALLOCATIONGRANULARITY
                return mmap.mmap(descriptor, high - start, offset=start), start
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        _maps[self.inode] = mapped
        return mapped, 0

    def _check(self, status: os.stat_result, high: int) -> None:
        if (status.st_dev, status.st_ino) != self.inode:
            raise FileNotFoundError(
                errno.ENOENT, "Another file has this name by now", self.path
            )
        if status.st_size < high:
            msg = (
                f"{self.path} has {status.st_size} bytes, but the array that was mapped "
                f"from it when this call was submitted ends at {high}: it was truncated"
            )
            raise ValueError(msg)


def in_file(array: np.ndarray, modes: Collection[str] = ("r",)) -> FileArray | None:
    """Where an array lies in its file; None if other processes cannot map it alike.

    Args:
        array: An ``np.memmap`` that was opened in one of the modes, or a view of one.
        modes: Of ``"r"``, ``"r+"``, ``"w+"``.
    """
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or not array.nbytes:
        return None
    mapped = getattr(root, "_mmap", None)
    if not isinstance(mapped, mmap.mmap) or root.mode not in modes:
        return None
    if root.filename is None:
        return None  # made from an unnamed file
    path = os.fsdecode(root.filename)
    found = _mapped.get(mapped)
    if found is None:
        address = _address(root)
        found = _mapped[mapped] = _inode_at(address), address - root.offset
    device = _device(path, found[0])
    if device is None:
        return None
    return FileArray(
        path,
        (device, cast("int", found[0])),
        array.dtype,
        array.shape,
        array.strides,
        _address(array) - found[1],
        root.mode != "r",
        isinstance(array, np.memmap),
    )


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _device(path: str, inode: int | None) -> int | None:
    """The device of the file at the path, if that has the inode that is mapped."""
    if path.startswith(_OF_A_PROCESS):
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    # Another file may have that name by now: then what is mapped is copied.
    return status.st_dev if status.st_ino == inode else None


def _inode_at(address: int) -> int | None:
    """Inode of the file that is mapped at an address; None if that cannot be known."""
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                span, _, _, _, inode = line.split(maxsplit=5)[:5]
                start, stop = (int(bound, 16) for bound in span.split("-"))
                if start <= address < stop:
                    return int(inode)
    except OSError:
        pass
    return None
