"""A cluster on this machine, to try things: nodes are processes with own addresses.

They are started by command, not as children of ``multiprocessing``, so that no program
needs a ``__main__`` guard. The scheduler is in this process: if that is killed nodes find
it gone, and end.
"""

from __future__ import annotations

import logging
import tempfile
from typing import Any

from distributed import Scheduler
from distributed.deploy.spec import SpecCluster
from distributed.deploy.subprocess import SubprocessWorker


def local_cluster(nodes: int, threads: int) -> SpecCluster:
    """Start a scheduler and so many nodes, at 127.0.0.1, 127.0.0.2 and so on.

    Args:
        nodes: How many.
        threads: Of each; its pool has as many workers.
    """
    workers: dict[int, Any] = {
        index: {
            "cls": SubprocessWorker,
            "options": {
                "worker_class": "distributed.Worker",
                "worker_kwargs": {
                    "host": f"127.0.0.{index % 254 + 1}",
                    "nthreads": threads,
                    "local_directory": tempfile.gettempdir(),
                    "dashboard": False,
                    "silence_logs": "CRITICAL",
                },
            },
        }
        for index in range(nodes)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": False},
    }
    return SpecCluster(
        workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL
    )
