"""What shmexec is meant to reach, as ratios of figures from the same repeat.

Each is a goal, and its arithmetic: a sum of figures, what it is divided by, and a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from shmexec.comparing.programs import FRAME
from shmexec.comparing.quantities import (
    BEST_PEER,
    NOTHING,
    Quantity,
    memcpy,
    ping_pong,
    taken,
)
from shmexec.comparing.results import Results, median, ratios
from shmexec.comparing.sampling import MB
from shmexec.comparing.systems import (
    FORK_PER_CALL,
    IN_PROCESS,
    SHARE,
    SHMEXEC,
    WITHOUT_NATIVE,
)

_NO_OP = "noop-latency"
_SUBMIT = "noop-submit"
_MICROSECOND = 1e-6
_MILLISECOND = 1e-3


@dataclass(frozen=True)
class Target:
    """One goal.

    Attributes:
        title: What is measured.
        goal: The bound in words.
        value: What is measured, as a sum.
        to: What it is divided by; nothing if empty.
        at_most: The bound, or
        at_least: the bound.
        unit: Of the measured value, in seconds or bytes; 0 for a plain ratio.
    """

    title: str
    goal: str
    value: Quantity
    to: Quantity = NOTHING
    at_most: float | None = None
    at_least: float | None = None
    unit: float = 0.0

    def measured(self, results: Results) -> float | None:
        """Median over the repeats; None if a figure is missing."""
        values = results.values(self.value)
        return median(ratios(values, results.values(self.to)) if self.to else values)

    def met(self, measured: float) -> bool:
        """Whether that is within the bound."""
        return (self.at_most is None or measured <= self.at_most) and (
            self.at_least is None or measured >= self.at_least
        )


def _no_op_targets() -> list[Target]:
    no_op, submit = taken(SHMEXEC, _NO_OP), taken(SHMEXEC, _SUBMIT)
    title, many = "no-op round trip, p50", "no-op, `submit` × 10,000"
    return [
        Target(title, "≤ 3 × ping-pong", no_op, ping_pong(), at_most=3),
        Target(
            title,
            "≤ 0.5 × `multiprocessing.Pool.apply`",
            no_op,
            taken("pool", _NO_OP),
            at_most=0.5,
        ),
        Target(
            title,
            "≤ 0.3 × `ProcessPoolExecutor`",
            no_op,
            taken("ppe-fork", _NO_OP),
            at_most=0.3,
        ),
        Target(
            many,
            "≥ 5 × `ProcessPoolExecutor`",
            taken("ppe-fork", _SUBMIT),
            submit,
            at_least=5,
        ),
        Target(
            many,
            "≥ 2 × `multiprocessing.Pool.apply_async`",
            taken("pool", _SUBMIT),
            submit,
            at_least=2,
        ),
        Target(
            "`map` of 100,000 tiny items",
            "≥ 1 × the best peer's chunked map",
            taken(BEST_PEER, "noop-map-chunked"),
            taken(SHMEXEC, "noop-map-chunked"),
            at_least=1,
        ),
    ]


def _array_targets() -> list[Target]:
    no_op, copy = taken(SHMEXEC, _NO_OP), memcpy(64 * MB)
    extra = taken(SHMEXEC, "out-64MB") - taken(IN_PROCESS, "out-64MB")
    extra_plain = taken(WITHOUT_NATIVE, "out-64MB") - taken(IN_PROCESS, "out-64MB")
    targets = [
        Target(
            "64 MB in",
            "≤ 1.15 × warm `memcpy`",
            taken(SHMEXEC, "in-64MB"),
            copy,
            at_most=1.15,
        )
    ]
    for size in ("8 KB", "1 MB", "64 MB", "512 MB"):
        case = f"shared-{size.replace(' ', '')}"
        targets.append(
            Target(
                f"{size} `share`d, in",
                "≤ a no-op + 15 µs",
                taken(SHARE, case) - no_op,
                at_most=15 * _MICROSECOND,
                unit=_MICROSECOND,
            )
        )
        targets.append(
            Target(
                f"{size} `share`d, in",
                "≤ 0.05 × one process per call",
                taken(SHARE, case),
                taken(FORK_PER_CALL, case),
                at_most=0.05,
            )
        )
    targets += [
        Target(
            "64 MB fresh array out, beyond computing it in process",
            "≤ 0.1 × warm `memcpy`",
            extra,
            copy,
            at_most=0.1,
        ),
        Target(
            "the same without the native part",
            "≤ 1.3 × warm `memcpy`",
            extra_plain,
            copy,
            at_most=1.3,
        ),
    ]
    for size in ("64 MB", "512 MB"):
        case = f"plus-{size.replace(' ', '')}"
        targets.append(
            Target(
                f"`x + 1`, {size} `share`d, result used",
                "≤ 1.0 × in process",
                taken(SHARE, case),
                taken(IN_PROCESS, case),
                at_most=1.0,
            )
        )
    targets.append(
        Target(
            "1 MB there and back",
            "≥ 5 × faster than the best peer",
            taken(BEST_PEER, "both-1MB"),
            taken(SHMEXEC, "both-1MB"),
            at_least=5,
        )
    )
    for size in ("64 MB", "512 MB"):
        case = f"both-{size.replace(' ', '')}"
        for peer, name in (
            ("ray", "Ray"),
            ("dask", "Dask"),
            (FORK_PER_CALL, "one process per call"),
        ):
            targets.append(
                Target(
                    f"{size} there and back",
                    f"≥ 3 × faster than {name}",
                    taken(peer, case),
                    taken(SHMEXEC, case),
                    at_least=3,
                )
            )
    return targets


def _program_targets() -> list[Target]:
    def half_and_a_copy(case: str, nbytes: int) -> Quantity:
        return taken(IN_PROCESS, case).shared_out() + memcpy(nbytes)

    return [
        Target(
            "perceptron over batches, 2 workers",
            "≥ 0.97 of perfect scaling",
            taken(IN_PROCESS, "mlp").shared_out(),
            taken(SHARE, "mlp"),
            at_least=0.97,
        ),
        Target(
            "perceptron over batches, 2 workers",
            "above every peer",
            taken(BEST_PEER, "mlp"),
            taken(SHARE, "mlp"),
            at_least=1,
        ),
        Target(
            "DataFrame 10⁶ × 10 in, a reduction out",
            "≤ 1.05 × (`memcpy` + the reduction in process)",
            taken(SHMEXEC, "frame-in"),
            taken(IN_PROCESS, "frame-in") + memcpy(FRAME),
            at_most=1.05,
        ),
        Target(
            "256 MB broadcast to 64 calls",
            "≤ 1.15 × (half the serial time + `memcpy`)",
            taken(SHARE, "broadcast-256MB"),
            half_and_a_copy("broadcast-256MB", 256 * MB),
            at_most=1.15,
        ),
        Target(
            "100 slices of 160 MB",
            "≤ 1.15 × (half the serial time + `memcpy`)",
            taken(SHARE, "slices-160MB"),
            half_and_a_copy("slices-160MB", 160 * MB),
            at_most=1.15,
        ),
        Target(
            "peak memory, 512 MB there and back",
            "≤ 2.1 × the bytes in and out (1024 MB)",
            (1 / (1024 * MB)) * taken(SHMEXEC, "peak-512MB"),
            at_most=2.1,
        ),
        Target(
            "single rows from 64 threads, by a batcher",
            "≥ 5 × `submit`",
            taken(SHMEXEC, "submit-64-threads"),
            taken(SHMEXEC, "batcher-64-threads"),
            at_least=5,
        ),
        Target(
            "start to first result",
            "≤ 1.1 × `ProcessPoolExecutor` (spawn)",
            taken(SHMEXEC, "start-first"),
            taken("ppe-spawn", "start-first"),
            at_most=1.1,
        ),
        Target(
            "the next executor in the program",
            "≤ 20 ms",
            taken(SHMEXEC, "start-next"),
            at_most=20 * _MILLISECOND,
            unit=_MILLISECOND,
        ),
        Target(
            "memory of 8 idle workers",
            "≤ 0.5 × loky's",
            taken(SHMEXEC, "idle-8"),
            taken("loky", "idle-8"),
            at_most=0.5,
        ),
    ]


TARGETS: tuple[Target, ...] = (
    *_no_op_targets(),
    *_array_targets(),
    *_program_targets(),
)
