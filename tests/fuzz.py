"""Fuzzing by coverage, with atheris: whatever bytes come from a worker.

Not part of the tests: ``pip install atheris`` (Linux), then
``python tests/fuzz.py -max_total_time=300``. What it finds belongs into the property
tests, as an example.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))
with atheris.instrument_imports(include=["shmexec"]):
    import numpy as np

    from shmexec.memory.host import Host
    from shmexec.memory.lending import HOST
    from shmexec.memory.views import Loan
    from shmexec.options import segment_kind
    from shmexec.wire.channel import Framer
    from shmexec.wire.messages import (
        LARGEST,
        MalformedMessage,
        decode,
        decode_counts,
        decode_results,
        encode,
        encode_result,
    )
    from shmexec.wire.pickling import rebuild_array, rebuild_view

SIZE, BEGIN, NBYTES = 1 << 20, 8192, 4096
DTYPES = ("u1", "i4", "f8", "S3", "V0", "O", "O,u1")

host = Host(segment_kind(), SIZE, SIZE)
host.budget.open(HOST)
worker = host.new_worker_arena(HOST)
host.grant(worker, SIZE // 2)
loan = host.loan(worker.id, BEGIN, NBYTES)
host.accept(worker, loan)
window = np.asarray(loan)
assert isinstance(window.base, Loan)


def codec(data: bytes) -> None:
    """A message is what it was made of, or malformed, and nothing else."""
    try:
        message = decode(data)
    except MalformedMessage:
        pass
    else:
        assert encode(message) == data
        accept(message.refs)
    for reader in (decode_counts, decode_results):
        try:
            found = reader(data)
        except MalformedMessage:
            continue
        if reader is decode_results:
            assert b"".join(encode_result(*each) for each in found) == data
    try:
        assert all(len(part) <= LARGEST for part in Framer().feed(data))
    except MalformedMessage:
        pass


def accept(refs: tuple[tuple[int, ...], ...]) -> None:
    """What a message refers to lies in the worker's arena, or is refused."""
    for _, _, offset, nbytes, *_ in refs:
        try:
            found = host.loan(worker.id, offset, nbytes)
            host.accept(worker, found)
        except ValueError:
            continue
        assert inside(np.asarray(found), worker.segment.part(0, SIZE))
        del found
    host.settle()
    worker.frees.clear()


def inside(array: np.ndarray, of: np.ndarray) -> bool:
    """Whether all elements of an array are bytes of another one."""
    start = low = high = of.__array_interface__["data"][0]
    low = high = array.__array_interface__["data"][0]
    for length, stride in zip(array.shape, array.strides, strict=True):
        low += min(0, (length - 1) * stride)
        high += max(0, (length - 1) * stride)
    end = high + array.itemsize
    return not array.size or (start <= low and end <= start + of.nbytes)


def views(data: bytes) -> None:
    """An array on received bytes lies in them, or is refused."""
    chosen = atheris.FuzzedDataProvider(data)
    dtype = DTYPES[chosen.ConsumeIntInRange(0, len(DTYPES) - 1)]
    axes = [
        (chosen.ConsumeInt(8), chosen.ConsumeInt(8))
        for _ in range(chosen.ConsumeIntInRange(0, 4))
    ]
    shape = tuple(length for length, _ in axes)
    strides = tuple(stride for _, stride in axes)
    begin = chosen.ConsumeInt(8)
    for make in (
        lambda: rebuild_view(window, dtype, shape, strides, begin, None),
        lambda: rebuild_array(window, dtype, shape, "C", None),
    ):
        try:
            array = make()
        except (ValueError, OverflowError, TypeError, MemoryError):
            continue
        assert not array.dtype.hasobject
        assert inside(array, window)


def one(data: bytes) -> None:
    """One input."""
    codec(data)
    views(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
