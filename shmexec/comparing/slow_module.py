"""Takes 0.3 s of a CPU to import, as large libraries do."""

from __future__ import annotations

from time import thread_time

_SECONDS = 0.3

_end = thread_time() + _SECONDS
while thread_time() < _end:
    pass


def echo(token: int) -> int:
    """What it is imported for."""
    return token
