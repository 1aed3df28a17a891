"""Cells of notebooks: whether one runs, and in which one something was submitted.

What workers print belongs to that cell, whichever runs when it comes, and whichever thread
writes it. The kernel's streams know by a context variable whose text they are given: so it
is enough to write it in a copy of the context that the cell had.
"""

from __future__ import annotations

import sys
from typing import Any


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
