"""shmexec: a process pool for NumPy work.

In the examples ``ex`` is an executor, ``shmexec.Executor(2)``, ``np`` is ``numpy``;
``asyncio``, ``os``, ``time`` and ``pathlib.Path`` are imported.

The public names are imported on first use: workers import this package too, and must
not pay for the parent's side of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "Actor": "shmexec.actors",
    "Batcher": "shmexec.batcher",
    "BatcherStats": "shmexec.figures",
    "CallRecord": "shmexec.figures",
    "Executor": "shmexec.executor",
    "Future": "shmexec.runtime.futures",
    "ForkPerCallExecutor": "shmexec.forkpercall",
    "FunctionInfo": "shmexec.scripts",
    "Health": "shmexec.figures",
    "LoadedScript": "shmexec.loading",
    "MemoryStats": "shmexec.figures",
    "Script": "shmexec.scripts",
    "Pipeline": "shmexec.pipelines",
    "Profile": "shmexec.profiling.profile",
    "Shared": "shmexec.wire.objects",
    "Stage": "shmexec.pipelines",
    "Stats": "shmexec.figures",
    "Step": "shmexec.figures",
    "Story": "shmexec.figures",
    "Stream": "shmexec.runtime.streams",
    "WorkerStats": "shmexec.figures",
    "asarray": "shmexec.sharing",
    "empty": "shmexec.sharing",
    "empty_like": "shmexec.sharing",
    "full": "shmexec.sharing",
    "load": "shmexec.loading",
    "share": "shmexec.sharing",
    "shared_arrays": "shmexec.sharing",
    "stats": "shmexec.sharing",
    "zeros": "shmexec.sharing",
}

__all__ = [
    "Actor",
    "Batcher",
    "BatcherStats",
    "CallRecord",
    "CallStopped",
    "CallTimeout",
    "ClusterError",
    "Executor",
    "FallbackWarning",
    "ForkPerCallExecutor",
    "FunctionInfo",
    "Future",
    "Health",
    "LoadedScript",
    "MemoryScarce",
    "MemoryStats",
    "MemoryWarning",
    "Pipeline",
    "PoolBroken",
    "PoolClosed",
    "Profile",
    "QueueFull",
    "RemoteError",
    "RemoteTraceback",
    "Script",
    "SerializationError",
    "Shared",
    "SharedMemoryFull",
    "ShmexecError",
    "Stage",
    "Stats",
    "Step",
    "Story",
    "Stream",
    "UnknownFunction",
    "WorkerDied",
    "WorkerStats",
    "WrongArguments",
    "__version__",
    "asarray",
    "empty",
    "empty_like",
    "full",
    "load",
    "share",
    "shared_arrays",
    "stats",
    "zeros",
]

if TYPE_CHECKING:
    from shmexec.actors import Actor
    from shmexec.batcher import Batcher
    from shmexec.errors import (
        CallStopped,
        CallTimeout,
        ClusterError,
        FallbackWarning,
        MemoryScarce,
        MemoryWarning,
        PoolBroken,
        PoolClosed,
        QueueFull,
        RemoteError,
        RemoteTraceback,
        SerializationError,
        SharedMemoryFull,
        ShmexecError,
        UnknownFunction,
        WorkerDied,
        WrongArguments,
    )
    from shmexec.executor import Executor
    from shmexec.figures import (
        BatcherStats,
        CallRecord,
        Health,
        MemoryStats,
        Stats,
        Step,
        Story,
        WorkerStats,
    )
    from shmexec.forkpercall import ForkPerCallExecutor
    from shmexec.loading import LoadedScript, load
    from shmexec.pipelines import Pipeline, Stage
    from shmexec.profiling.profile import Profile
    from shmexec.runtime.futures import Future
    from shmexec.runtime.streams import Stream
    from shmexec.scripts import FunctionInfo, Script
    from shmexec.sharing import (
        asarray,
        empty,
        empty_like,
        full,
        share,
        shared_arrays,
        stats,
        zeros,
    )
    from shmexec.wire.objects import Shared


def __getattr__(name: str) -> object:
    home = _HOME.get(name, "shmexec.errors")
    if name not in __all__:
        msg = f"module 'shmexec' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
