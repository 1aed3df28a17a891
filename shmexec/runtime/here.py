"""The stacks of this process, where calls run in it."""

from __future__ import annotations

import sys
import traceback


def show_here(what: str) -> str:
    """The stacks of this process's threads, below a line that says what for."""
    parts = [f"{what}\n"]
    for thread, frame in sys._current_frames().items():  # noqa: SLF001
        parts.append(f"\n  Thread {thread:#x} (most recent call last):\n")
        parts += [f"  {line}" for line in traceback.format_stack(frame)]
    return "".join(parts)
