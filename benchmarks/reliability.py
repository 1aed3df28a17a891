"""What becomes of a pool when things go wrong, measured beside others.

    python -m benchmarks.reliability [--quick] [--seed N] [--systems NAME ...] [--json FILE]

Each system gets the same faults and calls, in a process of its own, in turn with the
others. A call that is not the faulty one must give the right result. What a system
cannot do is shown as a dash. Times are medians, and in brackets the smallest and the
largest; beside those of shmexec stands how often the least that the machine takes to
start a process they are, measured in the same run.

Exit status: 0; 1 if shmexec lost a call, gave a wrong result or left something behind,
or if a measurement failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import recovery, storm
from benchmarks.breakable import POOLS
from shmexec.comparing import fresh
from shmexec.comparing.systems import SHMEXEC, SYSTEMS

_MACHINE = "machine"
"""Stands for a system: what the machine itself takes."""


_QUICK = (SHMEXEC, "ppe-fork", "pool")
"""In a smoke run: what is always there."""


@dataclass(frozen=True)
class Plan:
    """How much is measured in one process.

    Attributes:
        storm: Faults and calls.
        times: Deaths, and time-outs.
        patience: Seconds after which nothing is waited for any more.
        idle: Seconds of idleness.
        peers_idle: Whether that is asked of others, too: some take long to start 8.
        timeout: Seconds that the whole process may take.
    """

    storm: storm.Storm
    times: int
    patience: float
    idle: float
    peers_idle: bool
    timeout: float

    @classmethod
    def of(cls, seed: int, *, quick: bool) -> Plan:
        """A smoke run, or what gives figures."""
        if quick:
            return cls(storm.Storm(5, 4, 0.5, seed), 1, 10.0, 0.5, False, 60.0)
        return cls(storm.Storm(32, 25, 0.5, seed), 15, 10.0, 10.0, True, 900.0)


# -- in the process that measures ------------------------------------------------------


def _measure(name: str, plan: Plan) -> None:
    """Print a line for each part as soon as it is there."""
    parts: dict[str, Callable[[], object]]
    if name == _MACHINE:
        # Many: each takes little, and they are to tell how evenly the machine runs.
        parts = {"forks": lambda: recovery.forks(10 * plan.times)}
    else:
        idle = {"idle": lambda: recovery.idle(name, plan.idle)}
        parts = {
            "deaths": lambda: recovery.deaths(name, plan.times, plan.patience),
            "timeouts": lambda: recovery.timeouts(name, plan.times, plan.patience),
            **(idle if plan.peers_idle or name == SHMEXEC else {}),
            "storm": lambda: storm.run(name, plan.storm),
        }
    for part, measure in parts.items():
        print(json.dumps([part, measure()]), flush=True)


# -- in the process that compares ------------------------------------------------------


@dataclass
class Figures:
    """What was measured of one system, in all repeats.

    Attributes:
        parts: By their names; one entry for each repeat that came that far.
        failures: Why others did not.
    """

    parts: dict[str, list[Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def times(self, part: str) -> list[float | None] | None:
        """All times of a part; None if it is not for this system."""
        samples = [sample for sample in self.parts.get(part, ()) if sample is not None]
        if not samples:
            return None
        return [seconds for sample in samples for seconds in sample]

    def total(self, what: str) -> int | None:
        """A count of the storms, of all repeats together."""
        counts = [sample[what] for sample in self.parts.get("storm", ())]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None


def _in_fresh_process(name: str, args: argparse.Namespace, seed: int) -> Figures:
    plan = Plan.of(seed, quick=args.quick)
    command = [sys.executable, "-m", "benchmarks.reliability", "--measure", name]
    command += ["--seed", str(seed), *(["--quick"] if args.quick else [])]
    figures = Figures()
    output, error = fresh.run(command, plan.timeout)
    for line in output.splitlines():
        if line.startswith("["):
            part, figure = json.loads(line)
            figures.parts[part] = [figure]
    if error is not None:
        figures.failures.append(error)
    return figures


def _run_all(args: argparse.Namespace, systems: Sequence[str]) -> dict[str, Figures]:
    found: dict[str, Figures] = {}
    with contextlib.suppress(KeyboardInterrupt):  # what there is by then is shown
        _measure_all(args, systems, found)
    return found


def _measure_all(
    args: argparse.Namespace, systems: Sequence[str], found: dict[str, Figures]
) -> None:
    for repeat in range(args.repeats):
        first = repeat % max(1, len(systems))
        for name in (_MACHINE, *systems[first:], *systems[:first]):
            print(f"repeat {repeat + 1}: {name}", file=sys.stderr, flush=True)
            # The same faults for all, others in each repeat.
            new = _in_fresh_process(name, args, args.seed + repeat)
            old = found.setdefault(name, Figures())
            old.failures += new.failures
            for part, figures in new.parts.items():
                old.parts.setdefault(part, []).extend(figures)


# -- the table -------------------------------------------------------------------------

_DASH = "–"


def _count(figures: Figures, what: str, *, good: int | None = None) -> str:
    number = figures.total(what)
    if number is None:
        return _DASH
    return f"**{number}**" if number == good else str(number)


def _milliseconds(values: Sequence[float | None] | None) -> str:
    """Median and spread; how often nothing came."""
    if values is None:
        return _DASH
    came = [value * 1e3 for value in values if value is not None]
    never = len(values) - len(came)
    told = f"{never} of {len(values)} never came" if never else ""
    if not came:
        return "never came"
    text = f"{median(came):.1f} ms ({min(came):.1f}–{max(came):.1f})"
    return f"{text}; {told}" if told else text


def _ratio(values: Sequence[float | None] | None, least: float | None) -> str:
    came = [value for value in values or () if value is not None]
    return f"{median(came) / least:.1f} ×" if came and least else _DASH


def _idle(figures: Figures) -> str:
    shares = figures.parts.get("idle")
    if not shares:
        return _DASH
    text = f"{median(shares) * 100:.3f} %"
    if len(shares) > 1:
        text += f" ({min(shares) * 100:.3f}–{max(shares) * 100:.3f})"
    return text


def _leaks(figures: Figures) -> str:
    counts = [_count(figures, what) for what in ("processes", "descriptors", "names")]
    counts.append(_count(figures, "memory"))
    return " / ".join(counts)


def table(found: dict[str, Figures]) -> str:
    """The Markdown table, a column for each system."""
    machine = found.get(_MACHINE, Figures())
    forks = [value for value in machine.times("forks") or () if value is not None]
    least = median(forks) if forks else None
    rows: dict[str, Callable[[Figures], str]] = {
        "faults tried": lambda f: _count(f, "faults"),
        "other calls run": lambda f: _count(f, "calls"),
        "of those failed": lambda f: _count(f, "failed", good=0),
        "calls that never ended": lambda f: _count(f, "never", good=0),
        "results wrong, faults not told": lambda f: _count(f, "wrong", good=0),
        "pools broken for good": lambda f: _count(f, "remade", good=0),
        "left: processes / descriptors / names / bytes": _leaks,
        "from death to a reply of a new worker": lambda f: _milliseconds(
            f.times("deaths")
        ),
        "the same, × the least¹": lambda f: _ratio(f.times("deaths"), least),
        "from time-out to the next call in that slot": lambda f: _milliseconds(
            f.times("timeouts")
        ),
        "idle CPU of 8 workers, of one core": _idle,
    }
    names = [name for name in found if name != _MACHINE]
    lines = [
        "| | " + " | ".join(SYSTEMS[name].title for name in names) + " |",
        "|---|" + "--:|" * len(names),
    ]
    for what, cell in rows.items():
        cells = " | ".join(cell(found[name]) for name in names)
        lines.append(f"| {what} | {cells} |")
    lines += [
        "",
        f"¹ A bare fork of a process that has NumPy loaded: {_milliseconds(forks)}.",
        *_remarks(found, names),
    ]
    return "\n".join(lines) + "\n"


def _remarks(found: dict[str, Figures], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        lost: dict[str, int] = {}
        for sample in found[name].parts.get("storm", ()):
            for fault, number in sample["lost"].items():
                lost[fault] = lost.get(fault, 0) + number
        if lost:
            each = ", ".join(f"{fault} {number}" for fault, number in lost.items())
            yield f"- {SYSTEMS[name].title}: calls lost with {each}"
        for failure in found[name].failures:
            yield f"- FAILED: {SYSTEMS[name].title}: {failure}"


def failed(found: dict[str, Figures]) -> bool:
    """Whether there is anything that must not be."""
    ours = found.get(SHMEXEC)
    kept = ("failed", "never", "wrong", "remade")
    left = ("processes", "descriptors", "names", "memory")
    bad = ours is not None and any(ours.total(what) for what in kept + left)
    return bad or any(figures.failures for figures in found.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability")
    add = parser.add_argument
    add("--quick", action="store_true", help="a smoke run, without peers to install")
    add("--seed", type=int, default=1, help="of the order and places of faults")
    add("--repeats", type=int, help="default: 3; 1 with --quick")
    add("--systems", nargs="+", choices=[*POOLS], metavar="NAME", help=", ".join(POOLS))
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--measure", choices=[*POOLS, _MACHINE], help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.measure is not None:
        _measure(args.measure, Plan.of(args.seed, quick=args.quick))
        return 0
    args.repeats = args.repeats or (1 if args.quick else 3)
    wanted = args.systems or [*(_QUICK if args.quick else POOLS)]
    absent = {name: why for name in wanted if (why := SYSTEMS[name].missing())}
    found = _run_all(args, [name for name in wanted if name not in absent])
    if args.json is not None:
        parts = {name: figures.parts for name, figures in found.items()}
        args.json.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    print(table(found), end="")
    for name, why in absent.items():
        print(f"- {SYSTEMS[name].title}: {why}")
    return int(failed(found))


if __name__ == "__main__":
    sys.exit(main())
