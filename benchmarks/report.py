"""From figures to Markdown: a table for each family of cases, and one of the targets.

Ratios are taken within a repeat, where both figures come from the same minute, and their
median is shown. They carry over to other machines better than times do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.targets import TARGETS, Target
from shmexec.comparing.case import Case
from shmexec.comparing.cases import CASES
from shmexec.comparing.results import Figures, Results, known, median, ratios
from shmexec.comparing.systems import IN_PROCESS, SYSTEMS
from shmexec.comparing.wording import (
    FAMILIES,
    NONE,
    amount,
    digits,
    duration,
    ours,
    unit_of,
)

README_CASES = (
    "noop-latency",
    "noop-submit",
    "noop-map-chunked",
    "in-1MB",
    "in-64MB",
    "out-64MB",
    "both-1MB",
    "both-64MB",
    "both-512MB",
    "shared-64MB",
    "plus-64MB",
    "reuse-512MB",
    "broadcast-256MB",
    "slices-160MB",
    "mlp",
    "frame-in",
    "frame-both",
    "import",
    "start-first",
    "start-next",
    "peak-512MB",
    "idle-8",
)

_BEGIN, _END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


# -- all tables ------------------------------------------------------------------------


def markdown(results: Results, cases: Sequence[Case]) -> str:
    """All tables, what they say about the machine, and what went wrong."""
    lines = [_how(results), "", _where(results)]
    for family, title in FAMILIES.items():
        of_family = [case for case in cases if case.family == family]
        lines += _table(title, of_family, results) if of_family else []
    lines += target_table(results)
    lines += _notes(results)
    return "\n".join(lines) + "\n"


def _how(results: Results) -> str:
    kind = (
        "A quick run: fewer calls, one size, whole programs shrunk. "
        if results.quick
        else ""
    )
    kind += "Interrupted: not all repeats are there. " if results.interrupted else ""
    return (
        f"{kind}Medians over {_repeats(results)}, each in a fresh "
        f"process; {results.workers} workers, one BLAS thread each. Less is better. "
        "Beside each figure its ratio to the first row's, from the same repeats, with "
        "the smallest and the largest of them; the best is bold. A system that would "
        "take long makes fewer calls, and is scaled up."
    )


def _where(results: Results) -> str:
    machine = results.environment
    packages = "".join(
        f", {name} {version}" for name, version in machine["packages"].items()
    )
    return (
        f"{machine['date']}; {machine['cpu']}, {machine['cpus']} CPUs, "
        f"{machine['memory'] / 2**30:.0f} GB; {machine['system']}; "
        f"Python {machine['python']}, NumPy {machine['numpy']}{packages}."
    )


def _table(title: str, cases: Sequence[Case], results: Results) -> list[str]:
    cases = [case for case in cases if case.name not in results.skipped]
    if not cases:
        return []
    heads, firsts = ["system"], ["*1 ×*"]
    columns: list[dict[str, str]] = []
    for case in cases:
        name, unit = unit_of(case, results)
        heads.append(case.title)
        firsts.append(f"*{name}: {amount(median(unit), case)}*")
        columns.append(_column(case, results, unit))
        if case.tail:
            heads.append("p99")
            firsts.append("")
            columns.append(_tails(case, results))
    rows = [
        [SYSTEMS[name].title, *(column.get(name, NONE) for column in columns)]
        for name in SYSTEMS
        if any(name in column for column in columns)
    ]
    aligned = f"|---|{'--:|' * len(columns)}"
    return ["", f"### {title}", "", _line(heads), aligned, *map(_line, [firsts, *rows])]


def _column(case: Case, results: Results, unit: Figures) -> dict[str, str]:
    cells: dict[str, str] = {}
    figures = {
        name: results.figures(name, case.name)
        for name in SYSTEMS
        if (case.name, name) in results.samples
    }
    middles = {name: median(values) for name, values in figures.items()}
    rivals = known(middle for name, middle in middles.items() if name != IN_PROCESS)
    for name, values in figures.items():
        middle = middles[name]
        if middle is None:
            cells[name] = "FAILED"
            continue
        text = amount(middle, case)
        bold = name != IN_PROCESS and middle == min(rivals)
        text = f"**{text}**" if bold else text
        cells[name] = f"{text}, {_ratio(ratios(values, unit))}"
    return cells


def _tails(case: Case, results: Results) -> dict[str, str]:
    return {
        name: amount(median(results.tails(name, case.name)), case)
        for name in SYSTEMS
        if (case.name, name) in results.samples
    }


def _ratio(figures: Figures) -> str:
    there = known(figures)
    if not there:
        return NONE
    middle, least, most = map(digits, (median(there) or 0.0, min(there), max(there)))
    return f"{middle} × ({least}–{most})" if least != most else f"{middle} ×"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _notes(results: Results) -> list[str]:
    notes = [f"- {case} skipped: {why}" for case, why in results.skipped.items()]
    notes += [f"- {SYSTEMS[name].title}: {why}" for name, why in results.absent.items()]
    notes += [
        f"- FAILED: {f.system}, {f.case}, repeat {f.repeat + 1}: {f.why}"
        for f in results.failures
    ]
    return ["", *notes] if notes else []


# -- targets ---------------------------------------------------------------------------


def target_table(results: Results) -> list[str]:
    """Those targets that this run measured; none for a quick run, whose work differs."""
    rows = [
        _line([target.title, target.goal, _measured(target, value), _verdict(met)])
        for target in TARGETS
        if not results.quick and (value := target.measured(results)) is not None
        for met in [target.met(value)]
    ]
    head = [
        "",
        "### Targets",
        "",
        "| case | target | measured | met? |",
        "|---|---|--:|---|",
    ]
    return [*head, *rows] if rows else []


def _verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def _measured(target: Target, value: float) -> str:
    return duration(value) if target.unit else f"{digits(value)} ×"


# -- the README ------------------------------------------------------------------------


def readme_table(results: Results) -> str:
    """One row for each main case: shmexec's figure, and how many times that others take."""
    rivals = [
        name
        for name, system in SYSTEMS.items()
        if not system.ours and any(key[1] == name for key in results.samples)
    ]
    lines = [
        _line(["", "shmexec", *(SYSTEMS[name].title for name in rivals)]),
        f"|---|{'--:|' * (1 + len(rivals))}",
    ]
    for case in (CASES[name] for name in README_CASES):
        own = results.figures(ours(case), case.name)
        if median(own) is None:
            continue
        mark = "¹" if case.reuses else ""
        cells = [case.title + mark, amount(median(own), case)]
        for name in rivals:
            ratio = median(ratios(results.figures(name, case.name), own))
            text = NONE if ratio is None else f"{digits(ratio)} ×"
            cells.append(f"**{text}**" if ratio is not None and ratio < 1 else text)
        lines.append(_line(cells))
    how = (
        f"{results.workers} workers, one BLAS thread each; medians of "
        f"{_repeats(results)}, each in a fresh process. "
        "Others as multiples of shmexec; where that is below 1, in bold, they win."
    )
    note = (
        "¹ The input is used by many calls: `share`d with shmexec, `ray.put`, `scatter`, "
        "`shared_objects` or memory-mapped where a system has that."
    )
    return "\n".join(
        [
            f"{_where(results)} {how}",
            "",
            *lines,
            "",
            note,
            *target_table(results),
            *_notes(results),
        ]
    )


def _repeats(results: Results) -> str:
    if results.runs == 1:
        return f"{results.repeats} interleaved repeats"
    return (
        f"{results.repeats} interleaved repeats in {results.runs} runs with other systems "
        "beside shmexec"
    )


def write_readme(path: Path, results: Results, figure: Path | None = None) -> None:
    """Put the table, and the figure if there is one, between two markers of a file.

    Raises:
        ValueError: If they are not there.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        msg = f"{path}: no lines {_BEGIN!r} and {_END!r}"
        raise ValueError(msg)
    table = readme_table(results)
    if figure is not None:
        place = os.path.relpath(figure, path.parent).replace(os.sep, "/")
        words = "Every system in every case, relative to shmexec, on a logarithmic axis"
        table = f"![{words}]({place})\n\n{table}"
    path.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}", encoding="utf-8")
