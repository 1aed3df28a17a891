"""Settings: validated once, frozen, and the only place that reads the environment.

Environment variables: ``SHMEXEC_WORKERS`` (default number of workers),
``SHMEXEC_SEGMENT`` (``memfd`` or ``posix``: the kind of shared memory and, with it, the
portable or the Linux transport), ``SHMEXEC_NATIVE`` (``0``: do not use the native
part) and ``SHMEXEC_VISIBLE`` (``0``: ``shmexec top`` does not see the pools).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsIndex, cast, get_args

from shmexec import limits

DEFAULT_WORKERS_AT_MOST = 8
WORKERS_AT_MOST = 4096
CREDIT_AT_MOST = 2**31
"""Items of a stream that may be under way."""
INLINE_LIMIT = 32 * 1024
"""Arrays and pickles of at least this many bytes travel through blocks."""

StartMethod = Literal["fork", "forkserver", "spawn"]
Fallback = Literal["process-per-call"]
WorkerOutput = Literal["forward", "inherit", "discard"]


def cpu_count() -> int:
    """CPUs this process may use: affinity and cgroup quota, at least 1."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:
        usable = os.cpu_count() or 1
    quota = _cgroup_cpus()
    return max(1, min(usable, quota) if quota else usable)


def _cgroup_cpus() -> int | None:
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            limit, period = file.read().split()
    except (OSError, ValueError):
        limit, period = _cgroup_v1_cpus()
    if limit in {"max", "-1"}:
        return None
    return max(1, -(-int(limit) // int(period)))


def _cgroup_v1_cpus() -> tuple[str, str]:
    folder = "/sys/fs/cgroup/cpu/"
    try:
        with (
            open(folder + "cpu.cfs_quota_us") as quota,
            open(folder + "cpu.cfs_period_us") as period,
        ):
            return quota.read().strip(), period.read().strip()
    except OSError:
        return "max", "1"


def segment_kind() -> Literal["memfd", "posix"]:
    """The kind of shared memory to use, by platform or ``SHMEXEC_SEGMENT``."""
    chosen = os.environ.get("SHMEXEC_SEGMENT", "")
    if chosen not in {"", "memfd", "posix"}:
        msg = f"SHMEXEC_SEGMENT must be 'memfd' or 'posix', not {chosen!r}"
        raise ValueError(msg)
    if chosen == "posix":
        return "posix"
    refusal = limits.memfd_refused()
    if chosen == "memfd" and refusal:
        msg = f"SHMEXEC_SEGMENT=memfd, but {refusal}; 'posix' needs none"
        raise ValueError(msg)
    return "posix" if refusal else "memfd"


def native_wanted() -> bool:
    """Whether the native part is to be used where it was built: ``SHMEXEC_NATIVE``."""
    return _is_on("SHMEXEC_NATIVE")


def visible() -> bool:
    """Whether other programs of this user may see the pool: ``SHMEXEC_VISIBLE``."""
    return _is_on("SHMEXEC_VISIBLE")


def _is_on(variable: str) -> bool:
    chosen = os.environ.get(variable, "")
    if chosen not in {"", "0", "1"}:
        msg = f"{variable} must be '0' or '1', not {chosen!r}"
        raise ValueError(msg)
    return chosen != "0"


def settings_of_environment(names: Iterable[str]) -> dict[str, str]:
    """Those of these variables, of other libraries, that are set in the environment."""
    return {name: os.environ[name] for name in names if name in os.environ}


def fault_hook(worker_env: Mapping[str, str]) -> tuple[str, str] | None:
    """Module and function that make a hook of :mod:`shmexec.faultpoints`, if any.

    Looked for in the ``worker_env`` of a pool, which its program gives, and never in the
    environment, which others may: what is named is imported and run in each worker.
    """
    chosen = worker_env.get("SHMEXEC_FAULT_HOOK")
    if chosen is None:
        return None
    module, _, function = chosen.partition(":")
    if not (module and function):
        msg = f"SHMEXEC_FAULT_HOOK must be 'module:function', not {chosen!r}"
        raise ValueError(msg)
    return module, function


def positive_int(name: str, value: object, at_most: int | None = None) -> int:
    """Check a count: ``TypeError`` if it is no integer, ``ValueError`` by its size."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        msg = f"{name} must be an integer, not {value!r}"
        raise TypeError(msg)
    number = int(cast("SupportsIndex", value).__index__())
    if number <= 0:
        msg = f"{name} must be greater than 0, not {number}"
        raise ValueError(msg)
    if at_most is not None and number > at_most:
        msg = f"{name} must be at most {at_most}, not {number}"
        raise ValueError(msg)
    return number


def non_negative_int(name: str, value: object) -> int:
    """Check a count that may be zero."""
    return 0 if type(value) is int and value == 0 else positive_int(name, value)


def seconds_or_none(name: str, value: object) -> float | None:
    """Check a duration in seconds: a positive, finite number or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{name} must be a number of seconds or None, not {value!r}"
        raise TypeError(msg)
    if not 0 < value < float("inf"):
        msg = f"{name} must be greater than 0 and finite, not {value!r}"
        raise ValueError(msg)
    return float(value)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def byte_count(name: str, value: object) -> int | None:
    """Check an amount of memory: an int of bytes, or a text such as ``"2GB"``."""
    if value is None:
        return None
    if not isinstance(value, str):
        return positive_int(name, value)
    text = value.strip().upper()
    digits = text.rstrip("KMGTIB ")
    factor = _UNITS.get(text[len(digits) :].strip())
    try:
        if factor is None:
            raise ValueError
        return positive_int(name, int(float(digits) * factor))
    except (ValueError, OverflowError):
        msg = f"{name} must be bytes or a text such as '2GB', not {value!r}"
        raise ValueError(msg) from None


def default_workers(otherwise: int | None = None) -> int:
    """Workers of a pool that was not told: ``SHMEXEC_WORKERS``, else usable CPUs.

    Args:
        otherwise: What to take in the place of the usable CPUs.
    """
    text = os.environ.get("SHMEXEC_WORKERS")
    if text is None:
        return otherwise or min(DEFAULT_WORKERS_AT_MOST, cpu_count())
    try:
        return positive_int("SHMEXEC_WORKERS", int(text), WORKERS_AT_MOST)
    except ValueError:
        msg = (
            "SHMEXEC_WORKERS must be an integer from 1 to "
            f"{WORKERS_AT_MOST}, not {text!r}"
        )
        raise ValueError(msg) from None


def start_method(mp_context: object) -> StartMethod:
    """The start method that a context, a name or None asks for."""
    offered = multiprocessing.get_all_start_methods()
    if mp_context is None:
        return "forkserver" if sys.platform == "linux" else "spawn"
    if isinstance(mp_context, str):
        chosen = mp_context
    elif hasattr(mp_context, "get_start_method"):
        chosen = mp_context.get_start_method()
    else:
        msg = (
            "mp_context must be a multiprocessing context or the name of a start "
            f"method, not {mp_context!r}"
        )
        raise TypeError(msg)
    if chosen not in offered:
        msg = f"unknown start method {chosen!r}; this system has {', '.join(offered)}"
        raise ValueError(msg)
    return cast("StartMethod", chosen)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What one call may differ in from its pool."""

    timeout: float | None = None
    retries: int = 0
    priority: int = 0
    worker: int | None = None
    """Process id of the one worker that may run it; None: any."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "timeout", seconds_or_none("timeout", self.timeout))
        object.__setattr__(self, "retries", non_negative_int("retries", self.retries))
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            msg = f"priority must be an integer, not {self.priority!r}"
            raise TypeError(msg)
        if self.worker is not None:
            positive_int("worker", self.worker)


@dataclass(frozen=True, slots=True)
class ActorOptions:
    """What a pool whose one worker holds an instance has beside others.

    Attributes:
        name: Of the instance's class.
        slots: Calls that it may have under way.
        start_timeout: Seconds that its building may take, None for any time.
    """

    name: str
    slots: int = 1
    start_timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """All settings of a pool, as :class:`shmexec.Executor` takes them."""

    max_workers: int
    start_method: StartMethod
    segment: Literal["memfd", "posix"]
    name: str
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    max_tasks_per_child: int | None = None
    call: CallOptions = field(default_factory=CallOptions)
    max_restarts: int = 3
    max_shared_memory: int | None = None
    max_worker_memory: int | None = None
    max_worker_memory_hard: int | None = None
    min_free_memory: int | None = None
    idle_timeout: float | None = None
    threads_per_worker: int = 1
    worker_env: Mapping[str, str] = field(default_factory=dict)
    in_process: bool = False
    worker_output: WorkerOutput = "forward"
    native: bool = True
    visible: bool = True
    fallback: Fallback | None = None
    actor: ActorOptions | None = None
    context: tuple[ContextVar[Any], ...] = ()
    family: object = field(default_factory=object, compare=False, repr=False)
    """Pools with the same one, an executor's and those of its actors, share
    ``max_shared_memory``."""

    @classmethod
    def check(
        cls,
        *,
        max_workers: object,
        mp_context: object,
        initializer: object,
        initargs: object,
        max_tasks_per_child: object,
        timeout: object,
        retries: object,
        max_restarts: object,
        max_shared_memory: object,
        max_worker_memory: object,
        max_worker_memory_hard: object,
        min_free_memory: object,
        idle_timeout: object,
        threads_per_worker: object,
        worker_env: object,
        in_process: bool,
        worker_output: object,
        name: str | None,
        fallback: object,
        context: object,
    ) -> Options:
        """Validate what the constructor was given; raises TypeError or ValueError."""
        workers = (
            default_workers()
            if max_workers is None
            else positive_int("max_workers", max_workers, WORKERS_AT_MOST)
        )
        threads = (
            max(1, cpu_count() // workers)
            if threads_per_worker is None
            else positive_int("threads_per_worker", threads_per_worker)
        )
        tasks = (
            None
            if max_tasks_per_child is None
            else positive_int("max_tasks_per_child", max_tasks_per_child)
        )
        return cls(
            max_workers=workers,
            start_method=start_method(mp_context),
            segment=segment_kind(),
            name=_name(name),
            initializer=callable_or_none("initializer", initializer),
            initargs=arguments(initargs),
            max_tasks_per_child=tasks,
            call=CallOptions(cast("Any", timeout), cast("Any", retries)),
            max_restarts=non_negative_int("max_restarts", max_restarts),
            max_shared_memory=byte_count("max_shared_memory", max_shared_memory),
            max_worker_memory=byte_count("max_worker_memory", max_worker_memory),
            max_worker_memory_hard=_hard_limit(
                max_worker_memory_hard, max_worker_memory
            ),
            min_free_memory=_free_memory(min_free_memory),
            idle_timeout=seconds_or_none("idle_timeout", idle_timeout),
            threads_per_worker=threads,
            worker_env=environment(worker_env),
            in_process=bool(in_process),
            worker_output=_worker_output(worker_output),
            native=native_wanted(),
            visible=visible(),
            fallback=_fallback(fallback),
            context=_context(context),
        )


def _hard_limit(hard: object, soft: object) -> int | None:
    limit = byte_count("max_worker_memory_hard", hard)
    lower = byte_count("max_worker_memory", soft)
    if limit is not None and lower is not None and limit < lower:
        msg = (
            f"max_worker_memory_hard must be at least max_worker_memory ({soft!r}), "
            f"not {hard!r}"
        )
        raise ValueError(msg)
    return limit


def _free_memory(value: object) -> int | None:
    return (
        0 if type(value) is int and value == 0 else byte_count("min_free_memory", value)
    )


def _context(variables: object) -> tuple[ContextVar[Any], ...]:
    if not isinstance(variables, Iterable) or isinstance(variables, (str, Mapping)):
        msg = f"context must be a tuple of ContextVars, not {variables!r}"
        raise TypeError(msg)
    found = tuple(variables)
    for variable in found:
        if not isinstance(variable, ContextVar):
            msg = f"context must be a tuple of ContextVars, but {variable!r} is none"
            raise TypeError(msg)
    return found


def _fallback(value: object) -> Fallback | None:
    if value is None:
        return None
    if value != "process-per-call":
        msg = f"fallback must be 'process-per-call' or None, not {value!r}"
        raise ValueError(msg) if isinstance(value, str) else TypeError(msg)
    if not hasattr(os, "fork"):
        msg = "fallback='process-per-call' needs os.fork, which this system lacks"
        raise ValueError(msg)
    return "process-per-call"


def _name(name: object) -> str:
    if name is None:
        return "shmexec"
    if not isinstance(name, str) or not name:
        msg = f"name must be a non-empty text, not {name!r}"
        raise TypeError(msg)
    return name


def _worker_output(value: object) -> WorkerOutput:
    if value not in get_args(WorkerOutput):
        msg = f"worker_output must be 'forward', 'inherit' or 'discard', not {value!r}"
        raise ValueError(msg)
    return cast("WorkerOutput", value)


def callable_or_none(name: str, value: object) -> Callable[..., object] | None:
    """Check a function that need not be given."""
    if value is not None and not callable(value):
        msg = f"{name} must be callable, not {value!r}"
        raise TypeError(msg)
    return value


def arguments(value: object) -> tuple[Any, ...]:
    """Check ``initargs``."""
    try:
        return tuple(cast("tuple[Any, ...]", value))
    except TypeError:
        msg = f"initargs must be a tuple of arguments, not {value!r}"
        raise TypeError(msg) from None


def environment(worker_env: object) -> dict[str, str]:
    """Check ``worker_env``."""
    if worker_env is None:
        return {}
    if not isinstance(worker_env, Mapping):
        msg = f"worker_env must be a mapping of texts, not {worker_env!r}"
        raise TypeError(msg)
    for key, value in worker_env.items():
        if not isinstance(key, str) or not isinstance(value, str):
            msg = f"worker_env must map texts to texts, not {key!r} to {value!r}"
            raise TypeError(msg)
    return dict(worker_env)
