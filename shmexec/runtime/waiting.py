"""Whether a thread may wait for others: not if they wait for what it runs just now."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from shmexec.runtime.cells import runs_cell
from shmexec.worker import loop


class _Resolving(threading.local):
    active = False


resolving = _Resolving()
"""``active`` in a thread that may be in code which the pool has called back."""


def may_block() -> bool:
    """Whether this thread may wait: not in a callback, nor under an event loop.

    A notebook's kernel runs plain cells under its loop, which stands still anyway.
    """
    return not (resolving.active or (loop.is_running() and not runs_cell()))


def unblocking(fn: Callable[..., object], *args: Any) -> None:
    """Run what may call back into the pool, where a submit may not wait for others."""
    before = resolving.active
    resolving.active = True
    try:
        fn(*args)
    finally:
        resolving.active = before
