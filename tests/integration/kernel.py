"""Runs cells in a real kernel; in a process of its own, since its sockets stay open.

Takes cells as JSON, each with what it prints when it is to be interrupted, or null;
gives what each printed, and its errors.
"""

from __future__ import annotations

import json
import re
import sys

from jupyter_client.manager import KernelManager

WAIT = 60.0


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

    def run(self, code, interrupt_at=None):
        """Run a cell, and interrupt it when it printed that: its output and errors."""
        cell = self.client.execute(code)
        printed, errors = "", []
        while True:
            message = self.client.get_iopub_msg(timeout=WAIT)
            if message["parent_header"].get("msg_id") != cell:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                printed += content["text"]
            elif message["msg_type"] == "error":
                errors.append("\n".join(content["traceback"]))
            elif content.get("execution_state") == "idle":
                return printed, [re.sub(r"\x1b\[[0-9;]*m", "", each) for each in errors]
            if interrupt_at is not None and interrupt_at in printed:
                interrupt_at = None
                self.kernel.interrupt_kernel()

    def close(self):
        self.client.stop_channels()
        self.kernel.shutdown_kernel(now=True)


def main():
    notebook = Notebook()
    try:
        results = [notebook.run(*cell) for cell in json.load(sys.stdin)]
    finally:
        notebook.close()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
