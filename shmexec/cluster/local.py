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


class LocalCluster:
    """A scheduler and nodes, at 127.0.0.1, 127.0.0.2 and so on.

    Args:
        nodes: How many.
        threads: Of each; its pool has as many workers.
    """

    def __init__(self, nodes: int, threads: int) -> None:
        # What Dask moves to disk, and its lock files.
        self._folder = tempfile.TemporaryDirectory(
            prefix="shmexec-cluster-", ignore_cleanup_errors=True
        )
        workers = {index: self._node(index, threads) for index in range(nodes)}
        scheduler = {
            "cls": Scheduler,
            "options": {
                "host": "127.0.0.1",
                "port": 0,
                "dashboard": False,
                "dashboard_address": "127.0.0.1:0",
            },
        }
        self.cluster = SpecCluster(
            workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL
        )

    def _node(self, index: int, threads: int) -> dict[str, Any]:
        settings = {
            "host": f"127.0.0.{index % 254 + 1}",
            "nthreads": threads,
            "local_directory": self._folder.name,
            "dashboard": False,
            "silence_logs": "CRITICAL",
        }
        options = {"worker_class": "distributed.Worker", "worker_kwargs": settings}
        return {"cls": SubprocessWorker, "options": options}

    def close(self) -> None:
        """End all of it; nodes are killed."""
        self.cluster.close()
        self._folder.cleanup()
