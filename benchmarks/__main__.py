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

from benchmarks import report
from benchmarks.targets import TARGETS
from shmexec.comparing import plot, running
from shmexec.comparing.case import Case
from shmexec.comparing.cases import CASES, choose
from shmexec.comparing.quantities import LIMIT, Term
from shmexec.comparing.results import Results, as_json, combined, from_json
from shmexec.comparing.systems import SYSTEMS

_REPEATS, _QUICK_REPEATS = 3, 1


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
    running.leave_out(cases, results)
    wanted = args.systems or [
        system.name for system in SYSTEMS.values() if not (args.quick and system.heavy)
    ]
    systems = running.present(wanted, results)
    start = time.monotonic()

    def say(done: int, of: int, what: str) -> None:
        passed = time.monotonic() - start
        print(f"[{done}/{of}, {passed:.0f} s] {what}", file=sys.stderr, flush=True)

    running.measure(
        systems, cases, results, timeout=args.timeout, limits=_limits, say=say
    )
    if results.interrupted:
        print("interrupted: what was measured is written", file=sys.stderr)


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
