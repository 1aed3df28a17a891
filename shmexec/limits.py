"""What the system lets this process have: how much of it, and what to say if it refuses.

Limits are looked at when something is made or was refused, never on the way of a call.
Not here: memory of the machine and of the cgroup (``runtime.monitor``).
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable

PER_WORKER = 14
"""Descriptors that a worker may take in its parent, at most."""

SPARE = 8
"""Descriptors that are left to the program when one worker more is started."""

SHARE_OF_ADDRESSES = 16
"""An arena takes one part in so many of the address space that is left, if it is limited.

Its owner, its parent and, in two mappings, other processes map it; and each worker has
one. The rest is the program's.
"""

_SHM = "/dev/shm"  # noqa: S108  (not to be written to by name)
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOSPC}


def amount(nbytes: int) -> str:
    """A number of bytes, to be read: ``"64 MB"``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} bytes"


def is_scarcity(error: BaseException) -> bool:
    """Whether something was refused that others have, and may give back."""
    return isinstance(error, OSError) and error.errno in _SCARCE


def limit_of(name: str) -> int | None:
    """The soft limit of that name (``"RLIMIT_AS"``), None if there is none."""
    try:
        import resource  # here: a worker may never need it

        soft, _ = resource.getrlimit(getattr(resource, name))
    except (ImportError, AttributeError):  # not a Unix, or not one that has it
        return None
    return None if soft == resource.RLIM_INFINITY else soft


def arena_bytes(wanted: int) -> int:
    """How many bytes of address space an arena may take, of those it wants."""
    limit = limit_of("RLIMIT_AS")
    if limit is None:
        return wanted
    return min(wanted, max(1 << 20, (limit - _mapped()) // SHARE_OF_ADDRESSES))


def capacity(kind: str, size: int) -> tuple[int, str]:
    """Bytes of shared memory that can be had at most, and what limits them, in words.

    Args:
        kind: Of the segments.
        size: Bytes of an arena: those of address space.
    """
    if kind == "posix":
        total, free = _shm_room()
        if total and free < size:
            return free - free // 16, (
                f"{_SHM} has {amount(total)}. Enlarge it (docker run --shm-size), or "
                "use memory files, which do not need it (SHMEXEC_SEGMENT=memfd)"
            )
    if limit_of("RLIMIT_FSIZE") is not None:
        return size, _file_size()
    return size, _address_space()


def check_descriptors(*, spare: bool) -> None:
    """Look whether there are descriptors for one worker more.

    Not only to say so early: a fork server that is asked for a process by one who then has
    no descriptors left for the pipes ends, for want of a request.

    Args:
        spare: Some must be left to the program.

    Raises:
        OSError: If there are too few.
    """
    limit = limit_of("RLIMIT_NOFILE")
    if limit is None:
        return
    used = _open_files()
    if used is not None and limit - used < PER_WORKER + (SPARE if spare else 0):
        raise explained(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))


@functools.cache
def memfd_refused() -> str:
    """Why there can be no memory files, nothing if there can.

    Filters of system calls (seccomp), as some containers have, refuse them.
    """
    if not hasattr(os, "memfd_create"):
        return "this system has no memfd_create"
    try:
        os.close(os.memfd_create("shmexec", os.MFD_CLOEXEC))
    except OSError as error:
        if error.errno in {errno.ENOSYS, errno.EPERM, errno.EACCES}:
            return f"memfd_create is refused here: {error.strerror}"
    return ""


def explained(error: OSError, doing: str = "") -> OSError:
    """The error again, saying which limit it was, and what can be done.

    Args:
        error: What the system said.
        doing: What was tried; comes first.
    """
    if error.errno and error.strerror != os.strerror(error.errno):
        return error  # it was already
    parts = [doing, error.strerror or str(error), _why(error.errno or 0)]
    if error.filename:
        parts[1] += f" ({os.fsdecode(error.filename)})"
    text = ": ".join(part for part in parts if part)
    return OSError(error.errno, text) if error.errno else OSError(text)


def no_process(what: str) -> OSError:
    """What to raise if no process or thread can be had, but no error tells why."""
    return OSError(errno.EAGAIN, f"{what}: {_process_limit()}")


def shm_refused(error: OSError) -> OSError:
    """The same, of a segment in ``/dev/shm``."""
    total, free = _shm_room()
    if error.errno == errno.ENOSPC:
        why = f"{_SHM} has {amount(free)} left of {amount(total)}"
    elif error.errno in {errno.ENOENT, errno.EROFS, errno.EACCES}:
        why = f"{_SHM} is missing or cannot be written to"
    else:
        return explained(error, "no shared memory")
    text = (
        f"no shared memory: {error.strerror}: {why}. Mount one that can, or let "
        "shmexec use memory files (SHMEXEC_SEGMENT=memfd), which do not need it"
    )
    return OSError(error.errno, text)


# -- what the system says ------------------------------------------------------------


def _open_file_limit() -> str:
    limit, used = limit_of("RLIMIT_NOFILE"), _open_files()
    have = "" if used is None else f", and has {used}"
    return (
        f"this process may have {limit} open files (RLIMIT_NOFILE){have}; a worker "
        f"takes up to {PER_WORKER}. Raise the limit (ulimit -n), or use fewer workers"
    )


def _process_limit() -> str:
    limit = limit_of("RLIMIT_NPROC")
    found = [] if limit is None else [f"this user may have {limit} (RLIMIT_NPROC)"]
    found += filter(None, [_address_space()])
    pids = _cgroup_pids()
    if pids:
        found.append(f"this container may have {pids} (pids.max)")
    return (
        "no more processes or threads can be had: "
        + ("; ".join(found) or "the machine's limit")
        + ". Raise the limit (ulimit -u, docker run --pids-limit), or use fewer workers"
    )


def _cgroup_pids() -> str:
    for name in ("pids.max", "pids/pids.max"):
        try:
            with open(f"/sys/fs/cgroup/{name}") as file:
                text = file.read().strip()
        except OSError:
            continue
        return "" if text == "max" else text
    return ""


def _address_space() -> str:
    limit = limit_of("RLIMIT_AS")
    if limit is None:
        return ""
    return (
        f"this process may map {amount(limit)} of address space (RLIMIT_AS, ulimit -v), "
        f"and maps {amount(_mapped())}"
    )


def _file_size() -> str:
    limit = limit_of("RLIMIT_FSIZE")
    if limit is None:
        return ""
    return f"files, and so shared memory, may have {amount(limit)} (RLIMIT_FSIZE, ulimit -f)"


def _memory() -> str:
    return _address_space() or "the machine, or its cgroup, has no memory left"


_WHY: dict[int, Callable[[], str]] = {
    errno.EMFILE: _open_file_limit,
    errno.ENFILE: lambda: "the machine has no open files left (fs.file-max)",
    errno.EAGAIN: _process_limit,
    errno.ENOMEM: _memory,
    errno.EFBIG: _file_size,
}


def _why(number: int) -> str:
    return _WHY.get(number, str)()


def _shm_room() -> tuple[int, int]:
    """Bytes of ``/dev/shm``: all, and those that are free."""
    try:
        found = os.statvfs(_SHM)
    except OSError:
        return 0, 0
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _mapped() -> int:
    """Bytes of address space that this process maps."""
    try:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _open_files() -> int | None:
    """How many descriptors this process has, None if that cannot be known."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # that of the listing
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            return limit_of("RLIMIT_NOFILE")
        return None
