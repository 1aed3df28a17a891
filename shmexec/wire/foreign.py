"""Types of other libraries that would pickle with more copies than need be.

Nothing here imports a library: what the program has not imported, it cannot send. Only
pickles that hold such objects import it where they are loaded, as any pickle does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from shmexec.options import INLINE_LIMIT
from shmexec.wire.variables import reduce_variable


class Buffers(Protocol):
    """Where a pickle's buffers are collected."""

    seen: dict[Any, Any]
    """Objects that were pickled already, by what a reducer knows them by."""

    def stream(self, nbytes: int, fill: Callable[[np.ndarray], object]) -> Any:
        """What to pickle for bytes that ``fill`` writes to a ``uint8`` array."""


Reducer = Callable[[Any, Buffers], Any]

reducers: dict[type, Reducer] = {ContextVar: reduce_variable}
"""What to pickle for objects of exactly these types; ``NotImplemented``: as ever."""


def look_around() -> None:
    """Learn the types of libraries that were imported since the last call."""
    for name in [name for name in _unknown if name in sys.modules]:
        learn = _unknown[name]
        try:
            learn(sys.modules[name])
        except AttributeError:
            continue  # another thread is importing it: there is nothing to send yet
        del _unknown[name]


# -- pandas ------------------------------------------------------------------------------


def _learn_pandas(pandas: Any) -> None:
    for cls in (pandas.Index, pandas.DatetimeIndex, pandas.TimedeltaIndex):
        reducers[cls] = _reduce_index


def _reduce_index(index: Any, buffers: Buffers) -> Any:
    """An index on the memory of one that was pickled before as that one.

    A series has its index twice in its pickle. As an index never changes, nobody sees
    that they are on the same memory.
    """
    values = getattr(index._data, "_ndarray", index._data)  # noqa: SLF001
    if type(values) is not np.ndarray or values.nbytes < INLINE_LIMIT:
        return NotImplemented
    address = values.__array_interface__["data"][0]
    freq = getattr(index, "freq", None)  # of times: not in the memory, either
    place = type(index), index.dtype, freq, address, values.shape, values.strides
    first = buffers.seen.setdefault(place, index)
    return NotImplemented if first is index else (rebuild_index, (first, index.name))


def rebuild_index(first: Any, name: Any) -> Any:
    """The index on the memory of another one."""
    return first.rename(name)


# -- PyTorch -----------------------------------------------------------------------------


def _learn_torch(torch: Any) -> None:
    reducers[torch.Tensor] = _reduce_tensor


def _reduce_tensor(tensor: Any, _buffers: Buffers) -> Any:
    """A dense tensor in main memory as a NumPy array, which is copied once.

    PyTorch itself would write it into the pickle, byte for byte.
    """
    torch = sys.modules["torch"]
    if (
        tensor.device.type != "cpu"
        or tensor.layout is not torch.strided
        or tensor.is_quantized
        or tensor.is_conj()
        or tensor.is_neg()
        or tensor._backward_hooks  # noqa: SLF001
    ):
        return NotImplemented
    # In the order in which the elements lie in memory, so that strides stay.
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    plain = tensor.detach().permute(order)
    dtype = None
    try:
        array = plain.numpy()
    except TypeError:  # a type that NumPy does not have, such as bfloat16
        integers = {1: torch.uint8, 2: torch.int16}.get(tensor.element_size())
        if integers is None:
            return NotImplemented
        dtype, array = tensor.dtype, plain.view(integers).numpy()
    back = tuple(order.index(axis) for axis in range(tensor.ndim))
    parts = rebuild_tensor, (array, dtype, back, tensor.requires_grad)
    if not tensor.__dict__:
        return parts
    # Beside the parts, since an attribute may refer to the tensor itself.
    return *parts, tensor.__dict__, None, None, set_attributes


def rebuild_tensor(
    array: np.ndarray, dtype: Any, order: tuple[int, ...], requires_grad: bool
) -> Any:
    """The tensor on the memory of an array; on a copy if that is read-only.

    PyTorch has no read-only tensors: a write would end the process.
    """
    torch: Any = import_module("torch")
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if dtype is not None:
        tensor = tensor.view(dtype)
    return tensor.permute(order).requires_grad_(requires_grad)


def set_attributes(tensor: Any, attributes: dict[str, Any]) -> None:
    """Give a tensor the attributes that the program had given it."""
    tensor.__dict__.update(attributes)


# -- Arrow -------------------------------------------------------------------------------


def _learn_arrow(arrow: Any) -> None:
    arrays = [
        cls
        for cls in vars(arrow.lib).values()
        if isinstance(cls, type) and issubclass(cls, arrow.Array)
    ]
    for cls in (arrow.Table, arrow.RecordBatch, arrow.ChunkedArray, *arrays):
        reducers[cls] = _reduce_arrow


def _reduce_arrow(data: Any, buffers: Buffers) -> Any:
    """A slice as a stream of what it shows.

    Arrow itself would pickle all of the buffers that it is a slice of.
    """
    if data.get_total_buffer_size() < data.nbytes + INLINE_LIMIT:
        return NotImplemented
    arrow: Any = sys.modules["pyarrow"]
    table, column = data, True
    if isinstance(data, arrow.ChunkedArray):
        table = arrow.table({"": data})
    elif isinstance(data, arrow.Array):
        table = arrow.record_batch({"": data})
    else:
        column = False
    whole = isinstance(table, arrow.Table)
    if not whole and table.num_rows == 0:
        # Of none of the rows it would write all offsets.
        table = arrow.RecordBatch.from_pylist([], schema=table.schema)

    def write(sink: Any) -> Any:
        with arrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write(table)
        return sink

    def fill(target: np.ndarray) -> None:
        write(arrow.FixedSizeBufferWriter(arrow.py_buffer(target)))

    nbytes = write(arrow.MockOutputStream()).size()
    return rebuild_arrow, (buffers.stream(nbytes, fill), whole, column)


def rebuild_arrow(stream: Any, whole: bool, column: bool) -> Any:
    """The data on the memory of a stream that was received.

    Args:
        stream: Its bytes.
        whole: Whether it is a table, of any number of batches, or one batch.
        column: Whether the first column of that is wanted.
    """
    arrow: Any = import_module("pyarrow")
    reader = arrow.ipc.open_stream(arrow.py_buffer(stream))
    data = reader.read_all() if whole else reader.read_next_batch()
    return data.column(0) if column else data


# -- polars ------------------------------------------------------------------------------


def _learn_polars(polars: Any) -> None:
    reducers[polars.DataFrame] = _reduce_polars
    reducers[polars.Series] = _reduce_polars


def _reduce_polars(data: Any, _buffers: Buffers) -> Any:
    """A frame, or a series, as the Arrow table on its memory, where Arrow is installed.

    Polars itself would write it all into the pickle.
    """
    nbytes = data.estimated_size()
    if nbytes < INLINE_LIMIT:
        return NotImplemented
    polars: Any = sys.modules["polars"]
    single = isinstance(data, polars.Series)
    frame = data.to_frame("") if single else data
    try:
        table = frame.to_arrow(compat_level=polars.CompatLevel.newest())
    except Exception:  # noqa: BLE001  (no Arrow, or a type that it does not have)
        return NotImplemented
    if table.nbytes > 2 * nbytes:
        return (
            NotImplemented  # rows of few of the texts or categories that it refers to
        )
    look_around()  # it may be that Arrow was imported just now
    order = [_sorted(column) for column in frame.get_columns()]
    return rebuild_polars, (table, order, data.name if single else None)


def _sorted(series: Any) -> bool | None:
    """Whether a series is known to be sorted: downwards, upwards, or not (``None``)."""
    flags = series.flags
    return None if flags["SORTED_ASC"] == flags["SORTED_DESC"] else flags["SORTED_DESC"]


def rebuild_polars(table: Any, order: list[bool | None], name: str | None) -> Any:
    """The data on the memory of an Arrow table.

    Args:
        table: What was received.
        order: How each column is known to be sorted, see :func:`_sorted`.
        name: Of a series, its name; ``None`` for a frame.
    """
    polars: Any = import_module("polars")
    frame = polars.from_arrow(table, rechunk=False)
    for number, descending in enumerate(order):
        if descending is not None:
            column = frame.to_series(number).set_sorted(descending=descending)
            frame.replace_column(number, column)
    return frame if name is None else frame.to_series(0).rename(name)


_unknown: dict[str, Callable[[Any], None]] = {
    "torch": _learn_torch,
    "pandas": _learn_pandas,
    "pyarrow": _learn_arrow,
    "polars": _learn_polars,
}
