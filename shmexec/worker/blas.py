"""How many threads the numerical libraries of a worker use."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

_threads_of_numpy: int | None = None
"""Threads that the libraries NumPy came with were told to use as they were loaded."""

_controller: ThreadpoolController | None = None
"""Of those libraries. To find them takes longer than all else that a new worker does."""


def load_numpy() -> None:
    """In the fork server: load NumPy with one thread, most workers' share.

    BLAS libraries read these variables as they are loaded. Their pools of threads would
    not survive a fork anyway.
    """
    global _threads_of_numpy, _controller
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    if "numpy" not in sys.modules:
        import numpy  # noqa: F401, ICN001
        from threadpoolctl import ThreadpoolController

        _threads_of_numpy = 1
        _controller = ThreadpoolController()


def limit_threads(threads: int) -> None:
    """Limit the BLAS and OpenMP libraries that are loaded; others see the variables."""
    if "numpy" not in sys.modules or threads == _threads_of_numpy:
        return
    if _controller is not None:
        _controller.limit(limits=threads)
        return
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
