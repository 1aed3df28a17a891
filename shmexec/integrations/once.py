"""A program's arrays in shared memory, each once, for calls that are pickled.

Arrays are known by identity, as long as they live: calls that are given the same one, or
views of the same one, at any depth in their arguments, get views of one copy. Its
contents are those of the first call: whoever changes the array later must make another
:class:`SharedOnce`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from functools import partial
from typing import Any, Literal, cast

import numpy as np

from shmexec import sharing
from shmexec.errors import SharedMemoryFull
from shmexec.memory.files import FileArray, in_file
from shmexec.memory.views import Sharing

_WRITABLE_FILES = ("r+", "w+")


class _Copies:
    """What was copied of one array, the owner of its memory.

    Attributes:
        owner: That array.
        whole: Its bytes; None if only parts were needed so far.
        parts: Copies of views, by where they lie and how.
        in_parts: Bytes of all of those.
    """

    __slots__ = ("in_parts", "owner", "parts", "whole")

    def __init__(self, owner: weakref.ref[np.ndarray]) -> None:
        self.owner = owner
        self.whole: np.ndarray | None = None
        self.parts: dict[Hashable, np.ndarray] = {}
        self.in_parts = 0


class SharedOnce:
    """Gives, for an array, what a call gets in its place; see the module.

    Copies go when the array that they were made of dies, or this does, and the calls
    that were given one are done.

    Args:
        larger_than: Bytes; arrays of no more are left alone.
        mode: How they are shared, see :func:`shmexec.share`; None: not at all.
    """

    def __init__(self, larger_than: int, mode: Sharing | None) -> None:
        self._larger_than = larger_than
        self._mode = mode
        # Held while bytes are copied: who needs the same array waits for its copy.
        self._lock = threading.Lock()
        self._copies: dict[int, _Copies] = {}

    def __call__(self, array: np.ndarray) -> np.ndarray | FileArray | None:
        """What is to be pickled in the place of an array; None: it is, as ever.

        Arrays in files that were opened to be written to stay in their files.
        """
        if array.dtype.hasobject:
            return None
        file = in_file(array, _WRITABLE_FILES)
        if file is not None:
            return file
        if self._mode is None or array.nbytes <= self._larger_than:
            return None
        owner = _owner(array)
        if _is_made_anew(owner):
            return None
        try:
            with self._lock:
                return self._shared(array, owner)
        except SharedMemoryFull:
            return None  # the call that it is for may wait for room; this may not

    def _shared(self, array: np.ndarray, owner: np.ndarray) -> np.ndarray:
        copies = self._copies_of(owner)
        # Views are copied alone as long as that takes less than all that they show.
        enough = array.nbytes + max(copies.in_parts, array.nbytes)
        if copies.whole is None and owner.flags.forc and owner.nbytes <= enough:
            copies.whole = self._copied(_bytes_of(owner))
            copies.parts.clear()
        if copies.whole is not None:
            begin = _address(array) - _address(owner)
            return np.ndarray(
                array.shape, array.dtype, copies.whole, begin, array.strides
            )
        place = (_address(array), array.shape, array.strides, array.dtype)
        part = copies.parts.get(place)
        if part is None:
            part = copies.parts[place] = self._copied(array.view(np.ndarray))
            copies.in_parts += array.nbytes
        return part

    def _copies_of(self, owner: np.ndarray) -> _Copies:
        key = id(owner)
        found = self._copies.get(key)
        if found is None or found.owner() is not owner:
            # Not this, but a reference to it: large memory cannot wait until the
            # garbage collector finds a cycle.
            forget = partial(_forget, weakref.ref(self), key)
            found = self._copies[key] = _Copies(weakref.ref(owner, forget))
        return found

    def _copied(self, given: np.ndarray) -> np.ndarray:
        order: Literal["C", "F"] = "F" if given.flags.fnc else "C"
        copy = sharing.empty(given.shape, given.dtype, order)
        np.copyto(copy, given)
        return sharing.share(copy, cast("Sharing", self._mode))


def _forget(
    once: weakref.ref[SharedOnce], key: int, died: weakref.ref[np.ndarray]
) -> None:
    """An array died: drop what was copied of it. A finalizer, which takes no lock."""
    there = once()
    if there is not None:
        found = there._copies.get(key)  # noqa: SLF001
        if found is not None and found.owner is died:  # no other has that id by now
            there._copies.pop(key, None)  # noqa: SLF001


def _owner(array: np.ndarray) -> np.ndarray:
    """The array whose memory a view shows, or the first on memory of another kind."""
    owner: Any = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return cast("np.ndarray", owner)


def _is_made_anew(owner: np.ndarray) -> bool:
    """Whether each pickle of the same data has an array of its own, as of tensors.

    These have no use for read-only memory, either.
    """
    return type(owner.base).__module__.partition(".")[0] == "torch"


def _bytes_of(array: np.ndarray) -> np.ndarray:
    flat: np.ndarray = array.view(np.ndarray).ravel(order="K")
    return flat.view(np.uint8)


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
