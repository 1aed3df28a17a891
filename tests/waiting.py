"""Waiting for what should happen, for no longer than it takes; names left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

LONG = 20.0
"""Seconds after which something that should happen is taken never to happen."""


APART: set[int] = set()
"""Processes that tests share, and what is below them: no test is to end those."""


def wait_until(condition: Callable[[], Any], seconds: float = LONG) -> Any:
    """Look until the condition holds; its value, or the last one when time is over."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.005)):
        value = condition()
        if value:
            return value
        pause.wait(0.005)
    return condition()


def shm_names() -> set[str]:
    """What is in ``/dev/shm``, but for what others than these tests may put there."""
    others = ("sem.", "joblib_memmapping_")  # locks of multiprocessing, loky's arrays
    try:
        return {n for n in os.listdir("/dev/shm") if not n.startswith(others)}
    except OSError:
        return set()
