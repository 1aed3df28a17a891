"""What Dask's scheduler does for an executor whose program has died: its pools end."""

from __future__ import annotations

import contextlib

from distributed import Scheduler, SchedulerPlugin


class Watch(SchedulerPlugin):  # type: ignore[misc]  # Dask's classes are not looked at
    """Has nodes end an executor's pools when its client is gone.

    Args:
        name: Of the executor.
        client: What Dask calls its client.
    """

    def __init__(self, name: str, client: str) -> None:
        self.name = name
        self._client = client

    async def start(self, scheduler: Scheduler) -> None:
        """Called when it is registered."""
        self._scheduler = scheduler

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Called when a client has closed, or its connection has."""
        if client == self._client:
            scheduler.loop.add_callback(self._end)

    async def _end(self) -> None:
        scheduler = self._scheduler
        # The executor may have ended its pools itself.
        with contextlib.suppress(ValueError):
            await scheduler.unregister_worker_plugin(None, name=self.name)
        with contextlib.suppress(ValueError):
            await scheduler.unregister_scheduler_plugin(self.name)
