"""In which cell of a notebook something was submitted.

What workers print belongs to that cell, whichever runs when it comes, and whichever thread
writes it. The kernel's streams know by a context variable whose text they are given: so it
is enough to write it in a copy of the context that the cell had.
"""

from __future__ import annotations

import sys
from typing import Any


def is_kernel() -> bool:
    """Whether this process is a notebook's kernel, where it matters who prints."""
    module: Any = sys.modules.get("ipykernel.kernelapp")
    return module is not None and bool(module.IPKernelApp.initialized())
