"""What a case is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shmexec.comparing.quantities import NOTHING, Quantity
from shmexec.comparing.sampling import Sample


@dataclass(frozen=True)
class Case:
    """One thing to measure, for any system.

    Attributes:
        name: As given to ``--cases``; unique.
        family: Also good for ``--cases``: all of its cases, which share a table.
        title: As shown in the table.
        measure: Takes a :class:`shmexec.comparing.systems.Caller` and a plan, makes the calls,
            checks every result, raises ``WrongResult``.
        nbytes: Of the array, 0 if there is none; a run leaves out what cannot fit.
        limit: What bounds it; ratios are taken to that, or to shmexec if it is empty.
        reuses: Many calls use the same input: systems may share it first.
        needs_sharing: Only for systems that have a way to share.
        needs_workers: Only for systems whose workers outlive a call.
        only_ours: Only for shmexec, for what others do not have.
        opens: ``measure`` takes a function that opens the system, in place of a caller.
        workers: So many, whatever the run says.
        of_bytes: Figures are bytes, not seconds.
        tail: Whether the 99th percentile is shown, too.
        quick: Whether it is part of a quick run.
        prepare: Called first, in the measuring process, for systems whose calls inherit
            its memory.
    """

    name: str
    family: str
    title: str
    measure: Callable[[Any, Any], Sample]
    nbytes: int = 0
    limit: Quantity = NOTHING
    reuses: bool = False
    needs_sharing: bool = False
    needs_workers: bool = False
    only_ours: bool = False
    opens: bool = False
    workers: int | None = None
    of_bytes: bool = False
    tail: bool = False
    quick: bool = True
    prepare: Callable[[], object] | None = None
