"""Objects as a pickle and the buffers beside it.

Protocol 5 with out-of-band buffers: arrays of :data:`~shmexec.options.INLINE_LIMIT`
bytes and more, at any depth, leave the pickle as *sources*, to be copied into blocks
once the whole pickle is known to be good. The receiver gets them back as ``uint8``
arrays that lie in those blocks.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any, ClassVar, cast

import cloudpickle
import numpy as np
from cloudpickle import cloudpickle as _tracking

from shmexec.memory.files import FileArray, in_file
from shmexec.memory.views import Loan, Returns, check_inside
from shmexec.options import INLINE_LIMIT
from shmexec.wire import foreign, scripted
from shmexec.wire.buffers import SOURCES_AT_MOST, Buffers
from shmexec.wire.reloads import reduce_renewed, reloads
from shmexec.wire.sources import AnySource, ArraySource, PlacedArray

_ATOMS = frozenset(
    {type(None), bool, int, float, str, bytes}
    | {np.bool_, np.float64, np.float32, np.int64, np.int32, np.uint8}
)
"""Types of which each object is pickled well by the plain pickler."""

_ATOMS_AND_ARRAYS = _ATOMS | {np.ndarray}

_CONTAINERS = frozenset({tuple, list, dict})

_PLAIN_AT_MOST = 32
"""Items of a container that is looked through before pickling; more are not worth it."""

_CODES = {np.dtype(code): np.dtype(code).str for code in "?bBhHiIlLqQefdgFDG"}
"""Short names of dtypes; a dtype's own pickle costs more than a small array's."""

_KEPT_CLASSES: dict[type, None] = {}
"""Classes that went to workers by value; kept, since results refer to them by id."""


class CallPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles what goes to a worker.

    Args:
        file: Where the pickle goes.
        returns: Of the process's memory: what is shared there goes by reference.
    """

    _by_path = True

    def __init__(self, file: io.BytesIO, returns: Returns | None = None) -> None:
        self.buffers = Buffers()
        self._returns = returns
        super().__init__(file, protocol=5, buffer_callback=self.buffers.take)

    def reducer_override(self, obj: Any) -> Any:
        """Arrays and classes our way, all else as cloudpickle does."""
        if obj is rebuild_array or obj is rebuild_view:
            return obj.__name__  # known to be importable
        if isinstance(obj, np.ndarray):
            return self._reduce_shared(obj) or self._reduce_array(obj)
        if type(obj) is FileArray or type(obj) is PlacedArray:
            return self._reduce_place(obj)
        if isinstance(obj, type):
            return self._reduce_class(obj)
        reduce = foreign.reducers.get(type(obj))
        if reduce is not None:
            return reduce(obj, self.buffers)
        renewed = None
        if type(obj) is FunctionType and reloads.stamp:
            renewed = reduce_renewed(obj)
        return renewed or super().reducer_override(obj)

    def _reduce_class(self, cls: type) -> Any:
        reduced = scripted.reduce(cls)
        if reduced is not None:
            return reduced
        reduced = super().reducer_override(cls)
        if cls in _tracking._DYNAMIC_CLASS_TRACKER_BY_CLASS:  # noqa: SLF001
            _KEPT_CLASSES[cls] = None
        return reduced

    def _reduce_array(self, array: np.ndarray) -> Any:
        cls: type = type(array)
        if is_masked(cls):
            return _masked_parts(array)
        plain = cls is np.ndarray or cls is np.memmap
        like_plain = plain or pickles_like_ndarray(cls)
        reduced = None
        if array.base is not None and like_plain and self._by_path:
            file = in_file(array)
            if file is not None:
                reduced = self._file_parts(file, None if plain else cls)
        if like_plain and self.buffers.stand_in is not None and reduced is None:
            reduced = self._reduce_stand_in(array, None if plain else cls)
        if reduced is not None:
            return reduced
        if (
            array.nbytes < INLINE_LIMIT
            or array.dtype.hasobject
            or len(self.buffers.sources) >= SOURCES_AT_MOST
        ):
            return _in_band(array, cls)
        if not like_plain:
            return NotImplemented
        if plain:
            return self._array_parts(array, None)
        return self._array_parts(array.view(np.ndarray), cls)

    def _reduce_place(self, place: FileArray | PlacedArray) -> Any:
        if isinstance(place, FileArray):
            return self._file_parts(place, None)
        hole = self.buffers.hole(place.source)
        return rebuild_array, (hole, place.dtype, place.shape, "C", None)

    def _file_parts(self, file: FileArray, cls: type | None) -> Any:
        self.buffers.in_files += file.dtype.itemsize * math.prod(file.shape)
        return rebuild_from_file, (*file, cls)

    def _reduce_shared(self, array: np.ndarray) -> Any:
        """A shared array as its place in its block; None if it is to be copied."""
        if array.base is None:
            return None
        kind: type[np.ndarray] = type(array)
        cls = None if kind is np.ndarray else kind
        if not (cls is None or pickles_like_ndarray(cls)):
            return None
        return self._view_parts(array, cls, array)

    def _reduce_stand_in(self, array: np.ndarray, cls: type | None) -> Any:
        """What goes in the place of an array, if something does."""
        found = cast("Any", self.buffers.stand_in)(array)
        if found is None:
            return None
        if type(found) is FileArray:
            return self._file_parts(found, cls)
        return self._view_parts(found, cls, array)

    def _view_parts(
        self, array: np.ndarray, cls: type | None, pickled: np.ndarray
    ) -> Any:
        """The place of a shared array, which is ``pickled`` or stands in for that."""
        found = self.buffers.find_shared(array, self._returns)
        if found is None:
            return None
        source, begin = found
        near: Any = source.first
        if near is None:
            source.first = pickled  # which later ones find in the pickle's memo
            near = self.buffers.hole(source)
        dtype = _code(array.dtype)
        return rebuild_view, (near, dtype, array.shape, array.strides, begin, cls)

    def _array_parts(self, array: np.ndarray, cls: type | None) -> Any:
        flags = array.flags
        order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
        hole = self.buffers.hole(ArraySource(array, order))
        return rebuild_array, (hole, _code(array.dtype), array.shape, order, cls)


class ReplyPickler(CallPickler):
    """Pickles what comes back. Classes that the parent sent go by their tracker id.

    By value, they would write the worker's class attributes over the parent's.
    """

    _by_path = False  # what is returned is the caller's, to write to
    _made_here: ClassVar[weakref.WeakSet[type]] = weakref.WeakSet()
    _pickled_classes: ClassVar[weakref.WeakKeyDictionary[type, bytes]] = (
        weakref.WeakKeyDictionary()
    )

    @classmethod
    def note_unknown(cls, made: type) -> None:
        """The parent does not know this class: results take it along by value."""
        cls._made_here.add(made)

    def _reduce_class(self, cls: type) -> Any:
        reduced = scripted.reduce(cls)
        if reduced is not None:
            return reduced
        tracked = _tracking._DYNAMIC_CLASS_TRACKER_BY_CLASS  # noqa: SLF001
        tracker_id = tracked.get(cls)
        made_here = cls in self._made_here
        if self.buffers.for_worker:
            return self._reduce_class_for_worker(cls, made_here)
        if tracker_id is not None and not made_here:
            return find_class, (tracker_id, cls.__qualname__)
        reduced = cloudpickle.Pickler.reducer_override(self, cls)
        if cls in tracked:
            self._made_here.add(cls)
        return reduced

    def _reduce_class_for_worker(self, cls: type, made_here: bool) -> Any:
        """By value beside its tracker id: another worker may have it, or may not."""
        tracked = _tracking._DYNAMIC_CLASS_TRACKER_BY_CLASS  # noqa: SLF001
        if cls not in tracked:
            reduced = cloudpickle.Pickler.reducer_override(self, cls)
            if cls not in tracked:
                return reduced
            made_here = True
            self._made_here.add(cls)
        pickled = self._pickled_classes.get(cls)
        if pickled is None:
            pickled = self._pickled_classes[cls] = cloudpickle.dumps(cls, protocol=5)
        return find_or_make_class, (tracked[cls], pickled, made_here)


def _in_band(array: np.ndarray, cls: type) -> Any:
    """A small array, or one that no block can hold, as part of the pickle."""
    if cls is not np.ndarray and cls is not np.memmap:
        return NotImplemented
    code = _code(array.dtype)
    if type(code) is str and array.nbytes < INLINE_LIMIT:
        order = "F" if array.flags.fnc else "C"
        data = bytearray(array.tobytes(cast("Any", order)))
        return rebuild_array, (data, code, array.shape, order, None)
    if cls is np.memmap or not array.flags.writeable:
        # In band, a read-only buffer would come out read-only.
        return np.array(array, subok=False).__reduce_ex__(5)
    return NotImplemented


def is_masked(cls: type) -> bool:
    """Whether it is ``np.ma.MaskedArray``."""
    # Asking for np.ma would import it, which takes as long as a worker's start.
    ma: Any = sys.modules.get("numpy.ma")
    return ma is not None and cls is ma.MaskedArray


def _code(dtype: np.dtype) -> np.dtype | str:
    return _CODES.get(dtype, dtype) if dtype.metadata is None else dtype


def _masked_parts(masked: Any) -> Any:
    mask = None if masked.mask is np.ma.nomask else masked.mask
    # The fill value is None while it is the default of the dtype.
    fill_value = masked._fill_value  # noqa: SLF001
    return rebuild_masked, (masked.data, mask, fill_value, masked.hardmask)


def pickles_like_ndarray(cls: type) -> bool:
    """Whether a subclass of ndarray leaves its pickling alone."""
    return all(
        getattr(cls, name, None) is getattr(np.ndarray, name)
        for name in ("__reduce__", "__reduce_ex__", "__setstate__")
    )


# -- what the pickles call when they are loaded --------------------------------------


def _check_shape(shape: tuple[int, ...]) -> None:
    # NumPy takes -1 for "as many as there are", and divides by the size of an element,
    # which may be 0: that ends the process.
    if shape and min(shape) < 0:
        msg = f"an array of shape {shape}"
        raise ValueError(msg)


def rebuild_array(
    buffer: Any,
    dtype: np.dtype | str,
    shape: tuple[int, ...],
    order: str,
    cls: type[np.ndarray] | None,
) -> np.ndarray:
    """An array on a received buffer; NumPy checks that it fits.

    Raises:
        ValueError: If it does not, or is one of objects.
    """
    _check_shape(shape)
    array: np.ndarray = np.ndarray(shape, dtype, buffer, order=cast("Any", order))
    if array.dtype.hasobject:
        msg = f"an array of objects ({array.dtype}) cannot lie in shared memory"
        raise ValueError(msg)
    return array if cls is None else array.view(cls)


def rebuild_view(
    near: np.ndarray,
    dtype: np.dtype | str,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    begin: int,
    cls: type[np.ndarray] | None,
) -> np.ndarray:
    """An array that begins at that offset of the arena in which ``near`` lies.

    Raises:
        ValueError: If it does not lie in the bytes that were received.
    """
    window: Any = near
    while type(window.base) is not Loan:
        window = window.base
    _check_shape(shape)
    begin -= window.base.offset
    array: np.ndarray = np.ndarray(shape, dtype, window, begin, strides)
    check_inside(array, begin, window.nbytes)
    return array if cls is None else array.view(cls)


def rebuild_from_file(*parts: Any) -> np.ndarray:
    """An array that lies in a file, by the fields of its record and its class."""
    *file, cls = parts
    array = FileArray(*file).open()
    return array if cls is None else array.view(cls)


def rebuild_masked(
    data: np.ndarray, mask: np.ndarray | None, fill_value: Any, hard_mask: bool
) -> np.ma.MaskedArray[Any, Any]:
    """A masked array from its parts."""
    masked = np.ma.MaskedArray(
        data, np.ma.nomask if mask is None else mask, hard_mask=hard_mask
    )
    masked._fill_value = fill_value  # type: ignore[attr-defined] # noqa: SLF001
    return masked


def find_class(tracker_id: str, name: str) -> type:
    """The class that this process sent under that id."""
    found = _tracking._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker_id)  # noqa: SLF001
    if found is None:
        msg = f"a result refers to class {name!r}, which no longer exists here"
        raise pickle.UnpicklingError(msg)
    return cast("type", found)


def find_or_make_class(tracker_id: str, pickled: bytes, unknown: bool) -> type:
    """A class of another worker: this process's own if it has it, else a new one.

    Args:
        tracker_id: Its name among all processes.
        pickled: The class by value.
        unknown: Whether the parent does not have it.
    """
    found = _tracking._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker_id)  # noqa: SLF001
    if found is None:
        found = pickle.loads(pickled)
        if unknown:
            ReplyPickler.note_unknown(found)
    return cast("type", found)


# -- entry points -----------------------------------------------------------------------


class Pickled:
    """A pickle and the sources of its buffers, in order.

    Attributes:
        in_files: Bytes of arrays that the receiver maps from files.
        objects: Shared objects in it, see :mod:`shmexec.wire.objects`.
    """

    __slots__ = ("in_files", "objects", "payload", "sources")

    def __init__(
        self,
        payload: memoryview | bytes,
        sources: list[AnySource],
        in_files: int = 0,
        objects: Sequence[object] = (),
    ) -> None:
        self.objects = objects
        self.payload = payload
        self.sources = sources
        self.in_files = in_files


def dump(
    obj: Any,
    pickler: type[CallPickler] = CallPickler,
    returns: Returns | None = None,
) -> Pickled:
    """Pickle an object; buffers stay uncopied in ``sources``.

    What is shared goes by reference if ``returns`` are those of its memory.

    Raises:
        Exception: Whatever pickling it raises.
    """
    if type(obj) in _ATOMS or (type(obj) in _CONTAINERS and _is_plain((obj,))):
        return Pickled(pickle.dumps(obj, 5), [])
    foreign.look_around()
    file = io.BytesIO()
    pickling = pickler(file, returns)
    pickling.dump(obj)
    size = file.tell()
    payload = file.getbuffer() if size >= INLINE_LIMIT else file.getvalue()
    buffers = pickling.buffers
    return Pickled(payload, buffers.sources, buffers.in_files, buffers.objects)


def dump_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], returns: Returns | None = None
) -> Pickled:
    """As :func:`dump` of both."""
    if not kwargs:
        if _ATOMS.issuperset(map(type, args)):
            return Pickled(pickle.dumps((args, {}), 5), [])
        if _ATOMS_AND_ARRAYS.issuperset(map(type, args)):
            pickled = _dump_shared(args, returns)
            if pickled is not None:
                return pickled
    return dump((args, kwargs), returns=returns)


_HOLE = pickle.PickleBuffer(bytearray())
"""In the pickle, the place of any buffer that goes beside it."""

_beside: Callable[[object], object] = deque[object](maxlen=0).append
"""A buffer callback that sends all of them beside; it returns None, and is in C."""


class _Stand:
    """Stands for a shared array in a pickle of plain things."""

    __slots__ = ("_parts",)

    def __init__(self, near: object, array: np.ndarray, begin: int) -> None:
        dtype = _code(array.dtype)
        self._parts = (near, dtype, array.shape, array.strides, begin, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_view, self._parts


def _dump_shared(args: tuple[Any, ...], returns: Returns | None) -> Pickled | None:
    """Pickle atoms and shared arrays the short way; None if an array is not shared."""
    buffers = Buffers()
    stands: dict[int, _Stand] = {}
    items: list[Any] = []
    for arg in args:
        if type(arg) is not np.ndarray:
            items.append(arg)
            continue
        stand = stands.get(id(arg))
        if stand is None:
            found = buffers.find_shared(arg, returns)
            if found is None:
                return None
            source, begin = found
            if source.first is None:
                source.first = arg
                buffers.sources.append(source)
                stand = _Stand(_HOLE, arg, begin)
            else:
                stand = _Stand(stands[id(source.first)], arg, begin)
            stands[id(arg)] = stand
        items.append(stand)
    payload = pickle.dumps((tuple(items), {}), 5, buffer_callback=_beside)
    return Pickled(payload, buffers.sources)


def _is_plain(values: Collection[Any], depth: int = 4) -> bool:
    """Whether these are small, and of such types that the plain pickler does it right.

    It is several times faster to set up, and knows nothing of functions and classes that
    must go by value, nor of buffers.
    """
    if _ATOMS.issuperset(map(type, values)):
        return True
    if depth == 0:
        return False
    for value in values:
        kind = type(value)
        if kind in _ATOMS:
            continue
        if kind not in _CONTAINERS or len(value) > _PLAIN_AT_MOST:
            return False
        if kind is dict and not _ATOMS.issuperset(map(type, value)):
            return False
        if not _is_plain(value.values() if kind is dict else value, depth - 1):
            return False
    return True


def load(payload: Any, buffers: Iterable[np.ndarray]) -> Any:
    """The object of a pickle whose buffers are these."""
    return pickle.loads(payload, buffers=buffers)
