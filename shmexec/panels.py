"""What a pool is at, as HTML for notebooks: a pure function of its figures.

Notebooks show text in the colour of their theme, and drop style sheets of what they do
not trust: so all style is inline, text keeps its colour, and lines, fills and bars are of
colours that can be told from white and from black. Whatever comes from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from shmexec.figures import Glimpse, Stats, WorkerStats
from shmexec.limits import amount

WORKERS_AT_MOST = 16
"""Workers that have a row; of more there is only their number."""

TROUBLE_AT_MOST = 2000
"""Characters of what is wrong; more is cut."""

_GREEN, _BLUE, _AMBER, _RED, _GREY = (
    "#2e9e5b",
    "#3d8bd4",
    "#d9951a",
    "#d6453d",
    "#8e8e8e",
)
_FAINT = "rgba(127,127,127,.22)"
_LINE = "rgba(127,127,127,.4)"

_COLOURS = {
    "ready": _GREEN,
    "idle": _GREEN,
    "busy": _BLUE,
    "starting": _AMBER,
    "draining": _AMBER,
    "closing": _AMBER,
    "failed": _RED,
}
"""Of states; others are grey."""

_TABLE = (
    "border-collapse:collapse;border:none;table-layout:auto;margin:4px 0 0 0;"
    "color:inherit;font-size:inherit"
)
_CELL = "border:none;padding:1px 14px 1px 0;text-align:left;white-space:nowrap"
_NUMBER = _CELL.replace("left", "right")
_MUTED = "opacity:.7"


def line(glimpse: Glimpse) -> str:
    """What a pool is at, in a few words, for a ``repr``."""
    stats = glimpse.stats
    if stats is None:
        return glimpse.state
    return (
        f"{glimpse.state}, {len(stats.workers)} of {stats.max_workers} workers, "
        f"{stats.running} calls running, {stats.pending} pending"
    )


def panel(title: str, glimpses: Sequence[Glimpse], parts: Iterable[str] = ()) -> str:
    """HTML that shows a pool, or several that are one thing, such as an actor's.

    Args:
        title: What it is.
        glimpses: Of each pool, at least one.
        parts: Lines of text about what belongs to it.
    """
    states = list(dict.fromkeys(each.state for each in glimpses))
    troubles = dict.fromkeys(each.trouble for each in glimpses if each.trouble)
    figures = [each.stats for each in glimpses if each.stats is not None]
    rows = [_head(title, states)]
    if figures:
        stats = merged(figures)
        rows += [_summary(stats), _workers(stats.workers), _remarks(stats)]
    rows += [_text(each, "margin-top:2px") for each in parts]
    rows += [_trouble(each) for each in troubles]
    return (
        '<div style="display:inline-block;box-sizing:border-box;max-width:100%;'
        f"overflow-x:auto;border:1px solid {_LINE};border-radius:6px;"
        f'padding:8px 12px;font-size:13px;line-height:1.5">{"".join(rows)}</div>'
    )


_ADDED = (
    *("max_workers", "submitted", "pending", "running", "done", "failed", "cancelled"),
    *("worker_deaths", "workers_replaced", "workers_killed", "shared_memory_used"),
    *("bytes_copied_in", "bytes_copied_out", "bytes_by_reference"),
)


def merged(figures: Sequence[Stats]) -> Stats:
    """Figures of several pools with one budget, as those of one."""
    first, *others = figures
    if not others:
        return first

    changes: dict[str, Any] = {
        name: sum(getattr(each, name) for each in figures) for name in _ADDED
    }
    changes |= {
        "workers": tuple(worker for each in figures for worker in each.workers),
        "paused": any(each.paused for each in figures),
        "shared_memory_budget": max(each.shared_memory_budget for each in figures),
    }
    return replace(first, **changes)


# -- its parts ---------------------------------------------------------------------------


def _head(title: str, states: Sequence[str]) -> str:
    pills = "".join(
        f'<span style="margin-left:8px;padding:0 8px;border-radius:9px;'
        f'border:1px solid {_colour(state)}">{_dot(state)}{escape(state)}</span>'
        for state in states
    )
    return f"<div><strong>{escape(title)}</strong>{pills}</div>"


def _summary(stats: Stats) -> str:
    kinds = (
        (stats.done, "done", _GREEN),
        (stats.failed, "failed", _RED),
        (stats.cancelled, "cancelled", _GREY),
        (stats.running, "running", _BLUE),
        (stats.pending, "pending", _AMBER),
    )
    shown = [kind for kind in kinds if kind[0]]
    counts = "&ensp;".join(
        f"{_dot('', colour)}{count:,} {word}" for count, word, colour in shown
    )
    whole = sum(count for count, _, _ in shown)
    calls = _bar([(count, colour) for count, _, colour in shown], whole, "calls")
    used, budget = stats.shared_memory_used, stats.shared_memory_budget
    rows = [
        _row("workers", "", f"{len(stats.workers)} of {stats.max_workers}"),
        _row("calls", calls, counts or "none yet"),
    ]
    if budget:
        share = _bar([(used, _BLUE)], budget, "shared memory in use")
        rows.append(_row("shared memory", share, f"{_size(used)} of {_size(budget)}"))
    arrays = (
        (stats.bytes_copied_in, "copied in"),
        (stats.bytes_copied_out, "copied out"),
        (stats.bytes_by_reference, "passed by reference"),
    )
    moved = [f"{_size(nbytes)} {how}" for nbytes, how in arrays if nbytes]
    if moved:
        rows.append(_row("arrays", "", ", ".join(moved)))
    return f'<table style="{_TABLE}"><tbody>{"".join(rows)}</tbody></table>'


def _row(name: str, bar: str, text: str) -> str:
    """One line: its name, then a bar, and what it says in words (HTML)."""
    return (
        f'<tr style="background:none"><td style="{_CELL};{_MUTED}">{name}</td>'
        f'<td style="{_CELL}">{bar}{text}</td></tr>'
    )


def _workers(workers: Sequence[WorkerStats]) -> str:
    if not workers:
        return ""
    shown = workers[:WORKERS_AT_MOST]
    most = max(max(each.peak_bytes or 0, each.private_bytes or 0) for each in shown)
    held = max(each.arena_bytes for each in shown)
    names = ("pid", "state", "calls", "private memory", "results held")
    head = "".join(
        f'<th style="{_CELL};font-weight:normal;{_MUTED}">{name}</th>' for name in names
    )
    rows = [_worker(each, most, held) for each in shown]
    more = len(workers) - len(shown)
    rest = _text(f"and {more} workers more", _MUTED) if more else ""
    return (
        f'<table style="{_TABLE}"><thead><tr style="background:none;border:none">{head}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table>{rest}"
    )


def _worker(worker: WorkerStats, most: int, held: int) -> str:
    private, peak = worker.private_bytes, worker.peak_bytes or 0
    memory = "?"
    if private is not None:
        above = max(0, peak - private)
        title = f"{amount(private)} now, {amount(max(private, peak))} at most"
        parts = [(private, _BLUE), (above, f"{_BLUE}66")]
        memory = _bar(parts, most, title) + _size(private)
    results = _bar([(worker.arena_bytes, _GREEN)], held, "results") if held else ""
    results += _size(worker.arena_bytes) if worker.arena_bytes else "none"
    pid = "?" if worker.pid is None else str(worker.pid)
    state = f"{_dot(worker.state)}{escape(worker.state)}"
    cells = (
        (pid, _NUMBER),
        (state, _CELL),
        (f"{worker.calls:,}", _NUMBER),
        (memory, _CELL),
        (results, _CELL),
    )
    inside = "".join(f'<td style="{style}">{text}</td>' for text, style in cells)
    return f'<tr style="background:none">{inside}</tr>'


def _remarks(stats: Stats) -> str:
    remarks = [
        f"workers {how}: {number:,}"
        for number, how in (
            (stats.worker_deaths, "that died"),
            (stats.workers_replaced, "replaced for their memory"),
            (stats.workers_killed, "killed for their memory"),
        )
        if number
    ]
    if stats.paused:
        free, least = amount(stats.memory_free), amount(stats.min_free_memory)
        remarks.append(
            f"calls begin one at a time: {free} of memory is free, {least} shall be"
        )
    return _text("; ".join(remarks), "margin-top:4px") if remarks else ""


def _trouble(text: str) -> str:
    text = text.strip()
    if len(text) > TROUBLE_AT_MOST:
        text = text[:TROUBLE_AT_MOST] + " ..."
    style = (
        f"margin-top:6px;padding:4px 8px;border-left:3px solid {_RED};"
        f"background:{_FAINT};white-space:pre-wrap;font-family:monospace;font-size:12px"
    )
    return _text(text, style)


# -- elements ----------------------------------------------------------------------------


def _text(text: str, style: str) -> str:
    return f'<div style="{style}">{escape(text)}</div>'


def _size(nbytes: int) -> str:
    return escape(amount(nbytes))


def _colour(state: str) -> str:
    return _COLOURS.get(state, _GREY)


def _dot(state: str, colour: str = "") -> str:
    return (
        '<span style="display:inline-block;width:8px;height:8px;border-radius:50%;'
        f'margin-right:5px;background:{colour or _colour(state)}"></span>'
    )


def _bar(parts: Sequence[tuple[int, str]], whole: int, title: str) -> str:
    """A bar of which each part takes its share, in its colour."""
    inside = "".join(
        f'<span style="display:inline-block;height:100%;vertical-align:top;'
        f'width:{min(100.0, 100 * part / whole):.2f}%;background:{colour}"></span>'
        for part, colour in parts
        if part and whole
    )
    return (
        f'<span title="{escape(title)}" style="display:inline-block;width:120px;'
        "height:9px;margin-right:8px;border-radius:4px;overflow:hidden;line-height:0;"
        f'white-space:nowrap;background:{_FAINT}">{inside}</span>'
    )
