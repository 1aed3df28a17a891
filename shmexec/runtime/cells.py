"""Cells of notebooks: whether one runs, and in which one something was submitted.

What workers print belongs to that cell, whichever runs when it comes, and whichever thread
writes it. The kernel's streams know by a context variable whose text they are given: so it
is enough to write it in a copy of the context that the cell had.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

from shmexec.wire.reloads import Marks, reloads

_shells: weakref.WeakSet[Any] = weakref.WeakSet()
"""Those of which it is known when they run a cell."""


def runs_cell() -> bool:
    """Whether this thread, which runs an event loop, runs a plain cell of a notebook.

    Such a cell is called by a coroutine of the kernel's own. One that awaits is a
    coroutine itself, and others run beside it: that is no plain one.
    """
    if "ipykernel" not in sys.modules:
        return False
    import asyncio

    task = asyncio.current_task()
    frame = None if task is None else getattr(task.get_coro(), "cr_frame", None)
    name = "" if frame is None else frame.f_globals.get("__name__", "")
    return bool(name.startswith("ipykernel."))


def is_kernel() -> bool:
    """Whether this process is a notebook's kernel, where it matters who prints."""
    module: Any = sys.modules.get("ipykernel.kernelapp")
    return module is not None and bool(module.IPKernelApp.initialized())


def attend() -> None:
    """Have modules that are reloaded between cells be noticed, if IPython runs."""
    module: Any = sys.modules.get("IPython.core.getipython")
    shell = None if module is None else module.get_ipython()
    if shell is None or shell in _shells:
        return
    _shells.add(shell)
    reloads.watch(lambda: _autoreloaded(shell))
    events = shell.events

    def look_last(_info: object = None) -> None:
        reloads.look()

    def look_first(_result: object = None) -> None:
        # What a cell imports is to be seen before it is reloaded. That is done as the
        # next one begins, by those that this is then to come after.
        reloads.look()
        if events.callbacks["pre_run_cell"][-1] is not look_last:
            events.unregister("pre_run_cell", look_last)
            events.register("pre_run_cell", look_last)

    events.register("pre_run_cell", look_last)
    events.register("post_run_cell", look_first)


def _autoreloaded(shell: Any) -> Marks:
    """By module the time of the file that ``%autoreload`` loaded last.

    It changes modules without reloading them, as long as it can; there is no other sign.
    """
    magics = shell.magics_manager.registry.get("AutoreloadMagics")
    reloader = getattr(magics, "_reloader", None)
    failed = getattr(reloader, "failed", {})
    return {
        name: time
        for name, time in getattr(reloader, "modules_mtimes", {}).items()
        # One that could not be reloaded is as it was before.
        if not failed or getattr(sys.modules.get(name), "__file__", None) not in failed
    }
