"""One figure: every system's time in every case, relative to shmexec's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shmexec.comparing.case import Case
from shmexec.comparing.results import Results, known, median, ratios
from shmexec.comparing.systems import IN_PROCESS, SHARE, SHMEXEC, SYSTEMS
from shmexec.comparing.wording import FAMILIES, amount, ours

_MARKERS = "osD^v<>PXhp*dH8"
_GAP = 0.9  # between families, in rows


def draw(results: Results, cases: Sequence[Case], path: Path) -> None:
    """Write a figure; its kind is the file's suffix.

    Raises:
        ImportError: Without matplotlib.
        ValueError: For a suffix that matplotlib does not know.
    """
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "shmexec"  # the same figures give the same file
    from matplotlib import pyplot as plt

    rows = _rows(results, cases)
    height = 1.9 + 0.36 * max((place for _, place in rows), default=0)
    figure, axes = plt.subplots(figsize=(11, height), layout="constrained")
    try:
        _draw_rows(axes, results, rows)
        _draw_families(axes, rows)
        _label(figure, axes, results, rows)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)
    finally:
        plt.close(figure)


def _rows(results: Results, cases: Sequence[Case]) -> list[tuple[Case, float]]:
    """Cases that shmexec has figures for, and their places from the top."""
    rows: list[tuple[Case, float]] = []
    place = 0.0
    for family in FAMILIES:
        there = [
            case
            for case in cases
            if case.family == family
            and median(results.figures(ours(case), case.name)) is not None
        ]
        for case in there:
            place += 1
            rows.append((case, place))
        place += _GAP if there else 0
    return rows


def _draw_rows(axes: Any, results: Results, rows: list[tuple[Case, float]]) -> None:
    shown = [name for name in SYSTEMS if name not in {SHMEXEC, SHARE}]
    colours = _colours(len(shown))
    for number, name in enumerate(shown):
        places, middles, low, high = [], [], [], []
        for case, place in rows:
            own = results.figures(ours(case), case.name)
            there = known(ratios(results.figures(name, case.name), own))
            if there:
                middle = median(there) or 0.0
                places.append(place)
                middles.append(middle)
                low.append(middle - min(there))
                high.append(max(there) - middle)
        if places:
            axes.errorbar(
                middles,
                places,
                xerr=[low, high],
                fmt=_MARKERS[number % len(_MARKERS)],
                color="0.35" if name == IN_PROCESS else colours[number],
                markerfacecolor="white" if name == IN_PROCESS else None,
                markersize=6,
                elinewidth=1,
                alpha=0.85,
                label=SYSTEMS[name].title.replace("`", ""),
            )
    axes.axvline(1, color="black", linewidth=1.5, label="shmexec", zorder=0)


def _colours(number: int) -> list[Any]:
    from matplotlib import colormaps

    palette = colormaps["tab20"]
    return [palette(index % 20) for index in [*range(0, 20, 2), *range(1, 20, 2)]][
        :number
    ]


def _draw_families(axes: Any, rows: list[tuple[Case, float]]) -> None:
    for family, title in FAMILIES.items():
        places = [place for case, place in rows if case.family == family]
        if places:
            axes.text(
                0.0,
                places[0] - 0.62,
                title,
                transform=axes.get_yaxis_transform(),
                fontsize=9,
                fontweight="bold",
                va="center",
            )


def _label(
    figure: Any, axes: Any, results: Results, rows: list[tuple[Case, float]]
) -> None:
    axes.set_xscale("log")
    axes.set_yticks(
        [place for _, place in rows],
        [
            f"{_plain(case.title)}\n(shmexec: "
            f"{amount(median(results.figures(ours(case), case.name)), case)})"
            for case, _ in rows
        ],
        fontsize=7.5,
    )
    axes.set_ylim(max((place for _, place in rows), default=0) + 0.8, 0)
    axes.grid(axis="x", which="major", color="0.85")
    axes.grid(axis="y", color="0.93")
    axes.set_axisbelow(True)
    least, most = _range(results, rows)
    axes.set_xlim(least, most)
    axes.axvspan(least, 1, color="0.95", zorder=-1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} ×")
    axes.set_xlabel(
        "time (or memory) relative to shmexec; shaded: less than shmexec takes"
    )
    machine = results.environment
    figure.suptitle(
        f"shmexec and others, {results.workers} workers. {machine['date']}, "
        f"{machine['cpu']}, {machine['cpus']} CPUs, Python {machine['python']}, "
        f"NumPy {machine['numpy']}",
        fontsize=10,
    )
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)


def _range(results: Results, rows: list[tuple[Case, float]]) -> tuple[float, float]:
    """Of the axis; a call in process that copies nothing may be far off its left."""
    there = [1.0]
    for case, _ in rows:
        own = results.figures(ours(case), case.name)
        for name in SYSTEMS:
            if name != IN_PROCESS:
                there += known(ratios(results.figures(name, case.name), own))
    return min(there) / 2, max(there) * 2


def _plain(title: str) -> str:
    return title.replace("`", "")
