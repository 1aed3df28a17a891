"""What the system says of programs and workers, joined with what programs say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from shmexec.cli.watching.finding import Answer
from shmexec.cli.watching.records import (
    Pool,
    Program,
    Usage,
    Worker,
    pids_of,
    pool_of,
)

_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_GONE = (psutil.Error, OSError)


class Gauge:
    """Looks again and again: CPU time is told since the last look."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}
        self._seen: set[int] = set()
        self._sampled: set[int] = set()

    def programs(self, answers: Iterable[Answer]) -> list[Program]:
        """All that still run, by process id."""
        self._seen = set()
        found: dict[int, Program] = {}
        for answer in answers:
            with contextlib.suppress(*_GONE):
                program = self._program(answer)
                # Of two copies of the package in one process, that which answers.
                if answer.pid not in found or program.answers:
                    found[answer.pid] = program
        for pid in self._known.keys() - self._seen:
            del self._known[pid]
            self._sampled.discard(pid)
        return list(found.values())

    def _program(self, answer: Answer) -> Program:
        process = self._process(answer.pid)
        told = answer.facts or {}
        usages = {pid: self._usage(pid) for pid in pids_of(told)}
        pools, left_out = _pools(told, usages), told.get("left_out")
        answers = pools is not None and isinstance(left_out, int)
        return Program(
            pid=answer.pid,
            command=tuple(process.cmdline()),
            uptime_seconds=_now() - process.create_time(),
            answers=answers,
            why="" if answers else _why(process, answer),
            python=str(told.get("python", "")),
            usage=self._usage(answer.pid),
            pools=(pools or ()) if answers else (),
            more_pools=left_out if isinstance(left_out, int) else 0,
            processes=() if answers else self._workers_of(process),
        )

    def _process(self, pid: int) -> psutil.Process:
        self._seen.add(pid)
        found = self._known.get(pid)
        if found is None or not found.is_running():
            found = self._known[pid] = psutil.Process(pid)
            self._sampled.discard(pid)
        return found

    def _usage(self, pid: int) -> Usage:
        try:
            process = self._process(pid)
            memory = process.memory_info()
            percent = process.cpu_percent()  # the first one says nothing
            first = pid not in self._sampled
            self._sampled.add(pid)
            return Usage(
                None if first else percent,
                max(0, memory.rss - getattr(memory, "shared", 0)),
                _shared(pid),
            )
        except _GONE:
            return Usage()

    def _workers_of(self, program: psutil.Process) -> tuple[Worker, ...]:
        """What seem to be the workers of a program that does not say it.

        Workers give themselves a name; that of the fork server, and of helpers that
        multiprocessing starts, is the interpreter's.
        """
        own, command = program.name(), program.cmdline()
        found = []
        for child in program.children(recursive=True):
            with contextlib.suppress(*_GONE):
                line = child.cmdline()
                ours = line == command or any("multiprocessing" in a for a in line)
                if ours and child.name() != own and "python" not in child.name():
                    state = "stopped" if child.status() in _STOPPED else "unknown"
                    usage = self._usage(child.pid)
                    found.append(Worker(child.pid, state, usage=usage))
        return tuple(sorted(found, key=lambda worker: worker.pid or 0))


def _pools(told: dict[str, Any], usages: dict[int, Usage]) -> tuple[Pool, ...] | None:
    """Those of a program; None if what it says makes no sense."""
    listed = told.get("pools")
    if not isinstance(listed, list):
        return None
    pools = [pool_of(each, usages) for each in listed]
    known = [pool for pool in pools if pool is not None]
    if len(known) < len(pools):
        return None
    return tuple(sorted(known, key=lambda pool: -pool.uptime_seconds))


def _why(process: psutil.Process, answer: Answer) -> str:
    if process.status() in _STOPPED:
        return "it is stopped (by SIGSTOP, Ctrl-Z, or a debugger)"
    if answer.garbled or answer.facts is not None:
        return "its shmexec is of another version"
    return "it is busy, perhaps in C code that keeps the interpreter's lock"


def _shared(pid: int) -> int | None:
    """Bytes of shared memory: without files, such as libraries, that are mapped."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return None
    found = [line.split() for line in text.splitlines() if line.startswith("RssShmem:")]
    return int(found[0][1]) * 1024 if found else None


def _now() -> float:
    return datetime.now(UTC).timestamp()
