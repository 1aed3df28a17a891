"""What a case is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.sampling import Plan, Sample
from benchmarks.systems import Caller


@dataclass(frozen=True)
class Case:
    """One thing to measure, for any system.

    Attributes:
        name: As given to ``--cases``; unique.
        family: Also good for ``--cases``: all of its cases.
        title: As shown in the table.
        measure: Makes the calls, checks every result, raises ``WrongResult``.
        nbytes: Of the array, 0 if there is none.
        copies: How often the array is copied if each way costs one copy; the case's
            limit is a ping-pong and so many ``memcpy``.
        quick: Whether it is part of a quick run.
        prepare: Called first, in the measuring process, for systems whose calls inherit
            its memory.
    """

    name: str
    family: str
    title: str
    measure: Callable[[Caller, Plan], Sample]
    nbytes: int = 0
    copies: int = 0
    quick: bool = True
    prepare: Callable[[], object] | None = None
