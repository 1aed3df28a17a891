"""What the machine lets a pool have: CPUs, memory, shared memory, limits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from shmexec import limits, options
from shmexec.cli.examining.findings import Finding, Level

ROOMY = 8
"""Workers for which there should be descriptors."""

_SHM = "/dev/shm"  # noqa: S108  (looked at, not written to)


def machine() -> Iterator[Finding]:
    """All of it."""
    yield from _processors()
    yield from _memory()
    yield from _shared_memory()
    yield from _limits()


def _processors() -> Iterator[Finding]:
    machine = os.cpu_count() or 1
    usable = options.cpu_count()
    with_affinity = len(os.sched_getaffinity(0)) if _has_affinity() else machine
    parts = [f"{usable} usable of {machine}"]
    if with_affinity < machine:
        parts.append(f"affinity allows {with_affinity}")
    if usable < with_affinity:
        parts.append(f"the cgroup's quota is worth {usable}")
    with contextlib.suppress(ValueError):
        parts.append(f"a pool has {options.default_workers()} workers by default")
    data = {"machine": machine, "affinity": with_affinity, "usable": usable}
    advice = ""
    if usable == 1:
        advice = (
            "with one CPU workers keep calls apart, and can stop them, but compute no "
            "faster: give the container more (docker run --cpus) if it has a quota"
        )
    level: Level = "note" if advice else "ok"
    yield Finding("CPUs", "CPUs", "; ".join(parts), level, advice, data)


def _has_affinity() -> bool:
    return hasattr(os, "sched_getaffinity")


def _memory() -> Iterator[Finding]:
    from shmexec.runtime import cgroups, monitor

    memory, reserve = monitor.memory(), monitor.default_reserve()
    group = cgroups.tightest(cgroups.own_groups())
    value = f"{limits.amount(memory.free)} free of {limits.amount(memory.total)}"
    limit = None if group is None else group.limit
    if limit is not None and limit <= memory.total:
        value += f", which is the cgroup's limit ({limits.amount(limit)})"
    level: Level = "ok"
    advice = ""
    if memory.free < reserve:
        level = "note"
        advice = (
            f"pools let calls begin one at a time while less than "
            f"{limits.amount(reserve)} are free: end other programs, raise the limit "
            "(docker run --memory), or set min_free_memory="
        )
    data = {"total": memory.total, "free": memory.free, "cgroup_limit": limit}
    yield Finding("memory", "memory", value, level, advice, data)
    kills = monitor.oom_kills()
    if kills:
        yield Finding(
            "memory",
            "killed for memory",
            f"{kills} processes, since the machine or the cgroup started",
            "note",
            "the kernel has ended programs for want of memory: use fewer workers, or "
            "max_worker_memory= to have one replaced in time",
            {"oom_kills": kills},
        )


def _shared_memory() -> Iterator[Finding]:
    refused = limits.memfd_refused()
    yield Finding(
        "shared memory",
        "memory files",
        refused or "memfd: no name, no limit but memory",
        "note" if refused else "ok",
        "allow memfd_create in the container's seccomp profile: without it all shared "
        "memory has to fit into /dev/shm"
        if refused
        else "",
        {"memfd": not refused},
    )
    if not refused:
        yield _seals()
    total, free = _space(_SHM)
    needed = bool(refused)
    with contextlib.suppress(ValueError):
        needed = options.segment_kind() == "posix"
    small = needed and free < 1 << 30
    yield Finding(
        "shared memory",
        _SHM,
        (
            f"{limits.amount(free)} free of {limits.amount(total)}"
            if total
            else "there is none"
        )
        + ("" if needed else " (not needed)"),
        ("note" if total else "bad") if small else "ok",
        "enlarge it (docker run --shm-size=4g), or use memory files" if small else "",
        {"total": total, "free": free, "needed": needed},
    )


def _seals() -> Finding:
    """Whether a memory file can be kept from being cut short by another process."""
    import fcntl

    try:
        descriptor = os.memfd_create("shmexec", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        finally:
            os.close(descriptor)
    except (OSError, AttributeError) as error:
        return Finding(
            "shared memory",
            "seals",
            f"refused: {error}",
            "note",
            "without seals a worker gone mad can truncate memory under the others",
            {"seals": False},
        )
    return Finding(
        "shared memory", "seals", "memory cannot be truncated", data={"seals": True}
    )


def _limits() -> Iterator[Finding]:
    yield _open_files()
    for name, title, command in (
        ("RLIMIT_AS", "address space", "ulimit -v"),
        ("RLIMIT_FSIZE", "size of files", "ulimit -f"),
    ):
        limit = limits.limit_of(name)
        data = {"limit": limit}
        if limit is None:
            yield Finding("limits", title, "unlimited", data=data)
            continue
        yield Finding(
            "limits",
            title,
            limits.amount(limit),
            "note",
            f"it limits shared memory as well: raise it ({command} unlimited)",
            data,
        )
    processes = limits.limit_of("RLIMIT_NPROC")
    value = "unlimited" if processes is None else f"{processes} for this user"
    scarce = processes is not None and processes < 256
    yield Finding(
        "limits",
        "processes",
        value,
        "note" if scarce else "ok",
        "a worker takes a process and some threads: raise it (ulimit -u)"
        if scarce
        else "",
        {"limit": processes},
    )


def _open_files() -> Finding:
    limit = limits.limit_of("RLIMIT_NOFILE")
    if limit is None:
        return Finding("limits", "open files", "unlimited", data={"limit": None})
    workers = max(0, limit - 3 - limits.SPARE) // limits.PER_WORKER
    short = workers < ROOMY
    return Finding(
        "limits",
        "open files",
        f"{limit}, enough for {workers} workers",
        "note" if short else "ok",
        "raise it (ulimit -n 4096)" if short else "",
        {"limit": limit, "workers": workers},
    )


def _space(folder: str) -> tuple[int, int]:
    try:
        found = os.statvfs(folder)
    except (OSError, AttributeError):
        return 0, 0
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
