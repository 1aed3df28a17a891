"""Named points on the way of a call, at which tests have something go wrong.

Nobody but tests installs a hook; without one a point is a look-up and a comparison. In
this process it is installed by setting :data:`hook`. A worker does so before anything
else, if its pool's ``worker_env`` says which (see :func:`shmexec.options.fault_hook`).

The points: in workers ``worker.starting``; ``worker.idle``, before each wait for a
message; ``worker.read``, a call has come and has not begun; ``worker.writing``, its
result lies where the parent will look for it; ``worker.replied``; ``worker.ending``, it
was told to end. In the parent ``parent.starting``, a process is to be started;
``parent.leased``, blocks are leased for a call that is not sent yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from shmexec.options import fault_hook

Hook = Callable[[str, Any], object]
"""Called with the point, and with whatever it is about: a worker's line, or its handle."""

hook: Hook | None = None
"""What is called at each point. The busiest paths look at it themselves."""


def reach(point: str, about: Any = None) -> None:
    """Something has come to this point."""
    if hook is not None:
        hook(point, about)


def install(extra_env: Mapping[str, str]) -> None:
    """In a new worker: the hook that its pool names, or none; it may be forked."""
    global hook
    hook = None
    named = fault_hook(extra_env)
    if named is not None:
        module, function = named
        hook = getattr(import_module(module), function)(extra_env)
