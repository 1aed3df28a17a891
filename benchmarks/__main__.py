"""``python -m benchmarks``: measures, prints a Markdown table.

Exit status: 0; 1 if a result was wrong or a measurement failed; 2 for bad arguments;
130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks import fresh, report
from benchmarks.case import Case
from benchmarks.cases import CASES, choose
from benchmarks.child import LIMIT
from benchmarks.limits import MEMCPY, PING_PONG, PING_PONG_ONE_CPU
from benchmarks.report import Failure, Results
from benchmarks.sampling import Sample
from benchmarks.systems import SYSTEMS

_REPEATS, _QUICK_REPEATS = 3, 2
_TIMEOUT, _QUICK_TIMEOUT = 180.0, 30.0

_COPIES_IN_MEMORY = 8
"""So many of a case's arrays must fit into memory: pipes keep several copies."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments say; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        cases = choose(args.cases, quick=args.quick)
    except KeyError as error:
        parser.error(f"unknown case {error}; there are: {_case_names()}")
    for path in (args.json, args.markdown):
        if path is not None and not os.access(path.resolve().parent, os.W_OK):
            parser.error(f"cannot write to {path}")
    if args.repeats is None:
        args.repeats = _QUICK_REPEATS if args.quick else _REPEATS
    results = Results(args.workers, args.repeats, args.quick)
    _leave_out(cases, results)
    _measure(args.systems, cases, results, args.timeout)
    table = report.markdown(results, cases)
    if args.json is not None:
        text = json.dumps(report.as_json(results), indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")
    if args.markdown is not None:
        args.markdown.write_text(table, encoding="utf-8")
    print(table, end="", flush=True)
    return 1 if results.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare shmexec with other ways to call a function in another "
        "process. Prints a Markdown table.",
        epilog=f"Cases: {_case_names()}.",
    )
    parser.add_argument(
        "--systems",
        nargs="+",
        action=_Names,
        default=[*SYSTEMS],
        metavar="NAME",
        help=f"of {', '.join(SYSTEMS)} (default: all)",
    )
    parser.add_argument(
        "--cases", nargs="+", action=_Names, metavar="NAME", help="default: all"
    )
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help="default: 3; 2 with --quick"
    )
    parser.add_argument(
        "--workers", type=_positive, default=2, metavar="N", help="default: 2"
    )
    parser.add_argument(
        "--timeout",
        type=_positive,
        metavar="SECONDS",
        help="for each measurement; default: 180; 30 with --quick",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small arrays, few calls; under 40 s"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all figures there"
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the table there, too"
    )
    return parser


class _Names(argparse.Action):
    """Names with spaces or commas between them; systems must be known."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        names = [name for value in values for name in value.split(",") if name]
        for name in names if self.dest == "systems" else ():
            if name not in SYSTEMS:
                parser.error(
                    f"unknown system {name!r}; there are: {', '.join(SYSTEMS)}"
                )
        setattr(namespace, self.dest, names)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _case_names() -> str:
    families: dict[str, list[str]] = {}
    for case in CASES.values():
        families.setdefault(case.family, []).append(case.name)
    return "; ".join(f"{name} ({', '.join(of)})" for name, of in families.items())


def _leave_out(cases: list[Case], results: Results) -> None:
    """Skip what does not fit into memory: swapping would be all it measured."""
    free = psutil.virtual_memory().available
    for case in cases:
        if case.nbytes * _COPIES_IN_MEMORY > free:
            results.skipped[case.name] = f"only {free >> 20} MB of memory are free"


def _measure(
    systems: list[str], cases: list[Case], results: Results, timeout: float | None
) -> None:
    """All measurements, one after the other."""
    if timeout is None:
        timeout = _QUICK_TIMEOUT if results.quick else _TIMEOUT
    todo = [*_schedule(systems, cases, results)]
    for done, (repeat, system, name, nbytes) in enumerate(todo, 1):
        sample: Sample | None = None
        said = ""
        try:
            sample = fresh.measure(
                system,
                name,
                nbytes=nbytes,
                workers=results.workers,
                quick=results.quick,
                timeout=timeout,
            )
            said = report.duration(sample.p50)
        except fresh.Failed as failed:
            said = f"FAILED: {failed}"
            results.failures.append(Failure(system, name, repeat, str(failed)))
        if system == LIMIT:
            results.limits.setdefault((name, nbytes), []).append(sample)
        else:
            results.samples.setdefault((name, system), []).append(sample)
        line = f"[{done}/{len(todo)}] {report.label(system, name)}: {said}"
        print(line, file=sys.stderr, flush=True)


def _schedule(
    systems: list[str], cases: list[Case], results: Results
) -> Iterator[tuple[int, str, str, int]]:
    """(repeat, system, case, bytes), so that what is compared is measured together.

    Within a repeat the systems take turns in each case, each time beginning with another
    one; the limits are taken just before the first case that needs them.
    """
    for repeat in range(results.repeats):
        known: set[tuple[str, int]] = set()
        for case in cases:
            if case.name in results.skipped:
                continue
            second = (MEMCPY, case.nbytes) if case.copies else (PING_PONG_ONE_CPU, 0)
            for name, nbytes in ((PING_PONG, 0), second):
                if (name, nbytes) not in known:
                    known.add((name, nbytes))
                    yield repeat, LIMIT, name, nbytes
            first = repeat % len(systems)
            for system in systems[first:] + systems[:first]:
                yield repeat, system, case.name, case.nbytes


def _run() -> int:
    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the table has seen enough; the files are written by now. What is
        # still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(_run())
