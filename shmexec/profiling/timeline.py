"""Draws a profile: a line for each worker, with the calls that it ran."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shmexec.profiling.summary import seconds, worker_count
from shmexec.profiling.table import Table, lanes
from shmexec.runtime.tape import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = 9
"""Functions that have a colour of their own; the others share one."""

_OTHERS = "#9a9a9a"
_COPYING = "#222222"
_FAILED = "#d62728"
_HEIGHT = 0.8


def draw(table: Table, ax: Axes | None) -> Axes:
    """See :meth:`shmexec.Profile.plot`."""
    try:
        from matplotlib import pyplot as plt
        from matplotlib.collections import PolyCollection
    except ImportError as error:
        msg = "plot() needs matplotlib: pip install 'shmexec[plot]'"
        raise ImportError(msg) from error
    rows = _rows(table)
    if ax is None:
        _, ax = plt.subplots(
            figsize=(10, 1.6 + 0.35 * max(2, len(rows))), layout="constrained"
        )
    factor, unit = (1e3, "ms") if table.facts.seconds < 1 else (1.0, "s")
    bars = _bars(table, rows)
    colours = _colours(table, plt.get_cmap("tab10"))
    patches = []
    for name, colour in colours.items():
        own = [bar for bar in bars if bar[3] == name]
        if own:
            _add(ax, PolyCollection, own, factor, colour)
            patches.append(_patch(colour, name))
    for what, colour in (("copying results", _COPYING), ("failed", _FAILED)):
        own = _marks(table, rows, what)
        if own:
            _add(ax, PolyCollection, own, factor, colour)
            patches.append(_patch(colour, what))
    _label(ax, table, list(rows), factor, unit)
    if patches:
        ax.legend(
            handles=patches, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False
        )
    return ax


_Row = dict[tuple[int, int], int]
_Bar = tuple[float, float, int, str, float, float]
"""Begin, end, row, function, and from where to where in its row, from 0 to 1."""


def _rows(table: Table) -> _Row:
    """Which row each worker has, and each lane of it, if it runs several calls."""
    found = []
    for worker in sorted(range(len(table.workers)), key=lambda i: table.workers[i][:2]):
        used = lanes_of(table, worker)
        found += [(worker, lane) for lane in range(max(used.values(), default=0) + 1)]
    return {key: row for row, key in enumerate(found)}


def lanes_of(table: Table, worker: int) -> dict[int, int]:
    """The lane of each call that a worker ran."""
    own = np.flatnonzero((table.worker == worker) & np.isfinite(table.began))
    own = own[np.argsort(table.began[own], kind="stable")]
    ends = np.fmin(_end(table)[own], np.inf)
    return dict(
        zip(own.tolist(), lanes(table.began[own].tolist(), ends.tolist()), strict=True)
    )


def _end(table: Table) -> np.ndarray:
    """When calls ended; of those that did not, the end of all."""
    known = np.where(np.isfinite(table.ended), table.ended, table.replied)
    return np.where(np.isfinite(known), known + table.placing, table.facts.seconds)


def _bars(table: Table, rows: _Row) -> list[_Bar]:
    ends = _end(table)
    shown = set(_functions(table))
    bars = []
    for worker in range(len(table.workers)):
        for index, lane in lanes_of(table, worker).items():
            name = table.names[table.name[index]]
            row = rows[worker, lane]
            begin, end = float(table.began[index]), float(ends[index])
            bars.append(
                (begin, end, row, name if name in shown else "others", 0.0, 1.0)
            )
    return bars


def _marks(table: Table, rows: _Row, what: str) -> list[_Bar]:
    """Parts of bars that are marked: the end of a call, or the edge of one that failed."""
    ends = _end(table)
    fine = (Outcome.DONE, Outcome.RUNNING, Outcome.PENDING)
    copying = what == "copying results"
    marked = table.placing > 0 if copying else ~np.isin(table.outcome, fine)
    found = []
    for worker in range(len(table.workers)):
        for index, lane in lanes_of(table, worker).items():
            if not marked[index]:
                continue
            end = float(ends[index])
            begin = end - float(table.placing[index]) if copying else table.began[index]
            height = (0.0, 1.0) if copying else (0.0, 0.2)
            found.append((float(begin), end, rows[worker, lane], "", *height))
    return found


def _functions(table: Table) -> list[str]:
    """Those that have a colour, by the time that they ran."""
    took = np.where(table.ran, table.ended - table.began, 0.0)
    totals = np.bincount(table.name, took, len(table.names))
    order = np.argsort(-totals, kind="stable")[:COLOURS]
    return [table.names[i] for i in order]


def _colours(table: Table, palette: Any) -> dict[str, Any]:
    names = _functions(table)
    # Without the red one, which tells of failures.
    own = [colour for i, colour in enumerate(palette.colors) if i != 3]
    return dict(zip(names, own, strict=False)) | {"others": _OTHERS}


def _add(
    ax: Axes, collection: Any, bars: list[_Bar], factor: float, colour: Any
) -> None:
    """All bars of a colour are one thing to draw: there may be very many."""
    corners = []
    for begin, end, row, _, low, high in bars:
        left, right = begin * factor, end * factor
        bottom = row - _HEIGHT / 2 + (1 - high) * _HEIGHT
        top = row - _HEIGHT / 2 + (1 - low) * _HEIGHT
        corners.append([(left, bottom), (left, top), (right, top), (right, bottom)])
    # A thin edge: a call of microseconds is still seen.
    ax.add_collection(
        collection(corners, facecolors=[colour], edgecolors="white", linewidths=0.2)
        if len(corners) < 2000
        else collection(
            corners, facecolors=[colour], edgecolors=[colour], linewidths=0.3
        )
    )


def _patch(colour: Any, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, label=label)


def _label(
    ax: Axes, table: Table, rows: list[tuple[int, int]], factor: float, unit: str
) -> None:
    several = len({who.pool for who in table.workers}) > 1
    labels = []
    for worker, lane in rows:
        who = table.workers[worker]
        name = f"{who.pool} {who.number}" if several else f"worker {who.number}"
        labels.append(name if not lane else "")
    ax.set_yticks(range(len(rows)), labels)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, max(table.facts.seconds, 1e-6) * factor)
    ax.set_xlabel(f"{unit} since the profile began")
    count = worker_count(table)
    ax.set_title(
        f"{len(table):,} calls in {seconds(table.facts.seconds)}, "
        f"{count} worker{'' if count == 1 else 's'}",
        loc="left",
    )
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
