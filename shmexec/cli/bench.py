"""``shmexec bench``: this pool beside one process per call and the packages that are here.

What is measured, and how, is in :mod:`shmexec.comparing`; here is what a person gets to
see of it: progress, a table for each case, and who was the fastest.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shmexec.cli.output import CommandError, one_line, print_error, print_table
from shmexec.comparing import running
from shmexec.comparing.cases import CASES, choose
from shmexec.comparing.quantities import LIMIT
from shmexec.comparing.results import Figures, Results, as_json, known, median, ratios
from shmexec.comparing.systems import (
    FORK_PER_CALL,
    IN_PROCESS,
    SHARE,
    SHMEXEC,
    SUBPROCESS,
    SYSTEMS,
)
from shmexec.comparing.wording import NONE, amount, digits, ours, unit_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from shmexec.comparing.case import Case

__all__ = ["bench"]

_REPEATS = 3

_CASES = ("noop-latency", "noop-submit", "both-1MB", "both-64MB", "shared-64MB", "mlp")
_QUICK_CASES = ("noop-latency", "both-1MB", "shared-1MB", "mlp")

_PEERS = (
    *(FORK_PER_CALL, SUBPROCESS, "ppe-fork", "pool", "loky", "joblib", "mpire"),
    *("pebble", "ray", "dask", IN_PROCESS),
)
_HEAD = ("", "median", "least", "most", "x shmexec", "x limit", "")


def bench(options: argparse.Namespace) -> int:
    """Carry the command out.

    Args:
        options: Parsed arguments: workers, quick, peers, cases, repeats, timeout, json,
            plot, list.

    Returns:
        0; 1 if a result was wrong or a measurement failed; 2 for bad arguments; 130 after
        Ctrl-C, with what was measured shown and written.
    """
    try:
        if options.list:
            _print_choices()
            return 0
        cases = _chosen_cases(options)
        systems = _chosen_systems(options, cases)
        _check_files(options)
        return _run(options, cases, systems)
    except CommandError as error:
        print_error("bench", str(error))
        return error.code
    except KeyboardInterrupt:
        print_error("bench", "interrupted")
        return 130


def _chosen_cases(options: argparse.Namespace) -> list[Case]:
    named = _names(options.cases) or (_QUICK_CASES if options.quick else _CASES)
    try:
        return choose([*named], quick=options.quick)
    except KeyError as error:
        msg = f"there is no case {error}; shmexec bench --list names them"
        raise CommandError(msg) from None


def _chosen_systems(options: argparse.Namespace, cases: Sequence[Case]) -> list[str]:
    """Their names, in the order of tables; with them those that limits are made of."""
    named = _names(options.peers)
    for name in named:
        if name not in SYSTEMS:
            msg = f"there is no peer {name!r}; shmexec bench --list names them"
            raise CommandError(msg)
    for name in named:
        if (why := SYSTEMS[name].missing()) is not None:
            msg = (
                f"{name} is {why}: pip install {SYSTEMS[name].package}, or "
                "pip install 'shmexec[bench]' for all peers"
            )
            raise CommandError(msg)
    light = [name for name in _PEERS if not (options.quick and SYSTEMS[name].heavy)]
    wanted = {SHMEXEC, SHARE, *(named or light)}
    wanted |= {
        t.system for case in cases for t in case.limit.terms if t.system != LIMIT
    }
    return [name for name in SYSTEMS if name in wanted]


def _names(given: Sequence[str] | None) -> list[str]:
    """Those with commas between them, too."""
    return [name for text in given or () for name in text.split(",") if name]


def _check_files(options: argparse.Namespace) -> None:
    """Before minutes of measuring, not after them."""
    for path in (options.json, options.plot):
        if path is not None and not os.access(Path(path).resolve().parent, os.W_OK):
            msg = f"cannot write to {path}"
            raise CommandError(msg)
    if options.plot is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        msg = "--plot needs matplotlib: pip install 'shmexec[bench]'"
        raise CommandError(msg)
    if Path(options.plot).suffix not in {".png", ".svg", ".pdf"}:
        msg = f"--plot writes .png, .svg or .pdf, not {options.plot}"
        raise CommandError(msg)


def _print_choices() -> None:
    print("cases (--cases; also the families in the second column):")
    for case in CASES.values():
        mark = "*" if case.name in _CASES else " "
        title = case.title.replace("`", "")
        print(f"  {mark} {case.name:20} {case.family:10} {title}")
    print("peers (--peers):")
    for name, system in SYSTEMS.items():
        if name not in {SHMEXEC, SHARE}:
            mark = "*" if name in _PEERS else " "
            why = system.missing()
            print(f"  {mark} {name:20} {system.title}{f' ({why})' if why else ''}")
    print("* by default, if installed")


def _run(options: argparse.Namespace, cases: list[Case], systems: list[str]) -> int:
    results = Results(options.workers, options.repeats or _REPEATS, options.quick)
    running.leave_out(cases, results)
    there = running.present(systems, results)
    with _progress() as say:
        running.measure(there, cases, results, timeout=options.timeout, say=say)
    _show(results, cases)
    if options.json is not None:
        text = json.dumps(as_json(results), indent=1)
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    if options.plot is not None and results.samples:
        from shmexec.comparing import plot

        plot.draw(results, cases, Path(options.plot))
    if results.interrupted:
        print_error("bench", "interrupted: not all repeats are there")
        return 130
    return 1 if results.failures else 0


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], object]]:
    """What to tell of each measurement: a bar on a terminal, else lines, on stderr."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.progress import Progress, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda done, of, what: bar.update(
                task, completed=done, total=of, description=what[:60]
            )
        return

    def say(done: int, of: int, what: str) -> None:
        print(f"[{done}/{of}] {what}", file=sys.stderr, flush=True)

    yield say


# -- what is shown -------------------------------------------------------------------------


def _show(results: Results, cases: Sequence[Case]) -> None:
    machine = results.environment
    print(
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory'] / 2**30:.0f} GB, "
        f"{machine['system']}, Python {machine['python']}, NumPy {machine['numpy']}\n"
        f"workers: {results.workers}, one BLAS thread each; interleaved repeats: "
        f"{results.repeats}, each in a fresh process; all results checked"
        f"{'; quick: fewer calls, whole programs made smaller' * results.quick}"
    )
    shown = [case for case in cases if _names_of(results, case)]
    for case in shown:
        name, unit = unit_of(case, results)
        limit = f"; limit: {name}, {amount(median(unit), case)}" if case.limit else ""
        title = case.title.replace("`", "")
        print()
        print_table(f"{title}{limit.replace('`', '')}", _HEAD, _rows(results, case))
    for line in (*_summary(results, shown), *_notes(results)):
        print(line)


def _names_of(results: Results, case: Case) -> list[str]:
    return [name for name in SYSTEMS if (case.name, name) in results.samples]


def _rows(results: Results, case: Case) -> list[tuple[str, ...]]:
    """The fastest first; those that failed last."""
    own = results.figures(ours(case), case.name)
    unit: Figures = unit_of(case, results)[1] if case.limit else [None] * len(own)
    rows = []
    for name in _names_of(results, case):
        figures = results.figures(name, case.name)
        middle, there = median(figures), known(figures)
        if middle is None:
            cells = ("FAILED", NONE, NONE, NONE, NONE, "")
        else:
            to_ours = ratios(figures, own)
            cells = (
                amount(middle, case),
                amount(min(there), case),
                amount(max(there), case),
                _times(median(to_ours)),
                _times(median(ratios(figures, unit))),
                _remark(name, known(to_ours)),
            )
        title = SYSTEMS[name].title.replace("`", "")
        rows.append((float("inf") if middle is None else middle, (title, *cells)))
    return [row for _, row in sorted(rows)]


def _remark(name: str, to_ours: Sequence[float]) -> str:
    if name == IN_PROCESS:
        return "1 CPU"
    if not _is_rival(name) or not to_ours or min(to_ours) >= 1:
        return ""
    return "faster" if max(to_ours) < 1 else "about even"


def _is_rival(name: str) -> bool:
    """Not so what runs in process: no other process, no copy, no second CPU."""
    return name != IN_PROCESS and not SYSTEMS[name].ours


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else digits(ratio)


def _summary(results: Results, cases: Sequence[Case]) -> Iterator[str]:
    """Who was the fastest, and what one process per call comes to."""
    yield ""
    for case in cases:
        own = results.figures(ours(case), case.name)
        rivals = {
            name: there
            for name in _names_of(results, case)
            if _is_rival(name)
            and (there := known(ratios(results.figures(name, case.name), own)))
        }
        if not rivals:
            continue
        best = min(rivals, key=lambda name: median(rivals[name]) or 0.0)
        line = f"{case.title.replace('`', '')}: {_against(best, rivals[best])}"
        if FORK_PER_CALL in rivals and best != FORK_PER_CALL:
            line += f"; {_against(FORK_PER_CALL, rivals[FORK_PER_CALL])}"
        yield line


def _against(name: str, times: Sequence[float]) -> str:
    """Who is faster, if that is so in all repeats."""
    title = SYSTEMS[name].title
    middle = median(times) or 0.0
    if min(times) < 1 < max(times):
        span = f"{_factor(min(times))} to {_factor(max(times))}"
        return f"{title} is about even with shmexec ({span} x its time)"
    if middle < 1:
        return f"{title} is {_factor(1 / middle)} x as fast as shmexec"
    return f"shmexec is {_factor(middle)} x as fast as {title}"


def _factor(ratio: float) -> str:
    """Near one, the third digit counts."""
    return f"{ratio:.2f}" if ratio < 2 else digits(ratio)


def _notes(results: Results) -> Iterator[str]:
    if results.absent:
        absent = ", ".join(SYSTEMS[name].title for name in results.absent)
        yield f"not installed: {absent} (pip install 'shmexec[bench]')"
    for name, why in results.skipped.items():
        yield f"skipped {name}: {why}"
    for failure in results.failures:
        where = f"{failure.system}, {failure.case}, repeat {failure.repeat + 1}"
        yield f"FAILED: {where}: {one_line(failure.why)}"
