"""What to tell the user about calls and workers that failed."""

from __future__ import annotations

import re
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable

from shmexec import limits
from shmexec.errors import (
    CallStopped,
    CallTimeout,
    PoolBroken,
    ShmexecError,
    WorkerDied,
)
from shmexec.options import ActorOptions, Options
from shmexec.runtime.calls import PackedCall
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler import records as r
from shmexec.scheduler.state import EXIT_WITHIN
from shmexec.worker.setup import NOT_STARTED


def not_started(error: BaseException) -> tuple[str, bool]:
    """Why no process could be started, and whether more of something would help."""
    scarce = limits.is_scarcity(error)
    if isinstance(error, OSError) and error.errno:
        why = str(limits.explained(error).strerror)
    else:
        why = repr(error)
    return f"it could not be started: {why}", scarce


def fewer(options: Options, running: int, reason: str) -> str:
    """What to warn of if the system has no room for all workers that are wanted."""
    return (
        f"pool {options.name!r} goes on with {running} of {options.max_workers} "
        f"workers. Of one more: {reason}"
    )


def death(
    handle: WorkerHandle, code: int | None, hint: Callable[[WorkerHandle], str]
) -> str:
    """How a worker ended, in words; notes the exit code in the handle.

    Args:
        handle: Of the worker.
        code: Its exit code.
        hint: Tells why it was perhaps killed from outside.
    """
    handle.exitcode = code
    who = f"worker {handle.number} (pid {handle.process.pid})"
    if why := _killed_for(handle):
        return f"{who} was killed, since {why}"
    if code == NOT_STARTED:
        return f"{who} could not start: {handle.fault_text()}"
    if code is None:
        return f"{who} ended, how is not known"
    if code >= 0:
        return f"{who} exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    outside = name == "SIGKILL" and not handle.killed
    return f"{who} was killed by {name}{hint(handle) if outside else ''}"


def _killed_for(handle: WorkerHandle) -> str:
    """What it was killed for by this program, but for a call that had to stop."""
    if handle.distrusted:
        return f"it sent {handle.distrusted}"
    if handle.verdict:
        return f"{handle.verdict},"
    if handle.mute and handle.killed and not handle.asked:
        return (
            "it had closed its end of the connection, and went on (code that closes all "
            "descriptors does that)"
        )
    return ""


def broken(options: Options, reasons: tuple[str, ...]) -> PoolBroken:
    """Why no call can be taken any more."""
    why = "; ".join(_once(reasons))
    if options.actor is not None:
        return PoolBroken(
            f"actor {options.actor.name} ({options.name}) has failed: {why}. "
            "Mend the cause and make a new actor",
            reasons,
        )
    return PoolBroken(
        f"pool {options.name!r} cannot start workers: {why}. "
        "Mend the cause and make a new executor",
        reasons,
    )


def _once(reasons: tuple[str, ...]) -> list[str]:
    """Each reason, with how often it came if that was more than once.

    Of those that differ in numbers alone, such as how much is in use, it is the last one.
    """
    counts = Counter(map(_but_for_numbers, reasons))
    last = {_but_for_numbers(text): text for text in reasons}
    return [
        text if counts[kind] == 1 else f"{text} ({counts[kind]} times)"
        for kind, text in last.items()
    ]


def _but_for_numbers(text: str) -> str:
    return re.sub(r"\d+", "0", text)


def interrupted(options: Options, error: BaseException) -> PoolBroken:
    """The same after an interrupt, or a bug, while its state changed."""
    kind = "executor" if options.actor is None else "actor"
    name = repr(options.name) if options.actor is None else options.actor.name
    broken = PoolBroken(
        f"{kind} {name} was interrupted inside: {error!r}. Make a new {kind}",
        (repr(error),),
    )
    broken.__cause__ = error
    return broken


def failed_cleanup(handle: WorkerHandle, payload: bytes, options: Options) -> str:
    """What to warn of if an actor's ``cleanup()`` raised."""
    who = f"actor {options.actor.name if options.actor else options.name}"
    text = payload.decode(errors="replace")
    return f"{who}: cleanup() failed in worker {handle.number}:\n{text}"


def unfinished_cleanup(reason: str, options: Options) -> str:
    """What to warn of if an actor's worker did not end as it was asked to."""
    who = f"actor {options.actor.name if options.actor else options.name}"
    return (
        f"{who}: {reason} after it was asked to end: its cleanup() may not have been "
        f"done (it is given {EXIT_WITHIN:g} s)"
    )


def warn(warning: Warning) -> None:
    """Warn of something that belongs to no call, in a thread that is nobody's."""
    try:
        warnings.warn(warning, stacklevel=2)
    except Warning as error:  # the program has made errors of them
        thread = threading.current_thread()
        threading.excepthook(
            threading.ExceptHookArgs((type(error), error, error.__traceback__, thread))
        )


def failure(
    command: r.Fail,
    call: PackedCall,
    handle: WorkerHandle | None,
    broken: Callable[[], PoolBroken],
    actor: ActorOptions | None,
) -> ShmexecError:
    """The error that a call fails with."""
    fault_text = handle.fault_text() if handle is not None else ""
    name = f"{actor.name}.{call.name}" if actor is not None else call.name
    if command.gently:
        return _cancelled(command, call, name)
    if command.why == "timeout":
        seconds = call.timeout or 0.0
        return CallTimeout(
            f"call {call.number} of {name} ran longer than its timeout of "
            f"{seconds:g} s; its worker was stopped. See .stack for where it was"
            + _afresh(actor, ". "),
            seconds=seconds,
            stack=fault_text,
        )
    if command.why == "stopped":
        return CallStopped(
            f"call {call.number} of {name} was stopped by cancel(running=True). See "
            ".stack for where it was" + _afresh(actor, ". "),
            stack=fault_text,
        )
    if command.why == "broken":
        return broken()
    if command.why == "gone":
        return WorkerDied(
            f"{command.detail} before it began call {call.number} of {name}, which was "
            "for that worker alone. Submit it again, for another one",
            pid=handle.process.pid if handle else None,
            exitcode=handle.exitcode if handle else None,
        )
    return WorkerDied(
        f"{command.detail} while it ran call {call.number} of {name}. "
        + (
            _afresh(actor)
            or "Other calls go on; pass retries= if this one may run again"
        )
        + (f"\n{fault_text}" if fault_text else ""),
        pid=handle.process.pid if handle else None,
        exitcode=handle.exitcode if handle else None,
        memory=handle.memory if handle else None,
        fault_text=fault_text,
    )


def _afresh(actor: ActorOptions | None, before: str = "") -> str:
    """What became of an actor's state, if it was one."""
    if actor is None:
        return ""
    return (
        f"{before}Actor {actor.name} is rebuilt from its arguments: its state starts "
        "afresh, and later calls go on with that"
    )


def _cancelled(command: r.Fail, call: PackedCall, name: str) -> ShmexecError:
    """Of a call that ended when it was asked to, beside others."""
    who = f"call {call.number} of {name}"
    if command.why == "timeout":
        seconds = call.timeout or 0.0
        return CallTimeout(
            f"{who} ran longer than its timeout of {seconds:g} s and was cancelled; "
            "other calls go on. See .stack for where it was",
            seconds=seconds,
            stack=call.stack,
        )
    text = f"{who} was cancelled; other calls go on. See .stack for where it was"
    return CallStopped(text, stack=call.stack)
