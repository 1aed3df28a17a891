"""Arrays in shared memory that calls get by reference: ``shmexec.share`` and its kind.

What is decided here is which arrays are shared, and how. That a shared array, or a view
of one, is not copied when a call is packed is up to :mod:`shmexec.wire.pickling`; what a
worker may do with it, up to :mod:`shmexec.worker.memory`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    SupportsIndex,
    TypeVar,
    cast,
    get_args,
    overload,
)

import numpy as np

from shmexec.figures import MemoryStats
from shmexec.memory import native
from shmexec.memory.births import SHARED
from shmexec.memory.host import Host
from shmexec.memory.lending import HOST
from shmexec.memory.views import Loan, Sharing, loan_of
from shmexec.options import native_wanted, segment_kind
from shmexec.runtime import lifecycle
from shmexec.runtime.room import RoomMaker
from shmexec.wire.objects import PackedObject, Shared
from shmexec.wire.pickling import is_masked, pickles_like_ndarray, rebuild_masked

if TYPE_CHECKING:
    import numpy.typing as npt

A = TypeVar("A", bound=np.ndarray)
S = TypeVar("S", bound=np.generic)
T = TypeVar("T")

Shape = SupportsIndex | Iterable[SupportsIndex]
Order = Literal["C", "F"]

__all__ = [
    "asarray",
    "empty",
    "empty_like",
    "full",
    "share",
    "shared_arrays",
    "stats",
    "zeros",
]


@overload
def share(x: A, mode: Sharing = "r") -> A: ...  # type: ignore[overload-overlap]
@overload
def share(x: T, mode: Literal["r"] = "r") -> Shared[T]: ...
def share(x: Any, mode: Sharing = "r") -> Any:
    """Put an array where calls get it, and any view of it, without a copy.

    Or any other object: it is pickled now, and once; each worker that needs it rebuilds
    it once, and large arrays in it lie in shared memory.

    The array stays for as long as it, a view of it, or a call that was given one lives,
    whatever becomes of executors. So does the object as long as its handle.

    Args:
        x: An array, or an object that can be pickled. If an array lies in shared memory
            already (a result, one made by :func:`empty`, a view of one) nothing is
            copied: its memory is shared from now on, with all arrays that lie in it. Nor
            if it was made in :func:`shared_arrays`; then another array is returned, on
            the same memory. Any other is copied, once.
        mode: What calls may do with it.

            * ``"r"``: read it. Returns a read-only array: ``x`` itself where nothing was
              copied. In the worker the pages themselves are write-protected. Writable
              views made before stay so; those are copied when passed, and whoever
              writes through them changes what calls see.
            * ``"r+"``: read and change it, for all to see. Returns a writable array.
              Nothing is locked: who writes what is up to the program.
            * ``"c"``: change it in private: a page is copied when a call writes to it.
              Returns a read-only array.

    Returns:
        An array of the same type, shape and dtype. An array of no bytes is copied
        when passed, as ever. Of a masked array, data and mask are shared.

        Of another object, a handle, see :class:`Shared`: pass it, alone or inside of
        anything, and the call gets the object. Calls in one worker get the same one:
        what they change in it stays, in that worker only, until it is replaced. Arrays
        of 32 KiB and more in it are read-only there; tensors are the worker's own.

    Raises:
        TypeError: If ``x`` is an array that holds objects or pickles in a way of its
            own.
        SerializationError: If ``x`` is another object, and cannot be pickled.
        ValueError: For another mode, or if the memory is shared in another one. From
            ``"r+"`` one may go to the others: no running call should write any more.
            For a mode other than ``"r"``, if ``x`` is no array.
        SharedMemoryFull: If there is no room, and waiting for calls does not make any.

    Example:
        >>> x = shmexec.share(np.ones((1000, 1000)))  # one copy, here
        >>> [float(y) for y in ex.map(np.sum, (x[:10], x[10:30]))]  # and none
        [10000.0, 20000.0]
        >>> words = shmexec.share({"one": 1})
        >>> ex.submit(lambda d: d["one"], words).result()
        1
    """
    _check_mode(mode)
    if isinstance(x, np.ndarray):
        return _share_array(x, mode)
    if isinstance(x, Shared):
        return x
    if mode != "r":
        msg = (
            f"a {type(x).__name__} can be shared in mode 'r' only, not {mode!r}: each "
            "worker has an object of its own. Share the arrays in it"
        )
        raise ValueError(msg)
    packed = PackedObject(x)
    data = _make(packed.nbytes, np.uint8, "C", "r", packed.fill)
    return Shared(x, packed.placed(data))


@overload
def empty(
    shape: Shape, *, order: Order = "C", mode: Sharing = "r+"
) -> npt.NDArray[np.float64]: ...
@overload
def empty(
    shape: Shape,
    dtype: type[S] | np.dtype[S],
    order: Order = "C",
    *,
    mode: Sharing = "r+",
) -> npt.NDArray[S]: ...
@overload
def empty(
    shape: Shape,
    dtype: npt.DTypeLike = float,
    order: Order = "C",
    *,
    mode: Sharing = "r+",
) -> npt.NDArray[Any]: ...
def empty(
    shape: Shape,
    dtype: npt.DTypeLike = float,
    order: Order = "C",
    *,
    mode: Sharing = "r+",
) -> np.ndarray:
    """A new array in shared memory, of any content.

    Args:
        shape: Its shape, an integer or integers.
        dtype: Its dtype, without objects.
        order: ``"C"`` or ``"F"``.
        mode: See :func:`share`. By default the array is writable here and in workers;
            fill it and ``share(x)`` it to freeze it, at no cost.

    Raises:
        TypeError: For a dtype with objects.
        ValueError: For a mode, shape or order that is none.
        SharedMemoryFull: If there is no room.

    Example:
        >>> x = shmexec.empty((1000, 1000))
        >>> x[:] = 1
        >>> x = shmexec.share(x)  # no copy; read-only from here on
        >>> float(ex.submit(np.sum, x).result())
        1000000.0
    """
    return _make(shape, dtype, order, mode, None)


@overload
def zeros(
    shape: Shape, *, order: Order = "C", mode: Sharing = "r+"
) -> npt.NDArray[np.float64]: ...
@overload
def zeros(
    shape: Shape,
    dtype: type[S] | np.dtype[S],
    order: Order = "C",
    *,
    mode: Sharing = "r+",
) -> npt.NDArray[S]: ...
@overload
def zeros(
    shape: Shape,
    dtype: npt.DTypeLike = float,
    order: Order = "C",
    *,
    mode: Sharing = "r+",
) -> npt.NDArray[Any]: ...
def zeros(
    shape: Shape,
    dtype: npt.DTypeLike = float,
    order: Order = "C",
    *,
    mode: Sharing = "r+",
) -> np.ndarray:
    """A new array of zeros in shared memory; see :func:`empty`.

    Example:
        >>> counts = shmexec.zeros(100_000, int)
        >>> def count(counts, i):
        ...     counts[i] += 1  # all see it
        >>> _ = list(ex.map(count, [counts] * 3, [5, 6, 7]))
        >>> int(counts.sum())
        3
    """
    return _make(shape, dtype, order, mode, None, clear=True)


@overload
def full(
    shape: Shape,
    fill_value: object,
    dtype: type[S] | np.dtype[S],
    order: Order = "C",
    *,
    mode: Sharing = "r+",
) -> npt.NDArray[S]: ...
@overload
def full(
    shape: Shape,
    fill_value: object,
    dtype: npt.DTypeLike | None = None,
    order: Order = "C",
    *,
    mode: Sharing = "r+",
) -> npt.NDArray[Any]: ...
def full(
    shape: Shape,
    fill_value: Any,
    dtype: npt.DTypeLike | None = None,
    order: Order = "C",
    *,
    mode: Sharing = "r+",
) -> np.ndarray:
    """A new array of one value in shared memory; see :func:`empty`.

    The dtype is by default that of ``np.asarray(fill_value)``.

    Example:
        >>> shmexec.full(3, 7)
        array([7, 7, 7])
    """
    if dtype is None:
        dtype = np.asarray(fill_value).dtype

    def fill(target: np.ndarray) -> None:
        target[...] = fill_value

    return _make(shape, dtype, order, mode, fill)


@overload
def empty_like(x: npt.NDArray[S], *, mode: Sharing = "r+") -> npt.NDArray[S]: ...
@overload
def empty_like(
    x: npt.ArrayLike, dtype: type[S] | np.dtype[S], *, mode: Sharing = "r+"
) -> npt.NDArray[S]: ...
@overload
def empty_like(
    x: npt.ArrayLike, dtype: npt.DTypeLike | None = None, *, mode: Sharing = "r+"
) -> npt.NDArray[Any]: ...
def empty_like(
    x: npt.ArrayLike, dtype: npt.DTypeLike | None = None, *, mode: Sharing = "r+"
) -> np.ndarray:
    """A new array of the shape, order and (by default) dtype of ``x``; see :func:`empty`.

    Example:
        >>> shmexec.empty_like(np.ones((2, 3), np.float32)).shape
        (2, 3)
    """
    x = np.asanyarray(x)
    dtype = x.dtype if dtype is None else dtype
    return _make(x.shape, dtype, _order(x), mode, None)


@overload
def asarray(x: npt.NDArray[S], *, mode: Sharing = "r+") -> npt.NDArray[S]: ...
@overload
def asarray(
    x: npt.ArrayLike, dtype: type[S] | np.dtype[S], *, mode: Sharing = "r+"
) -> npt.NDArray[S]: ...
@overload
def asarray(
    x: npt.ArrayLike, dtype: npt.DTypeLike | None = None, *, mode: Sharing = "r+"
) -> npt.NDArray[Any]: ...
def asarray(
    x: npt.ArrayLike, dtype: npt.DTypeLike | None = None, *, mode: Sharing = "r+"
) -> np.ndarray:
    """``x`` as an array in shared memory; ``x`` itself if it is one, shared alike.

    See :func:`empty`. Unlike :func:`share` it takes whatever ``np.asarray`` takes, and
    freezes nothing: a copy is made unless ``x`` is shared in that mode.

    Example:
        >>> x = shmexec.asarray([1, 2, 3])
        >>> shmexec.asarray(x) is x
        True
    """
    _check_mode(mode)
    given = np.asarray(x, dtype)
    loan = _own_loan(given)
    if loan is not None and loan.mode == mode and _fits(given, mode):
        return given

    return _make(given.shape, given.dtype, _order(given), mode, _copying(given))


@contextmanager
def shared_arrays() -> Iterator[None]:
    """Have NumPy make large arrays in shared memory, so that :func:`share` copies nothing.

    Inside of ``with shared_arrays():`` arrays of 32 KiB and more, whoever makes them, are
    born in shared memory, as far as half of the room there allows; others are ordinary
    ones. They are ordinary in all else too: writable, private, copied when passed, and
    valid for as long as they live. ``share(x)`` then returns an array on the same memory
    and freezes ``x``, if ``x`` is in one piece and most of what was born.

    It holds for this thread, or task, only. Where the native part was not built, or with
    ``SHMEXEC_NATIVE=0``, it does nothing, and :func:`share` copies as ever.

    Example:
        >>> import numpy as np, shmexec
        >>> with shmexec.shared_arrays():
        ...     x = np.sqrt(np.arange(1e6))
        >>> x = shmexec.share(x)  # no copy
        >>> x.flags.writeable
        False
    """
    if not (native_wanted() and native.is_built()):
        yield
        return
    host = _host()
    births = host.open_births()
    try:
        before = births.enter()
        try:
            yield
        finally:
            births.leave(before)
    finally:
        host.close_births()


def stats() -> MemoryStats:
    """Figures about the shared memory of this program, whatever executors it has.

    An executor's own are in :meth:`shmexec.Executor.stats`.

    Example:
        >>> x = shmexec.share(np.ones(1_000_000))
        >>> shmexec.stats().shared >= x.nbytes
        True
    """
    host = _host()
    host.settle()
    with host.lock:
        return MemoryStats(
            native=native_wanted() and native.is_built(),
            segment=host.kind,
            used=host.budget.used(),
            shared=host.budget.used(SHARED),
            budget=host.budget.limit(),
            arrays=len(host.ledger.held_by(HOST)),
        )


# -- what they do ------------------------------------------------------------------------


def _check_mode(mode: str) -> None:
    if mode not in get_args(Sharing):
        msg = f"mode must be 'r', 'r+' or 'c', not {mode!r}"
        raise ValueError(msg)


def _host() -> Host:
    return lifecycle.host(segment_kind())


def _own_loan(array: np.ndarray) -> Loan | None:
    """The loan below an array that lies in this process's shared memory."""
    loan = loan_of(array)
    return loan if loan is not None and loan.returns is _host().returns else None


def _fits(array: np.ndarray, mode: Sharing) -> bool:
    return array.flags.writeable == (mode == "r+")


def _order(array: np.ndarray) -> str:
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def _share_array(x: np.ndarray, mode: Sharing) -> np.ndarray:
    if is_masked(type(x)):
        return _share_masked(x, mode)
    _check_dtype(x.dtype)
    loan = _own_loan(x)
    if loan is not None and (loan.mode or x.flags.writeable or mode != "r+"):
        return _share_in_place(x, loan, mode)
    born = _share_born(x, mode)
    if born is not None:
        return born
    cls = type(x)
    plain = cls is np.ndarray or cls is np.memmap
    if not plain and not pickles_like_ndarray(cls):
        msg = (
            f"cannot share a {cls.__name__}: it pickles in a way of its own. Share "
            "np.asarray(x), or the arrays it is made of"
        )
        raise TypeError(msg)
    given = x.view(np.ndarray)
    shared = _make(x.shape, x.dtype, _order(x), mode, _copying(given))
    return shared if plain else shared.view(cls)


def _share_in_place(x: np.ndarray, loan: Loan, mode: Sharing) -> np.ndarray:
    if loan.mode not in {None, "r+", mode}:
        msg = (
            f"the array is shared {loan.mode!r}, and its memory can have no other mode: "
            f"share(x.copy(), {mode!r}) instead"
        )
        raise ValueError(msg)
    loan.mode = mode
    if mode != "r+":
        x.flags.writeable = False
    return x


def _share_born(x: np.ndarray, mode: Sharing) -> np.ndarray | None:
    """A shared array on the memory of one that was born in it; None of any other."""
    flags = x.flags
    frozen = mode != "r+"
    if not flags.forc or not (flags.writeable or frozen):
        return None
    cls = type(x)
    if cls is not np.ndarray and not pickles_like_ndarray(cls):
        return None
    address = x.__array_interface__["data"][0]
    data = _host().adopt(address, x.nbytes, readonly=frozen)
    if data is None:
        return None
    cast("Loan", data.base).mode = mode
    if frozen:
        flags.writeable = False
    shared = _laid_out(data, x.shape, x.dtype, _order(x))
    return shared if cls is np.ndarray else shared.view(cls)


def _share_masked(x: Any, mode: Sharing) -> np.ndarray:
    mask = None if x.mask is np.ma.nomask else _share_array(x.mask, mode)
    data = _share_array(x.data, mode)
    return rebuild_masked(data, mask, x._fill_value, x.hardmask)  # noqa: SLF001


def _copying(given: np.ndarray) -> Callable[[np.ndarray], object]:
    def fill(target: np.ndarray) -> None:
        np.copyto(target, given)

    return fill


def _check_dtype(dtype: np.dtype) -> None:
    if dtype.hasobject:
        msg = (
            f"cannot share an array of dtype {dtype}: it holds references to Python "
            "objects of this process. Convert it, for example x.astype(float), or "
            "pass it as an ordinary argument, which pickles it"
        )
        raise TypeError(msg)


def _make(
    shape: Any,
    dtype: Any,
    order: str,
    mode: Sharing,
    fill: Callable[[np.ndarray], object] | None,
    *,
    clear: bool = False,
) -> np.ndarray:
    """A new shared array; ``fill`` gets it as long as it is writable."""
    _check_mode(mode)
    if order not in {"C", "F"}:
        msg = f"order must be 'C' or 'F', not {order!r}"
        raise ValueError(msg)
    of = np.dtype(dtype)
    _check_dtype(of)
    shape = _checked_shape(shape)
    nbytes = of.itemsize * math.prod(shape)
    if not nbytes:
        nothing: np.ndarray = np.zeros(shape, of, cast("Any", order))
        nothing.flags.writeable = mode == "r+"
        return nothing
    host = _host()
    block = RoomMaker(host, SHARED).place(nbytes, clear=clear)
    try:
        if fill is not None:
            fill(_laid_out(host.bytes_of(block), shape, of, order))
    except BaseException:
        host.release([block.lease])
        raise
    kept = host.keep(block, readonly=mode != "r+")
    cast("Loan", kept.base).mode = mode
    return _laid_out(kept, shape, of, order)


def _laid_out(
    data: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, order: str
) -> np.ndarray:
    return np.ndarray(shape, dtype, data, order=cast("Any", order))


def _checked_shape(shape: Any) -> tuple[int, ...]:
    lengths = shape if isinstance(shape, Iterable) else (shape,)
    checked = tuple(map(operator.index, lengths))
    if any(length < 0 for length in checked):
        msg = f"an array has no negative length: {checked}"
        raise ValueError(msg)
    return checked
