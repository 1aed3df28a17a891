"""Draws what was seen, with rich; made for 80 columns and more."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shmexec.cli.watching.records import Pool, Program, Usage, Worker

WIDE = 100
"""Columns from which on there is room for more."""

_PLAIN, _BAD = "not bold default", "not bold red"
_STATES = {
    "busy": "green",
    "ready": "green",
    "idle": "dim",
    "starting": "yellow",
    "draining": "magenta",
    "closing": "magenta",
    "closed": "dim",
    "failed": "bold red",
    "locked": "bold red",
    "stopped": "bold red",
}


def overview(programs: list[Program], width: int) -> RenderableType:
    """All programs, one below the other."""
    if not programs:
        return Text("No program of this user has a shmexec pool in use here.")
    parts: list[RenderableType] = []
    for program in programs:
        parts += [*_program(program, width), Text("")]
    return Group(*parts[:-1])


def heading(programs: list[Program], interval: float, *, keys: bool) -> Text:
    """The live view's first line."""
    pools = sum(len(program.pools) for program in programs)
    workers = sum(
        len(program.processes)
        + sum(len(p.workers) + p.more_workers for p in program.pools)
        for program in programs
    )
    counts = ", ".join(
        (
            _count(len(programs), "program"),
            _count(pools, "pool"),
            _count(workers, "worker"),
        )
    )
    ends = "q quits, ↑↓ scroll" if keys else "Ctrl-C quits"
    text = f" shmexec top: {counts}; every {interval:g} s; {ends} "
    return Text(text, style="reverse", no_wrap=True, overflow="ellipsis")


def _program(program: Program, width: int) -> Iterator[RenderableType]:
    first, *rest = program.command or ("(no command line)",)
    # Of a path to an interpreter the end tells most.
    name = plain(shlex.join([first.rpartition("/")[2] or first, *rest]))
    line = Text(f"{program.pid}  ", style="bold", no_wrap=True, overflow="ellipsis")
    figures = f"  up {duration(program.uptime_seconds)}, {_usage(program.usage)}"
    room = max(20, width - len(line) - len(figures))
    line.append(name if len(name) <= room else name[: room - 1] + "…")
    line.append(figures, style="not bold dim")
    yield line
    if not program.answers:
        yield Text(f"  does not answer: {program.why}", style="bold red")
        if program.processes:
            yield Padding(_workers(program.processes, width - 4), (0, 0, 0, 4))
    for pool in program.pools:
        yield Padding(_pool(pool), (0, 0, 0, 2))
        if pool.workers:
            yield Padding(_workers(pool.workers, width - 4), (0, 0, 0, 4))
        if pool.more_workers:
            yield Text(f"    and {_count(pool.more_workers, 'worker')} more")
    if program.more_pools:
        yield Text(f"  and {_count(program.more_pools, 'pool')} more", style="dim")


def _pool(pool: Pool) -> Text:
    """Two lines, and one more if workers died."""
    text = Text(plain(pool.name), style="bold cyan")
    if pool.actor is not None:
        text.append(f" (actor {plain(pool.actor)})", style=_PLAIN)
    text.append("  ")
    text.append(pool.state, style=f"not bold {_STATES.get(pool.state, 'default')}")
    if pool.state == "locked":
        text.append(": a thread of its program keeps its lock", style=_PLAIN)
        return text
    up = len(pool.workers) + pool.more_workers
    text.append(f", {up} of {_count(pool.max_workers, 'worker')}", style=_PLAIN)
    text.append(f", up {duration(pool.uptime_seconds)}{_shared(pool)}", style=_PLAIN)
    if pool.paused:
        text.append(", paused: memory is short", style="bold red")
    waiting = f"\n{pool.pending} waiting"
    if pool.pending:
        waiting += f" (the first for {duration(pool.oldest_pending_seconds)})"
    text.append(f"{waiting}, {pool.running} running, {pool.done} done, ", style=_PLAIN)
    text.append(f"{pool.failed} failed", style=_BAD if pool.failed else _PLAIN)
    text.append(", ", style=_PLAIN)
    restarts = _count(pool.restarts, "restart")
    text.append(restarts, style=_BAD if pool.restarts else _PLAIN)
    if pool.last_failure:
        text.append(f"\nlast: {plain(pool.last_failure)}", style=_BAD)
    return text


def _shared(pool: Pool) -> str:
    used = pool.shared_used_bytes
    return f", {size(used)} of shared memory" if used else ""


def _workers(workers: Iterable[Worker], width: int) -> Table:
    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="dim", width=width)
    table.add_column("PID", justify="right", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    table.add_column("CALL", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("FOR", justify="right", no_wrap=True)
    table.add_column("CPU %", justify="right", no_wrap=True)
    table.add_column("PRIVATE", justify="right", no_wrap=True)
    table.add_column("SHARED", justify="right", no_wrap=True)
    if wide:
        table.add_column("DONE", justify="right", no_wrap=True)
    for worker in workers:
        cells: list[RenderableType] = [*_cells(worker)]
        if wide:
            cells.append("" if worker.done is None else str(worker.done))
        table.add_row(*cells)
    return table


def _cells(worker: Worker) -> Iterator[RenderableType]:
    usage = worker.usage
    seconds = worker.call_seconds if worker.call else worker.state_seconds
    yield "" if worker.pid is None else str(worker.pid)
    yield Text(worker.state, style=_STATES.get(worker.state, ""))
    yield Text(_call(worker))
    yield "" if seconds is None else duration(seconds)
    yield "" if usage.cpu_percent is None else f"{usage.cpu_percent:.0f}"
    yield "" if usage.private_bytes is None else size(usage.private_bytes)
    yield "" if usage.shared_bytes is None else size(usage.shared_bytes)


def _call(worker: Worker) -> str:
    text = plain(worker.call or "")
    if worker.more_calls:
        text += f" +{worker.more_calls}"
    return f"{text} (being stopped)" if worker.stopping else text


def _usage(usage: Usage) -> str:
    parts = []
    if usage.cpu_percent is not None:
        parts.append(f"CPU {usage.cpu_percent:.0f} %")
    if usage.private_bytes is not None:
        parts.append(size(usage.private_bytes))
    if usage.shared_bytes:
        parts.append(f"{size(usage.shared_bytes)} shared")
    return ", ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def plain(text: str) -> str:
    """Without what a terminal would obey: names come from other programs."""
    return "".join(each if each.isprintable() else "?" for each in text)


def duration(seconds: float) -> str:
    """Short: ``4.2 s``, ``3:07``, ``2:03:07``, ``5 days``."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{hours // 24} days"


def size(nbytes: int) -> str:
    """Short: ``812 B``, ``5 kB``, ``12 MB``, ``1.2 GB``."""
    if nbytes < 1000:
        return f"{nbytes} B"
    value = float(nbytes)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    digits = 1 if unit in {"GB", "TB"} and value < 100 else 0
    return f"{value:.{digits}f} {unit}"
