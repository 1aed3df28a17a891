"""Calls and faults, mixed: what is lost, what is wrong, what is left behind?

Waves of calls, each with one fault at a place that the seed says. Everything but the
faulty call is to give the right result; the faulty call is to fail, soon.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import time
from dataclasses import asdict, dataclass, field

import numpy as np

from benchmarks import breaking, leaks
from benchmarks.breakable import POOLS, NeverCame, Pool, Ticket

WORKERS = 2
_ENDS_WITHIN = 5.0
"""Seconds in which all calls of a wave are to end, but for the faulty one."""

_GONE_WITHIN = 3.0
"""Seconds after closing in which processes may still end."""


@dataclass
class Counts:
    """What came of it.

    Attributes:
        faults: Faulty calls.
        calls: Other calls.
        failed: Of those, how many did not give a result.
        never: Of all, how many never ended in any way.
        wrong: Results that were not right, and faults that were not told.
        remade: How often the pool had to be made anew.
        lost: Names of the faults, and the calls that failed with them.
        processes, descriptors, names: Held after closing, beyond what was before.
        memory: Bytes of shared memory still in use; None if it does not say.
    """

    faults: int = 0
    calls: int = 0
    failed: int = 0
    never: int = 0
    wrong: int = 0
    remade: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    processes: int = 0
    descriptors: int = 0
    names: int = 0
    memory: int | None = None


@dataclass(frozen=True)
class Storm:
    """How much of it.

    Attributes:
        faults: Waves, each with another fault, in turn.
        calls: In each wave, beside the faulty one.
        patience: Seconds that the faulty call may take when the others have ended.
        seed: Of all that is random.
    """

    faults: int
    calls: int
    patience: float
    seed: int


def run(name: str, storm: Storm) -> dict[str, object]:
    """All waves with one system."""
    dice = random.Random(storm.seed)
    _once(name)
    before = leaks.held()
    counts = Counts()
    pool = POOLS[name](WORKERS)
    try:
        faults = dice.sample(breaking.FAULTS, len(breaking.FAULTS))
        for fault in itertools.islice(itertools.cycle(faults), storm.faults):
            _wave(pool, fault, storm, dice, counts)
    finally:
        pool.close()
    counts.remade = pool.remade
    gc.collect()  # an exception keeps its frames, they what they had, and that it
    counts.memory = pool.memory()
    for what, number in leaks.left(before, _GONE_WITHIN).items():
        setattr(counts, what, number)
    return asdict(counts)


def _once(name: str) -> None:
    """Have what a system starts once for a program be there before it is measured."""
    pool = POOLS[name](WORKERS)
    pool.submit(breaking.here_and_now).result(60)
    pool.close()


def _wave(
    pool: Pool,
    fault: breaking.Fault,
    storm: Storm,
    dice: random.Random,
    counts: Counts,
) -> None:
    place = dice.randrange(storm.calls)
    faulty: Ticket | None = None
    tickets: list[tuple[Ticket, np.ndarray]] = []
    for number in range(storm.calls):
        if number == place:
            # One that raises at once has told as well.
            with contextlib.suppress(Exception):
                faulty = pool.submit(fault.fn, *fault.args())
        array = np.full(dice.choice(breaking.SIZES), dice.random())
        tickets.append((pool.submit(breaking.plus_one, array), array))
    counts.faults += 1
    counts.calls += storm.calls
    lost = counts.failed
    until = time.monotonic() + _ENDS_WITHIN
    for ticket, array in tickets:
        _look_at_call(ticket, array, until, counts)
    if faulty is not None:
        _look_at_fault(faulty, fault, storm.patience, counts)
    if counts.failed > lost:
        before = counts.lost.get(fault.name, 0)
        counts.lost[fault.name] = before + counts.failed - lost
        pool.remake()


def _look_at_fault(
    ticket: Ticket, fault: breaking.Fault, patience: float, counts: Counts
) -> None:
    try:
        result = ticket.result(patience)
    except NeverCame:
        counts.never += 1
    except BaseException:  # noqa: BLE001  (as it should; which one is another matter)
        counts.wrong += fault.expected is not None
    else:
        counts.wrong += result != fault.expected


def _look_at_call(
    ticket: Ticket, array: np.ndarray, until: float, counts: Counts
) -> None:
    try:
        result = ticket.result(max(0.0, until - time.monotonic()))
    except NeverCame:
        counts.never += 1
        counts.failed += 1
    except BaseException:  # noqa: BLE001  (whatever it is)
        counts.failed += 1
    else:
        right = isinstance(result, np.ndarray) and np.array_equal(result, array + 1)
        counts.wrong += not right
