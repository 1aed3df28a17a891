"""Runs cells in a real kernel; in a process of its own, since its sockets stay open.

Takes commands as JSON, one a line: a method of :class:`Notebook` and its arguments. For
each it gives one line: what all cells printed so far, raised and displayed.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass, field

from jupyter_client.manager import KernelManager

WAIT = 60.0


@dataclass
class Cell:
    """What came of it so far."""

    printed: str = ""
    errors: list[str] = field(default_factory=list)
    shown: list[dict[str, str]] = field(default_factory=list)
    idle: bool = False

    def take(self, kind, content):
        if kind == "stream":
            self.printed += content["text"]
        elif kind == "error":
            text = "\n".join(content["traceback"])
            self.errors.append(re.sub(r"\x1b\[[0-9;]*m", "", text))
        elif kind in {"execute_result", "display_data"}:
            self.shown.append(content["data"])
        self.idle |= content.get("execution_state") == "idle"


class Notebook:
    """A kernel and what it says."""

    def __init__(self):
        self.kernel = KernelManager(kernel_name="python3")
        # Whatever kernels are installed: this interpreter's.
        self.kernel.kernel_spec.argv[0] = sys.executable
        self.kernel.start_kernel()
        self.client = self.kernel.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=WAIT)
        self.cells: dict[str, Cell] = {}

    def run(self, code, interrupt_at=None):
        """Run a cell, and interrupt it when it printed that."""
        cell = self.cells[self.client.execute(code)] = Cell()
        while not cell.idle:
            self.take()
            if interrupt_at is not None and interrupt_at in cell.printed:
                interrupt_at = None
                self.kernel.interrupt_kernel()

    def wait(self, number, text):
        """Wait until a cell has printed something, whichever runs."""
        cell = list(self.cells.values())[number]
        while text not in cell.printed:
            self.take()

    def take(self):
        """The next thing that the kernel says, for the cell it belongs to."""
        message = self.client.get_iopub_msg(timeout=WAIT)
        cell = self.cells.get(message["parent_header"].get("msg_id"))
        if cell is not None:
            cell.take(message["msg_type"], message["content"])

    def close(self):
        self.client.stop_channels()
        self.kernel.shutdown_kernel(now=True)


def main():
    notebook = Notebook()
    try:
        for command in sys.stdin:
            name, *args = json.loads(command)
            getattr(notebook, name)(*args)
            json.dump([*map(asdict, notebook.cells.values())], sys.stdout)
            sys.stdout.write("\n")
            sys.stdout.flush()
    finally:
        notebook.close()


if __name__ == "__main__":
    main()
