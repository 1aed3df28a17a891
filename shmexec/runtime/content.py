"""Digests of values by their content, so that equal arguments are known again.

Values are taken apart as pickle would do it, down to numbers, texts and bytes. Sets count
without their order; dicts with it, since whoever is given one sees it. Two values of one
digest are pickled alike; values that are equal may have two digests, which costs a cache
no more than a miss.
"""

from __future__ import annotations

import copyreg
import hashlib
import pickle
import struct
from collections.abc import Callable, Iterable
from typing import Any, cast

import cloudpickle
import numpy as np

from shmexec.memory.views import loan_of
from shmexec.wire.functions import importable_name
from shmexec.wire.objects import Shared
from shmexec.wire.pickling import is_masked, pickles_like_ndarray

DIGEST_BYTES = 32


class NoDigestError(Exception):
    """A value is more than its content, or cannot be taken apart."""


def digest(*values: object) -> bytes:
    """What names these values by their content.

    Raises:
        NoDigestError: If there is no such name: for an array that is shared to be
            written to, or what cannot be pickled.
    """
    walk = _Walk()
    try:
        walk.add_all(b"(", values)
    except NoDigestError:
        raise
    except Exception as error:
        raise NoDigestError(repr(error)) from error
    return walk.hash.digest()


class _Walk:
    """Takes values apart, and feeds what they are made of to a hash."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._inside: list[object] = []

    def add(self, value: Any) -> None:
        """Feed one value."""
        adder = _ADDERS.get(type(value))
        if adder is not None:
            adder(self, value)
        elif any(value is each for each in self._inside):
            depth = next(i for i, each in enumerate(self._inside) if each is value)
            self._put(b"@", str(depth).encode())  # a circle
        else:
            self._inside.append(value)
            self._add_inner(value)
            self._inside.pop()

    def add_all(self, tag: bytes, values: Iterable[object]) -> None:
        """Feed several values, whose number is told apart from what follows."""
        items = [*values]
        self._put(tag, str(len(items)).encode())
        for item in items:
            self.add(item)

    def _put(self, tag: bytes, data: bytes) -> None:
        """Feed bytes, so that no two sequences of them look the same."""
        self.hash.update(tag + len(data).to_bytes(8, "little"))
        self.hash.update(data)

    def _add_inner(self, value: Any) -> None:
        kind = type(value)
        if kind in {list, tuple}:
            self.add_all(b"[" if kind is list else b"(", value)
        elif kind is dict:
            self.add_all(b"{", (part for item in value.items() for part in item))
        elif kind in {set, frozenset}:
            self._put(b"<", kind.__name__.encode())
            self.add_all(b"<", sorted(digest(item) for item in value))
        elif isinstance(value, np.ndarray):
            self._add_array(value)
        elif isinstance(value, (type, *_FUNCTIONS)):
            name = importable_name(value)
            self._put(b"f", cloudpickle.dumps(value, 5) if name is None else name)
        elif isinstance(value, Shared):
            self.add(value.value)
        else:
            self._add_reduced(value)

    def _add_array(self, array: np.ndarray) -> None:
        loan = loan_of(array)
        if loan is not None and loan.mode == "r+":
            msg = "an array that calls may write to for others to see"
            raise NoDigestError(msg)
        kind: type = type(array)
        if is_masked(kind):
            masked: Any = array
            mask = None if masked.mask is np.ma.nomask else masked.mask
            parts = (masked.data, mask, masked.fill_value, masked.hardmask)
            self.add_all(b"m", parts)
            return
        if not (kind is np.memmap or pickles_like_ndarray(kind)):
            self._add_reduced(array)
            return
        self._put(b"a", f"{kind.__module__}.{kind.__qualname__}".encode())
        plain = array.view(np.ndarray)
        order = "F" if plain.flags.fnc else "C"
        self._put(b"a", repr((plain.shape, order)).encode())
        self._add_dtype(plain.dtype)
        if plain.dtype.hasobject:
            self.add_all(b"O", plain.ravel(order=cast("Any", order)).tolist())
            return
        if order == "F":
            plain = plain.T
        if plain.nbytes:
            flat = np.ascontiguousarray(plain).reshape(-1).view(np.uint8)
            self._put(b"a", str(flat.nbytes).encode())
            self.hash.update(flat.data)

    def _add_dtype(self, dtype: np.dtype) -> None:
        if dtype.fields is None and dtype.subdtype is None:
            self._put(b"t", dtype.str.encode())
        else:
            self._add_reduced(dtype)

    def _add_reduced(self, value: Any) -> None:
        """As the pickle protocol takes it apart."""
        reduce = copyreg.dispatch_table.get(type(value))
        reduced: Any = value.__reduce_ex__(5) if reduce is None else reduce(value)
        if isinstance(reduced, str):
            self._put(b"g", f"{type(value).__module__}:{reduced}".encode())
            return
        make, args, state, items, pairs = (*reduced, None, None, None)[:5]
        self.add_all(b"r", (make, args, state, *_listed(items), *_listed(pairs)))


def _listed(items: Iterable[object] | None) -> list[list[object]]:
    return [] if items is None else [[*items]]


_FUNCTIONS = (type(_listed), type(len))


def _adder(tag: bytes, encode: Callable[[Any], bytes]) -> Callable[[_Walk, Any], None]:
    def add(walk: _Walk, value: Any) -> None:
        walk._put(tag, encode(value))  # noqa: SLF001

    return add


_ADDERS: dict[type, Callable[[_Walk, Any], None]] = {
    type(None): _adder(b"n", lambda _: b""),
    bool: _adder(b"b", lambda value: b"1" if value else b"0"),
    int: _adder(b"i", lambda value: hex(value).encode()),
    # Of their bytes: -0.0 is not 0.0, and NaN is NaN.
    float: _adder(b"d", lambda value: struct.pack("<d", value)),
    complex: _adder(b"c", lambda value: struct.pack("<dd", value.real, value.imag)),
    str: _adder(b"s", lambda value: value.encode("utf-8", "surrogatepass")),
    bytes: _adder(b"y", lambda value: value),
    bytearray: _adder(b"Y", bytes),
    pickle.PickleBuffer: _adder(b"Y", lambda value: bytes(value.raw())),
}
