"""``python -m benchmarks``: measures, prints Markdown tables.

Exit status: 0; 1 if a result was wrong or a measurement failed; 2 for bad arguments;
130 after Ctrl-C, with all that was measured written.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks import fresh, plot, report
from benchmarks.case import Case
from benchmarks.cases import CASES, choose
from benchmarks.quantities import LIMIT, Term
from benchmarks.results import Failure, Results, as_json, combined, from_json
from benchmarks.sampling import Sample
from benchmarks.systems import SYSTEMS
from benchmarks.targets import TARGETS

_REPEATS, _QUICK_REPEATS = 3, 1
_TIMEOUT, _QUICK_TIMEOUT = 120.0, 30.0

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
    _check_files(parser, args)
    if args.load is not None:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in args.load]
        try:
            results = from_json(combined(runs) if len(runs) > 1 else runs[0])
        except ValueError as error:
            parser.error(str(error))
        measured = {case for case, _ in results.samples}
        cases = [case for case in cases if case.name in measured]
    else:
        if args.repeats is None:
            args.repeats = _QUICK_REPEATS if args.quick else _REPEATS
        results = Results(args.workers, args.repeats, args.quick)
        _run_all(args, cases, results)
    _write(args, cases, results)
    if results.interrupted and args.load is None:
        return 130
    return 1 if results.failures else 0


def _check_files(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Before an hour of measuring, not after it."""
    for path in (args.json, args.markdown, args.plot, args.readme):
        if path is not None and not os.access(path.resolve().parent, os.W_OK):
            parser.error(f"cannot write to {path}")
    for path in (args.readme, *(args.load or ())):
        if path is not None and not path.is_file():
            parser.error(f"there is no {path}")
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'shmexec[bench]'")


def _write(args: argparse.Namespace, cases: list[Case], results: Results) -> None:
    table = report.markdown(results, cases)
    if args.json is not None:
        text = json.dumps(as_json(results), indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")
    if args.markdown is not None:
        args.markdown.write_text(table, encoding="utf-8")
    if args.plot is not None:
        plot.draw(results, cases, args.plot)
    if args.readme is not None:
        report.write_readme(args.readme, results, args.plot)
    print(table, end="", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare shmexec with other ways to call a function in another "
        "process. Prints Markdown tables. Packages that are not installed are left "
        "out, and named; pip install 'shmexec[bench]' installs all.",
        epilog=f"Cases: {_case_names()}.",
    )
    add = parser.add_argument
    add(
        "--systems",
        nargs="+",
        action=_Names,
        metavar="NAME",
        help=f"of {', '.join(SYSTEMS)} (default: all; "
        "with --quick those that are light)",
    )
    add("--cases", nargs="+", action=_Names, metavar="NAME", help="default: all")
    add("--repeats", type=_positive, metavar="N", help="default: 3; 1 with --quick")
    add("--workers", type=_positive, default=2, metavar="N", help="default: 2")
    add(
        "--timeout",
        type=_positive,
        metavar="SECONDS",
        help="for each measurement; default: 120; 30 with --quick",
    )
    add("--quick", action="store_true", help="small arrays, few calls; about a minute")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--markdown", type=Path, metavar="FILE", help="write the tables there, too")
    add("--plot", type=Path, metavar="FILE", help="draw a figure: .svg, .png, .pdf")
    add(
        "--readme",
        type=Path,
        metavar="FILE",
        help="write the main table, and the plot's place, between two markers there",
    )
    add(
        "--load",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing: take the figures that --json wrote, of one run or more",
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


def _run_all(args: argparse.Namespace, cases: list[Case], results: Results) -> None:
    """Measure; what Ctrl-C leaves is kept."""
    _leave_out(cases, results)
    wanted = args.systems or [
        system.name for system in SYSTEMS.values() if not (args.quick and system.heavy)
    ]
    systems = []
    for name in wanted:
        if (why := SYSTEMS[name].missing()) is not None:
            results.absent[name] = why
        else:
            systems.append(name)
    try:
        _measure(systems, cases, results, args.timeout)
    except KeyboardInterrupt:
        print("interrupted: what was measured is written", file=sys.stderr)
        results.interrupted = True


def _leave_out(cases: list[Case], results: Results) -> None:
    """Skip what does not fit into memory: swapping would be all it measured."""
    free = psutil.virtual_memory().available
    for case in cases:
        if not results.quick and case.nbytes * _COPIES_IN_MEMORY > free:
            results.skipped[case.name] = f"only {free >> 20} MB of memory are free"


def _measure(
    systems: list[str], cases: list[Case], results: Results, timeout: float | None
) -> None:
    """All measurements, one after the other."""
    if timeout is None:
        timeout = _QUICK_TIMEOUT if results.quick else _TIMEOUT
    todo = [*_schedule(systems, cases, results)]
    start = time.monotonic()
    for done, (repeat, system, name, nbytes) in enumerate(todo, 1):
        sample: Sample | None = None
        try:
            sample = fresh.measure(
                system,
                name,
                nbytes=nbytes,
                workers=results.workers,
                quick=results.quick,
                timeout=timeout,
                environment={} if system == LIMIT else SYSTEMS[system].environment,
            )
            said = _said(system, name, sample)
        except fresh.Failed as failed:
            said = f"FAILED: {failed}"
            results.failures.append(Failure(system, name, repeat, str(failed)))
        if system == LIMIT:
            results.limits.setdefault((name, nbytes), []).append(sample)
        else:
            results.samples.setdefault((name, system), []).append(sample)
        passed = time.monotonic() - start
        line = f"[{done}/{len(todo)}, {passed:.0f} s] {report.label(system, name)}"
        print(f"{line}: {said}", file=sys.stderr, flush=True)


def _said(system: str, name: str, sample: Sample) -> str:
    if system == LIMIT:
        return report.duration(sample.p50)
    return report.amount(sample.p50, CASES[name])


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
            there = [name for name in systems if SYSTEMS[name].takes_part(case)]
            for term in _limits(case) if there else ():
                if (term.case, term.nbytes) not in known:
                    known.add((term.case, term.nbytes))
                    yield repeat, LIMIT, term.case, term.nbytes
            first = repeat % max(1, len(there))
            for system in there[first:] + there[:first]:
                yield repeat, system, case.name, case.nbytes


def _limits(case: Case) -> Iterator[Term]:
    """What must be measured to say how close to its limit a system is."""
    targets = (
        quantity.terms
        for target in TARGETS
        for quantity in (target.value, target.to)
        if any(term.case == case.name for term in target.value.terms)
    )
    for terms in (case.limit.terms, *targets):
        yield from (term for term in terms if term.system == LIMIT)


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
