"""The buffers of one pickle: which go beside it, and which of those are by reference."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from shmexec.memory.views import Loan, Returns, Sharing, loan_of, span
from shmexec.options import INLINE_LIMIT
from shmexec.wire.messages import REFS_AT_MOST, Mode
from shmexec.wire.sources import AnySource, PlacedSource, Source, StreamSource

SOURCES_AT_MOST = REFS_AT_MOST - 2
"""Buffers beside one pickle; what exceeds them stays in it."""

_MODES: dict[Sharing, Mode] = {
    "r": Mode.SHARED,
    "r+": Mode.WRITABLE,
    "c": Mode.COPY_ON_WRITE,
}


class Buffers:
    """Collects them, in the order in which they are met.

    Not the pickler itself: that holds this, and a cycle would keep the arrays alive
    until the garbage collector comes by.
    """

    __slots__ = (
        "_placeholders",
        "for_worker",
        "in_files",
        "objects",
        "seen",
        "shared",
        "sources",
        "stand_in",
    )

    def __init__(self) -> None:
        self.sources: list[AnySource] = []
        self.shared: dict[tuple[Loan, Mode], PlacedSource] = {}
        self.in_files = 0
        self.objects: list[object] = []
        self.seen: dict[Any, Any] = {}
        self.for_worker = False
        # Gives what goes in the place of an array; set by what is pickled, for what is
        # in it, see `shmexec.integrations.once`.
        self.stand_in: Callable[[np.ndarray], Any] | None = None
        self._placeholders: dict[int, tuple[AnySource, object]] = {}

    def hole(self, source: AnySource) -> pickle.PickleBuffer:
        """Something to pickle in the place of a source."""
        hole = pickle.PickleBuffer(bytearray())
        # The hole is kept so that no other can get its id before it was pickled.
        self._placeholders[id(hole)] = source, hole
        return hole

    def stream(self, nbytes: int, fill: Callable[[np.ndarray], object]) -> Any:
        """What to pickle for bytes that ``fill`` writes to a ``uint8`` array."""
        if nbytes < INLINE_LIMIT or len(self.sources) >= SOURCES_AT_MOST:
            target = np.empty(nbytes, np.uint8)
            fill(target)
            return target.tobytes()
        return self.hole(StreamSource(nbytes, fill))

    def find_shared(
        self, array: np.ndarray, returns: Returns | None
    ) -> tuple[PlacedSource, int] | None:
        """The source of a shared array, and where that begins; None if it is to be copied.

        The source is the same for all arrays on a block; it has no ``first`` if new.

        Raises:
            ValueError: If changes to it must be seen, and there are too many others.
        """
        loan = loan_of(array)
        if loan is None or loan.mode is None or loan.returns is not returns:
            return None
        bounds = span(array, loan) if array.nbytes else None
        if bounds is None:
            return None
        writable = array.flags.writeable
        mode = _MODES[loan.mode] if writable == (loan.mode == "r+") else Mode.SHARED
        if writable and mode is not Mode.WRITABLE:
            return None  # made before the others were frozen: it is no constant
        begin, low, high = bounds
        source = self.shared.get((loan, mode))
        if source is not None:
            source.extend(low, high, array.nbytes)
            return source, begin
        if len(self.sources) >= SOURCES_AT_MOST:
            if mode is Mode.WRITABLE:
                msg = f"a call takes at most {SOURCES_AT_MOST} arrays shared 'r+'"
                raise ValueError(msg)
            return None
        source = self.shared[loan, mode] = PlacedSource(loan, low, high - low, mode)
        source.passed = array.nbytes
        return source, begin

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """Called for each buffer in order; true leaves it in the pickle."""
        placeholder = self._placeholders.pop(id(buffer), None)
        if placeholder is not None:
            self.sources.append(placeholder[0])
            return False
        try:
            raw = buffer.raw()
        except BufferError:
            return True
        if raw.nbytes < INLINE_LIMIT or len(self.sources) >= SOURCES_AT_MOST:
            return True
        self.sources.append(Source(raw))
        return False
