"""Calls made ready for the cluster: a pickle, and the large things it needs beside it."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from shmexec.cluster.cargo import Cargo, pack
from shmexec.cluster.futures import Future
from shmexec.cluster.inputs import SEND_FROM, Inputs, Need
from shmexec.wire.explaining import explain
from shmexec.wire.objects import Shared
from shmexec.wire.pickling import CallPickler
from shmexec.worker.remote import own, read

Part = Need | Future[Any]
"""What a call needs beside its pickle: an input, or the result of another call."""


class PackedCall:
    """A call that can be sent, again and again.

    Args:
        inputs: Takes what is large; None: all goes along with the call.
        fn: The function.
        args: Its arguments.
        kwargs: By name.

    Raises:
        SerializationError: If it cannot be pickled; names the culprit.

    Attributes:
        name: Of the function, for messages.
        cargo: The pickle; None if that is large, and the first one of the parts.
        parts: What it needs beside that.
    """

    def __init__(
        self,
        inputs: Inputs | None,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.name = str(getattr(fn, "__qualname__", type(fn).__qualname__))
        make = partial(_OutgoingPickler, inputs)
        try:
            data, parts = pack((fn, args, kwargs), make)
        except Exception as error:
            named = {f"args[{index}]": value for index, value in enumerate(args)}
            named |= {f"kwargs[{key!r}]": value for key, value in kwargs.items()}
            what = f"the call of {self.name}"
            raise explain(error, {**named, "fn": fn}, what) from error
        self.parts: tuple[Part, ...] = parts
        self.cargo: Cargo | None = Cargo("object", data)
        if inputs is not None and data.nbytes >= SEND_FROM:
            self.cargo = None
            self.parts = (inputs.add_packed(data), *parts)


class _OutgoingPickler(CallPickler):
    """Takes large arrays, handles and futures out of the pickle."""

    _by_path = False  # files are not there on other machines

    def __init__(
        self, inputs: Inputs | None, file: io.BytesIO, parts: list[Any]
    ) -> None:
        super().__init__(file)
        self._inputs = inputs
        self._parts = parts

    def reducer_override(self, obj: Any) -> Any:
        """Parts by their number, all else as ever."""
        if isinstance(obj, Future):
            if self._inputs is None:
                return _same, (obj.result(),)
            return self._part(obj, read)
        if isinstance(obj, Shared):
            if self._inputs is None:
                return _same, (obj.value,)
            return self._part(self._handle(self._inputs, obj), read)
        if (
            self._inputs is not None
            and isinstance(obj, np.ndarray)
            and type(obj) in {np.ndarray, np.memmap}
            and obj.nbytes >= SEND_FROM
            and not obj.dtype.hasobject
        ):
            shared = not obj.flags.writeable
            return self._part(self._inputs.add_array(obj), read if shared else own)
        return super().reducer_override(obj)

    def _handle(self, inputs: Inputs, handle: Shared[Any]) -> Need:
        found = inputs.find_packed(handle)
        if found is not None:
            return found
        data, _ = pack(handle.value, partial(_OutgoingPickler, None))
        return inputs.add_packed(data, handle)

    def _part(self, part: Part, how: Callable[[int], Any]) -> Any:
        self._parts.append(part)
        return how, (len(self._parts) - 1,)


def _same(value: Any) -> Any:
    return value
