"""What to tell the user about calls and workers that failed."""

from __future__ import annotations

import signal
from collections.abc import Callable

from shmexec.errors import (
    CallStopped,
    CallTimeout,
    PoolBroken,
    ShmexecError,
    WorkerDied,
)
from shmexec.runtime.calls import PackedCall
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler import records as r


def death(handle: WorkerHandle, code: int | None) -> str:
    """How a worker ended, in words; notes the exit code in the handle."""
    handle.exitcode = code
    who = f"worker {handle.number} (pid {handle.process.pid})"
    if code is None:
        return f"{who} ended, how is not known"
    if code >= 0:
        return f"{who} exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", possibly out of memory" if name == "SIGKILL" else ""
    return f"{who} was killed by {name}{hint}"


def failure(
    command: r.Fail,
    call: PackedCall,
    handle: WorkerHandle | None,
    broken: Callable[[], PoolBroken],
) -> ShmexecError:
    """The error that a call fails with."""
    fault_text = handle.fault_text() if handle is not None else ""
    if command.why == "timeout":
        seconds = call.timeout or 0.0
        return CallTimeout(
            f"call {call.number} of {call.name} ran longer than its timeout of "
            f"{seconds:g} s; its worker was stopped. See .stack for where it was",
            seconds=seconds,
            stack=fault_text,
        )
    if command.why == "stopped":
        return CallStopped(
            f"call {call.number} of {call.name} was stopped by cancel(running=True)"
        )
    if command.why == "broken":
        return broken()
    return WorkerDied(
        f"{command.detail} while it ran call {call.number} of {call.name}. "
        "Other calls go on; pass retries= if this one may run again"
        + (f"\n{fault_text}" if fault_text else ""),
        pid=handle.process.pid if handle else None,
        exitcode=handle.exitcode if handle else None,
        memory=handle.memory if handle else None,
        fault_text=fault_text,
    )
