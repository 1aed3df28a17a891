"""Waiting for what should happen, for a bounded time and no longer than it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

LONG = 20.0
"""Seconds after which something that should happen is taken never to happen."""


def wait_until(condition: Callable[[], Any], seconds: float = LONG) -> Any:
    """Look until the condition holds; its value, or the last one when time is over."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.005)):
        value = condition()
        if value:
            return value
        pause.wait(0.005)
    return condition()
