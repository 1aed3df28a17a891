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
        or tensor.__dict__
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
    return rebuild_tensor, (array, dtype, back, tensor.requires_grad)


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


_unknown: dict[str, Callable[[Any], None]] = {
    "torch": _learn_torch,
    "pyarrow": _learn_arrow,
}
