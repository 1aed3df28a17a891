"""Interrupts that strike where they are told to: at the n-th place where one may."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import shmexec

ROOT = shmexec.__file__.rpartition("/")[0]

NOT_HERE = (
    "/worker/",
    "/cli/",
    "/wire/pickling",
    "/wire/functions",
    "/wire/explaining",
    "/memory/",
    "/runtime/workers",
    "/runtime/outputs",
    "/runtime/processes",
    "/runtime/roster",
    "/runtime/cgroups",
    "/runtime/footprint",
)
"""Parts that run elsewhere, or change no state that outlives them; and those that are not
mended, as the README's limits say: the records of shared memory, and descriptors while
workers come and go."""


class Interrupter:
    """Raises ``KeyboardInterrupt`` once, as Ctrl-C does, in the thread that traces.

    CPython looks for signals when a function begins, after each call, and where a loop
    goes back; nowhere else.

    Args:
        at: At which of these places in the package; 0 for none, to count them.
        spared: Parts of the names of files in which it does not.
    """

    def __init__(self, at: int, spared: tuple[str, ...] = NOT_HERE) -> None:
        self.at = at
        self._spared = spared
        self.seen = 0
        self.where = ""

    def run(self, fn: Callable[[], Any]) -> Any:
        """Call it with interrupts."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            return fn()
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Any:
        code = frame.f_code
        name = code.co_filename
        if not name.startswith(ROOT) or any(part in name for part in self._spared):
            return None
        if code.co_name == "__del__":
            return None  # what is raised in there goes nowhere: so Python has it
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        names, looks = dis.opname, False

        def step(frame: FrameType, event: str, _arg: object) -> Any:
            nonlocal looks
            if event == "opcode":
                name = names[code.co_code[frame.f_lasti]]
                if looks or name == "RESUME":
                    self._strike(frame)
                looks = name.startswith("CALL") or name == "JUMP_BACKWARD"
            return step

        return step

    def _strike(self, frame: FrameType) -> None:
        self.seen += 1
        if self.seen == self.at:
            code = frame.f_code
            self.where = f"{code.co_filename[len(ROOT) + 1 :]}:{frame.f_lineno}"
            self.where += f" {code.co_name}+{frame.f_lasti}"
            raise KeyboardInterrupt
