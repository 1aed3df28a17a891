"""Figures about a cluster, as frozen records."""

from __future__ import annotations

from dataclasses import dataclass

from shmexec.figures import Stats


@dataclass(frozen=True, slots=True)
class NodeStats:
    """One node at one moment.

    Example:
        >>> node = ex.stats().nodes[0]
        >>> node.threads >= 1
        True
    """

    address: str
    """Where Dask finds it."""
    pid: int
    """Process id of the Dask worker, on its machine."""
    threads: int
    """Calls it runs at once, and workers of its pool."""
    pool: Stats | None
    """Figures of its pool, None if it ran no call yet."""


@dataclass(frozen=True, slots=True)
class ClusterStats:
    """An executor's calls and nodes at one moment; made by :meth:`DaskExecutor.stats`.

    Example:
        >>> ex.submit(abs, -1).result()
        1
        >>> ex.stats().done >= 1
        True
    """

    nodes: tuple[NodeStats, ...]
    submitted: int
    pending: int
    """Calls that have not ended; whether they have begun is not known here."""
    done: int
    failed: int
    cancelled: int
    sent_again: int
    """Calls that were sent again from here, since a node was lost with their inputs. What
    Dask ran again by itself is not counted."""
    inputs_sent: int
    """Large inputs that were sent to the cluster."""
    inputs_reused: int
    """Large inputs of calls that were there already."""
    bytes_sent: int
    """Of large inputs."""
    bytes_fetched: int
    """Of results that came here."""
