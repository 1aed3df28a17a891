"""Imported by the fork server alone: what every worker is forked with.

Nothing here may import ``numpy.random``: all workers would share its stream.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing.popen_forkserver  # noqa: F401  (a worker gets descriptors by it)
import signal

# What loads takes as long as a user needs to press Ctrl-C; see runtime.server.
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

from shmexec.worker.blas import load_numpy  # noqa: E402

load_numpy()

import shmexec.worker.logs  # noqa: E402
import shmexec.worker.main  # noqa: E402, F401  (after NumPy, which it imports too)
from shmexec.memory import native  # noqa: E402
from shmexec.worker import output  # noqa: E402

# Loaded even where a pool does not use it: in each worker it would take a millisecond.
native.is_built()
with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
    output.c_stdio()  # as long as all else that a worker does about its output

# What is alive now never dies: a collection in a worker need not look at it, and so
# leaves the pages as they are, shared by all workers. Not collected before: that takes
# longer than a fork, and the first worker waits for it.
gc.freeze()
