"""The crash matrix: what is expected of each fault at each moment.

``python -m tests.integration.matrix`` prints it. The faults are in ``matrix_faults``, the
moments are points of :mod:`shmexec.faultpoints`, and what runs each pair is in
``test_matrix``.
"""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.integration.matrix_faults import FAULTS

NONE, DIED, OWN, TIMEOUT, BROKEN, FULL = "-", "died", "own", "time", "broken", "full"
"""Which calls fail: none; the one that was hit, with WorkerDied, with the exception that
it raised, with CallTimeout; all that wait, with PoolBroken; one with SharedMemoryFull."""

MOMENTS = {
    "starting": "worker.starting",
    "initializer": "test.initializer",
    "idle": "signal",
    "leased": "parent.leased",
    "reading": "worker.read",
    "in the call": "test.call",
    "writing": "worker.writing",
    "replied": "worker.replied",
    "draining": "worker.ending",
    "shutdown": "worker.ending",
}
"""Names of moments, and the points at which they are met. Those in idleness, and between
lease and send, come by a signal to a worker that waits for a message."""

_DEADLY = [NONE, NONE, NONE, NONE, NONE, DIED, DIED, NONE, NONE, NONE]
_RAISED = [NONE, BROKEN, NONE, NONE, NONE, OWN, DIED, NONE, NONE, NONE]
_HARMLESS = [NONE] * 10

TABLE: dict[str, list[str]] = {
    "SIGKILL": _DEADLY,
    "SIGSEGV": _DEADLY,
    "SIGSTOP, SIGCONT": _HARMLESS,
    "SIGTERM ignored": [
        *(NONE, NONE),
        *(TIMEOUT, TIMEOUT, TIMEOUT, TIMEOUT, TIMEOUT, TIMEOUT),
        *(NONE, NONE),
    ],
    "os._exit": _DEADLY,
    "sys.exit": _RAISED,
    "KeyboardInterrupt": _RAISED,
    "stack overflow": _DEADLY,
    "MemoryError": _RAISED,
    "closed descriptors": _DEADLY,
    "closed, and goes on": _DEADLY,
    "empty message": _DEADLY,
    "no descriptors left": _HARMLESS,
    "thread still running": _HARMLESS,
    "grandchild": _DEADLY,
    "arena filled": [
        "it has no arena yet",
        *(FULL, FULL, FULL, FULL, FULL, FULL, FULL),
        "no call follows",
        "no call follows",
    ],
    "truncated message": _DEADLY,
    "garbage": _DEADLY,
}
"""For each fault, in the order of the moments, which calls fail, or why it cannot be."""

TABLE_OF = {
    (fault, moment): expected
    for fault, row in TABLE.items()
    for moment, expected in zip(MOMENTS, row, strict=True)
}

NOTES = """\
-: no call fails. A call that had not begun goes to another worker; a death while starting
is made up for by the next start. died: the call that was hit fails with WorkerDied. own:
it fails with what it raised. time: it fails with CallTimeout; a worker that hangs before
its call has begun costs that call its time, too. broken: an initializer that raises breaks
the pool: all that wait fail with PoolBroken. full: one call fails with SharedMemoryFull,
the next one finds room. Stopped, or with a thread, in its end: killed when its time for
that is over; who has closed its end of the pipe has a moment. What raises outside of a call stands for a signal handler of user code's."""


@dataclass(frozen=True)
class Pair:
    """A fault at a moment, in workers of some kind."""

    fault: str
    moment: str
    method: str
    native: bool

    @property
    def expected(self) -> str:
        """Which calls fail; or, with spaces in it, why it cannot be."""
        return TABLE_OF[self.fault, self.moment]

    @property
    def occurs(self) -> bool:
        """Whether there is such a thing."""
        return " " not in self.expected

    @property
    def id(self) -> str:
        """As part of a test's name."""
        native = "native" if self.native else "plain"
        return f"{self.moment}-{self.fault}-{self.method}-{native}"


KINDS = [
    (method, native)
    for method in ("forkserver", "fork", "spawn")
    for native in (True, False)
]


def _row(method: str, *, native: bool, shift: int) -> list[Pair]:
    """Each fault once, and all moments about as often; another shift, other pairs."""
    moments = [*MOMENTS]
    pairs = [
        Pair(fault, moments[(3 * number + shift) % len(moments)], method, native)
        for number, fault in enumerate(FAULTS)
    ]
    return [pair for pair in pairs if pair.occurs]


def _every(method: str, *, native: bool) -> list[Pair]:
    pairs = [Pair(fault, at, method, native) for fault in FAULTS for at in MOMENTS]
    return [pair for pair in pairs if pair.occurs]


def quick_pairs() -> list[Pair]:
    """Those of the default run."""
    return [
        *_row("forkserver", native=True, shift=0),
        *_row("fork", native=False, shift=5),
        *_row("spawn", native=True, shift=2)[::10],
    ]


def other_pairs(*, of_all_kinds: bool) -> list[Pair]:
    """The rest: of the kind that is the default on Linux, and some of each other."""
    chosen = _every("forkserver", native=True)
    for number, (method, native) in enumerate(KINDS[1:]):
        if of_all_kinds:
            chosen += _every(method, native=native)
        else:
            step = 6 if method == "spawn" else 1
            chosen += _row(method, native=native, shift=number)[::step]
    quick = set(quick_pairs())
    return [pair for pair in chosen if pair not in quick]


def result_lines(passed: Iterable[str], failed: Iterable[str]) -> Iterable[str]:
    """The table of what came out, and in how many kinds of workers, or that it FAILED.

    Args:
        passed: Ids of tests, also of others.
        failed: As well.
    """
    counts = Counter(_cells(passed))
    cells = {cell: f"{TABLE_OF[cell]} *{count}" for cell, count in counts.items()}
    return lines(cells | dict.fromkeys(_cells(failed), "FAILED"))


def _cells(tests: Iterable[str]) -> Iterable[tuple[str, str]]:
    for test in (each for each in tests if "test_matrix.py" in each):
        moment, *rest = test.partition("[")[2].rstrip("]").split("-")
        if moment in MOMENTS:
            yield rest[0], moment


def lines(results: Mapping[tuple[str, str], str] | None = None) -> Iterable[str]:
    """The table as text, of what is expected or of what came out."""
    width = max(map(len, FAULTS))
    yield " " * width + "".join(f"{moment:>12}" for moment in MOMENTS)
    whys: dict[str, int] = {}
    for fault, row in TABLE.items():
        cells = []
        for moment, expected in zip(MOMENTS, row, strict=True):
            if " " in expected:
                number = whys.setdefault(expected, len(whys) + 1)
                cells.append(f"({number})")
            elif results is None:
                cells.append(expected)
            else:
                cells.append(results.get((fault, moment), ""))
        yield f"{fault:{width}}" + "".join(f"{cell:>12}" for cell in cells)
    for why, number in whys.items():
        yield f"({number}) cannot be: {why}"


if __name__ == "__main__":
    text = "\n".join(lines())
    sys.stdout.write(f"{text}\n\n{textwrap.fill(NOTES, 100)}\n")
