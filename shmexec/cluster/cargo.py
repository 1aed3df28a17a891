"""What Dask moves between machines: a sealed value, as bytes that nobody opens on the way.

Pickled by protocol 5, its array goes beside the pickle, so that Dask copies nothing. On a
node its bytes are put into shared memory when a call needs them, once; then they are
there for all workers of that node, for as long as Dask keeps the cargo.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from shmexec.errors import SharedMemoryFull
from shmexec.options import INLINE_LIMIT
from shmexec.sharing import share
from shmexec.wire.objects import PackedObject, Shared, SharedObject
from shmexec.wire.pickling import CallPickler
from shmexec.worker.remote import Form, Sealed, open_sealed


class Cargo:
    """A sealed value.

    Args:
        form: What the bytes are, see :mod:`shmexec.worker.remote`.
        data: The bytes.
        kept: Whether workers shall keep what is made of them, as they do with objects
            that were shared.
    """

    __slots__ = ("__weakref__", "_handle", "_lock", "_placed", "data", "form", "kept")

    def __init__(self, form: Form, data: np.ndarray, kept: bool = False) -> None:
        self.form = form
        self.data = data
        self.kept = kept
        self._lock = threading.Lock()  # guards the move into shared memory
        self._placed = False
        self._handle: Shared[None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Cargo, (self.form, self.data, self.kept)

    def __sizeof__(self) -> int:
        """What Dask counts it as."""
        return 200 + self.data.nbytes

    def open(self) -> Any:
        """The value, to be written to."""
        writable = self.data.flags.writeable
        return open_sealed(self.form, self.data if writable else self.data.copy())

    def placed(self) -> np.ndarray:
        """The bytes, in shared memory from now on if they are many."""
        with self._lock:
            if not self._placed:
                self._place()
            return self.data

    def part(self) -> Sealed | Shared[None]:
        """What a call on this node is given, which costs no copy after the first."""
        data = self.placed()
        return Sealed(self.form, data) if self._handle is None else self._handle

    def _place(self) -> None:
        self._placed = True
        if self.data.nbytes >= INLINE_LIMIT:
            # Without room it is copied for each call instead.
            with contextlib.suppress(SharedMemoryFull):
                self.data = share(self.data)
        if self.kept:
            self._handle = Shared(None, SharedObject("object", self.data, ()))


def pack(
    value: Any, make_pickler: Callable[[io.BytesIO, list[Any]], CallPickler]
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Pack a value; returns the bytes, and the parts that are not in them."""
    packed = PackedObject(value, make_pickler)
    data = np.zeros(packed.nbytes, np.uint8)  # gaps count, too, in a digest
    packed.fill(data)
    return data, packed.parts
