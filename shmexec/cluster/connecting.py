"""Finding a cluster, and whether its scheduler and nodes have what calls need."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

from distributed import Client

import shmexec
from shmexec.deadline import Deadline
from shmexec.errors import ClusterError

REACH_SECONDS = 2.0
"""How long it is tried whether a node can be reached from here."""


@contextlib.contextmanager
def reaching(client: Client) -> Iterator[None]:
    """Raise ClusterError if the scheduler cannot be reached meanwhile."""
    try:
        if client.status != "running":
            msg = f"the client is {client.status}"
            raise OSError(msg)
        yield
    except (OSError, TimeoutError) as error:
        msg = f"the scheduler cannot be reached any more: {error}"
        raise ClusterError(msg) from error


def connect(cluster: Any, timeout: float) -> tuple[Client, bool]:
    """A client of a cluster, and whether it was made here.

    Args:
        cluster: An address, a client, or a cluster of Dask's.
        timeout: Seconds until the scheduler must have answered, and have a node.

    Raises:
        ClusterError: If it has not, or the cluster has not what calls need.
    """
    deadline = Deadline(timeout)
    own = not isinstance(cluster, Client)
    client = _client(cluster, timeout) if own else cluster
    try:
        _wait_for_nodes(client, deadline)
        for address in (client.scheduler.address, *client.nthreads()):
            refuse_in_process(address)
        check(client)
    except BaseException:
        if own:
            client.close()
        raise
    return client, own


def _client(cluster: Any, timeout: float) -> Client:
    try:
        return Client(cluster, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError) as error:
        where = getattr(cluster, "scheduler_address", cluster)
        msg = (
            f"no Dask scheduler answered at {where} within {timeout:g} s: {error}. Start "
            "one with `dask scheduler`, or see whether the address is right and can be "
            "reached from here"
        )
        raise ClusterError(msg) from error


def _wait_for_nodes(client: Client, deadline: Deadline) -> None:
    if client.asynchronous or client.status != "running":
        how = "asynchronous" if client.asynchronous else client.status
        msg = f"the client is {how}: make one with distributed.Client(address)"
        raise ClusterError(msg)
    try:
        client.wait_for_workers(1, timeout=max(0.1, deadline.remaining() or 0.1))
    except (OSError, TimeoutError) as error:
        raise _no_nodes(client) from error


def _no_nodes(client: Client) -> ClusterError:
    address = client.scheduler.address
    msg = (
        f"the scheduler at {address} has no nodes: start some with "
        f"`dask worker {address} --nworkers 1`, one on each machine"
    )
    return ClusterError(msg)


def refuse_in_process(address: str) -> None:
    """Raise ClusterError for a scheduler or node that is a thread of some program."""
    if address.startswith("inproc://"):
        msg = (
            f"{address} has no process of its own: Dask hands objects over there "
            "without a copy, so that whoever writes to a result changes what the "
            "cluster keeps. Use processes=True"
        )
        raise ClusterError(msg)


def check(client: Client) -> None:
    """Raise ClusterError if scheduler or nodes lack shmexec, or have another version."""
    wanted = shmexec.__version__, _minor(platform.python_version())
    found = _ask_all(client, metadata.version, "shmexec")
    pythons = _ask_all(client, platform.python_version)
    for place, version in found.items():
        if isinstance(version, metadata.PackageNotFoundError):
            msg = (
                f"{place} has no shmexec: install shmexec=={wanted[0]} in its "
                "environment, and start it again"
            )
            raise ClusterError(msg)
        _check_same(place, "shmexec", version, wanted[0])
        if place in pythons:  # else the node has left since
            _check_same(place, "Python", _minor(pythons[place]), wanted[1])


def _check_same(place: str, what: str, there: Any, here: str) -> None:
    if isinstance(there, BaseException):
        msg = f"{place} cannot be asked for its version of {what}: {there!r}"
        raise ClusterError(msg) from there
    if there != here:
        msg = (
            f"{place} has {what} {there}, this program {here}: calls could not be "
            "unpickled. Use the same environment on all machines"
        )
        raise ClusterError(msg)


def _minor(version: Any) -> Any:
    return ".".join(version.split(".")[:2]) if isinstance(version, str) else version


def _ask_all(client: Client, fn: Callable[..., str], *args: str) -> Mapping[str, Any]:
    """Call a function of the standard library everywhere; an error is an answer, too."""
    answers: dict[str, Any] = {
        f"the node at {address}": answer
        for address, answer in client.run(fn, *args, on_error="return").items()
    }
    scheduler = f"the scheduler at {client.scheduler.address}"
    try:
        answers[scheduler] = client.run_on_scheduler(fn, *args)
    except Exception as error:  # noqa: BLE001  (an answer)
        answers[scheduler] = error
    return answers


def can_reach(client: Client) -> bool:
    """Whether nodes can be reached from here, not only through the scheduler.

    Raises:
        ClusterError: If there are none any more.
    """
    from distributed.comm import connect as open_comm

    async def reach(address: str) -> bool:
        try:
            comm = await open_comm(
                address, timeout=REACH_SECONDS, **client.connection_args
            )
        except OSError:
            return False
        await comm.close()
        return True

    address = next(iter(client.nthreads()), None)
    if address is None:
        raise _no_nodes(client)
    return bool(client.sync(reach, address))
