"""Sums of measured figures, as data: what bounds a case, what a target compares.

``ping_pong() + memcpy(nbytes)`` is a :class:`Quantity`. Its value is taken repeat by
repeat, from figures of the same minute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

PING_PONG = "ping-pong"
PING_PONG_ONE_CPU = "ping-pong on one CPU"
MEMCPY = "memcpy"

LIMIT = "limit"
"""Stands for a system: then the case is the name of a limit."""

BEST_PEER = "best peer"
"""Stands for whichever system of others had the least in that repeat."""

Lookup = Callable[["Term"], float | None]
"""The figure of a term (without its factor), None if there is none."""


@dataclass(frozen=True)
class Term:
    """One figure, times a factor.

    Attributes:
        system: A system's name, :data:`LIMIT` or :data:`BEST_PEER`.
        case: A case's name, or a limit's.
        nbytes: What a limit was measured with.
        factor: To multiply with.
        per_worker: To be divided by the number of workers.
    """

    system: str
    case: str
    nbytes: int = 0
    factor: float = 1.0
    per_worker: bool = False


@dataclass(frozen=True)
class Quantity:
    """A sum of terms; empty is none at all."""

    terms: tuple[Term, ...] = ()

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.terms + other.terms)

    def __sub__(self, other: Quantity) -> Quantity:
        return self + -1 * other

    def __rmul__(self, factor: float) -> Quantity:
        return Quantity(
            tuple(replace(term, factor=term.factor * factor) for term in self.terms)
        )

    def __bool__(self) -> bool:
        return bool(self.terms)

    def shared_out(self) -> Quantity:
        """The same, divided by the number of workers."""
        return Quantity(tuple(replace(term, per_worker=True) for term in self.terms))

    def value(self, lookup: Lookup, workers: int) -> float | None:
        """The sum; None if a figure is missing."""
        total = 0.0
        for term in self.terms:
            figure = lookup(term)
            if figure is None:
                return None
            total += figure * term.factor / (workers if term.per_worker else 1)
        return total if self.terms else None

    def __str__(self) -> str:
        return " + ".join(map(_words, self.terms))


NOTHING = Quantity()


def _words(term: Term) -> str:
    words = term.case if term.system == LIMIT else term.system
    factor = "" if term.factor == 1 else f"{term.factor:g} "
    return f"{factor}{words}{' / workers' if term.per_worker else ''}"


def ping_pong() -> Quantity:
    """One message there and one back, nothing else."""
    return Quantity((Term(LIMIT, PING_PONG),))


def memcpy(nbytes: int) -> Quantity:
    """One copy between warm buffers."""
    return Quantity((Term(LIMIT, MEMCPY, nbytes),))


def taken(system: str, case: str) -> Quantity:
    """What a system took in a case."""
    return Quantity((Term(system, case),))
