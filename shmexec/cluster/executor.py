"""The executor on a cluster: the facade, with Dask behind it."""

from __future__ import annotations

import contextlib
import threading
import uuid
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Executor as BaseExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from distributed import Client

from shmexec.calling import Calling
from shmexec.closing import close_apart
from shmexec.cluster import node
from shmexec.cluster.calls import Calls
from shmexec.cluster.connecting import can_reach, connect, reaching
from shmexec.cluster.figures import ClusterStats, NodeStats
from shmexec.cluster.inputs import Inputs
from shmexec.cluster.packing import PackedCall
from shmexec.cluster.settings import pool_settings
from shmexec.cluster.watching import Watch
from shmexec.errors import ClusterError
from shmexec.options import (
    WORKERS_AT_MOST,
    CallOptions,
    byte_count,
    cpu_count,
    positive_int,
    seconds_or_none,
)

if TYPE_CHECKING:
    from shmexec.actors import Actor
    from shmexec.cluster.local import LocalCluster
    from shmexec.pipelines import Pipeline

T = TypeVar("T")


class _ClusterCalling(Calling):
    """The ways of calling, as far as they are others than in a local pool."""

    _calls: Calls

    def map_batches(
        self,
        fn: Callable[..., Any],
        X: Any,  # noqa: N803  (the field's name for it)
        *more: Any,
        batch_size: int | None = None,
        out: Any = None,
        progress: bool | Callable[[int], object] = False,
    ) -> np.ndarray:
        """As :meth:`shmexec.Executor.map_batches`; batches are sent to the nodes.

        Each is sent once, by its content: in another ``map_batches`` of the same array
        with the same ``batch_size`` it is on its node already, if ``keep_inputs`` had
        room for it. Results are written into ``out`` here as they come.
        """
        arrays = [np.asanyarray(array).view() for array in (X, *more)]
        for array in arrays:
            array.flags.writeable = False
        with self._calls.inputs.lend(arrays):
            return super().map_batches(
                fn, *arrays, batch_size=batch_size, out=out, progress=progress
            )

    def _make_actor(
        self,
        cls: object,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        replicas: int,
        max_concurrency: int,
        initialize_timeout: float | None,
    ) -> Actor[Any]:
        from shmexec.cluster.actors import make_actor

        settings = {
            "max_concurrency": positive_int("max_concurrency", max_concurrency),
            "initialize_timeout": seconds_or_none(
                "initialize_timeout", initialize_timeout
            ),
        }
        return make_actor(
            self._calls,
            self._call_options,
            cls,
            args,
            kwargs,
            replicas=positive_int("replicas", replicas, WORKERS_AT_MOST),
            settings=settings,
            owner=self._owner,
        )

    def pipeline(self, *stages: Any, buffersize: int = 2) -> NoReturn:
        """A cluster has none: pass futures on instead, which stay there.

        Example:
            >>> ex.pipeline(abs)
            Traceback (most recent call last):
            ...
            NotImplementedError: ...
        """
        msg = (
            "a cluster has no pipelines: pass the future of one stage to the call of "
            "the next, ex.submit(g, ex.submit(f, x)); what f returns stays on the cluster"
        )
        raise NotImplementedError(msg)

    def batcher(self, fn: Callable[..., Any], **_settings: Any) -> NoReturn:
        """A cluster has none.

        Example:
            >>> ex.batcher(abs)
            Traceback (most recent call last):
            ...
            NotImplementedError: ...
        """
        msg = "a cluster has no batcher: use map_batches, or a batcher on one machine"
        raise NotImplementedError(msg)


# `map` refuses arguments that do not fit the function, which its base class lets pass.
class DaskExecutor(_ClusterCalling, BaseExecutor):  # type: ignore[misc]
    """Runs calls on a Dask cluster, in one shmexec pool on each node.

    It has the ways of calling of :class:`shmexec.Executor`, but for ``batcher`` and
    ``pipeline``. Arrays of 256 KiB and more are sent to the cluster once, known by their
    content, and lie in the shared memory of each node that needed them; results stay
    there until :meth:`Future.result` is called. A future may be passed to another call,
    which gets its result without a way through this program.

    A node is one process of Dask's, best one on each machine: ``dask worker ADDRESS
    --nworkers 1``. Its pool has as many workers as it has threads. Scheduler and nodes
    need this version of shmexec and the same Python.

    If a node is lost its calls run again on others, and what was lost is made, or sent,
    again. Each instance of an actor is on some node, and is lost with it: its calls fail
    with :class:`shmexec.WorkerDied`. What its methods return comes here at once.
    If this program dies, the nodes' pools end. Shut it down, or use ``with``: at a
    program's end, calls that still run are dropped otherwise.

    Args:
        cluster: Address of the scheduler, a ``distributed.Client``, or a cluster of
            Dask's, such as a ``LocalCluster`` with processes.
        initializer: Called in each worker of each node before its first call.
        initargs: Its arguments.
        timeout: Seconds that a call may run; then its worker is stopped and the call
            fails with :class:`shmexec.CallTimeout`. Default: no limit.
        retries: How often a call runs again after its worker died. Default 0. After the
            loss of a node calls run again whatever this is.
        connect_timeout: Seconds until the scheduler must have answered and have a node.
        keep_inputs: Bytes, or a text such as ``"2GB"``, of large inputs that stay on the
            cluster for later calls. Default 1 GB. What calls that have not ended need is
            not counted.
        threads_per_worker: BLAS and OpenMP threads in each worker of a node. Default: the
            node's CPUs divided by its workers.
        max_shared_memory: Bytes, or a text, of shared memory on each node for arguments
            and results of its pool, also those that Dask keeps there. Default: 3/4 of the
            node's memory limit (Dask moves results to its disk before that is reached),
            or half of what is free there if it has none.
        worker_env: Environment variables for the workers.

    Raises:
        ClusterError: If there is no scheduler or no node in time, or one of them lacks
            shmexec, has another version, or has no process of its own.
        SerializationError: If the initializer cannot be pickled.
        TypeError, ValueError: For a setting that makes no sense.

    Example:
        >>> from shmexec.cluster import DaskExecutor
        >>> with DaskExecutor.local(nodes=1, threads=1) as ex:
        ...     doubled = ex.submit(lambda x: 2 * x, 21)
        ...     ex.submit(lambda y: y + 1, doubled).result()
        43
    """

    def __init__(
        self,
        cluster: Any,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        timeout: float | None = None,
        retries: int = 0,
        connect_timeout: float = 10.0,
        keep_inputs: int | str = "1GB",
        threads_per_worker: int | None = None,
        max_shared_memory: int | str | None = None,
        worker_env: Mapping[str, str] | None = None,
    ) -> None:
        self._call_options = CallOptions(timeout, retries)
        seconds = seconds_or_none("connect_timeout", connect_timeout)
        keep = 0 if keep_inputs == 0 else byte_count("keep_inputs", keep_inputs)
        settings = pool_settings(
            initializer=initializer,
            initargs=initargs,
            threads_per_worker=threads_per_worker,
            max_shared_memory=max_shared_memory,
            worker_env=worker_env,
        )
        if seconds is None or keep is None:
            msg = "connect_timeout and keep_inputs cannot be None"
            raise TypeError(msg)
        self._client, own = connect(cluster, seconds)
        self._at = str(self._client.scheduler.address)
        self._started: list[LocalCluster] = []  # for it, and closed after it
        name = f"shmexec-{uuid.uuid4().hex[:12]}"
        try:
            direct = can_reach(self._client) if own else None
            if direct:
                self._client.direct_to_workers = True
            self._client.register_plugin(Watch(name, self._client.id), name=name)
            self._client.register_plugin(node.Node(name, settings), name=name)
        except BaseException as error:
            _leave(self._client, name, [], own=own)
            if not isinstance(error, Exception) or isinstance(error, ClusterError):
                raise
            what = f"{type(error).__name__}: {error}"
            msg = f"the cluster at {self._at} could not be made ready: {what}"
            raise ClusterError(msg) from error
        self._calls = Calls(self._client, name, Inputs(self._client, keep, direct))
        self._pool: Any = self._calls
        self._actors: weakref.WeakSet[Actor[Any]] = weakref.WeakSet()
        self._ending = threading.Lock()
        self._ended = False
        self._own = own
        self._finalizer = weakref.finalize(
            self, _abandon, self._calls, self._started, own=own
        )

    @classmethod
    def local(
        cls, nodes: int = 2, threads: int | None = None, **settings: Any
    ) -> DaskExecutor:
        """A cluster on this machine, for trying; it ends with the executor.

        Args:
            nodes: How many, each a process with an address of its own.
            threads: Of each; its pool has as many workers. Default: usable CPUs divided
                by nodes.
            **settings: As of the class.

        Example:
            >>> from shmexec.cluster import DaskExecutor
            >>> with DaskExecutor.local(nodes=1, threads=1) as small:
            ...     small.submit(abs, -1).result()
            1
        """
        from shmexec.cluster.local import LocalCluster

        number = positive_int("nodes", nodes, 200)
        if threads is None:
            threads = max(1, cpu_count() // number)
        cluster = LocalCluster(number, positive_int("threads", threads))
        try:
            made = cls(cluster.cluster, **{"connect_timeout": 60.0, **settings})
            made._client.wait_for_workers(number, timeout=60)
        except BaseException:
            cluster.close()
            raise
        made._started.append(cluster)
        return made

    @property
    def _owner(self) -> DaskExecutor:
        return self

    def _adopt(self, made: Actor[Any] | Pipeline[Any, Any]) -> None:
        self._actors.add(made)  # type: ignore[arg-type]

    @property
    def client(self) -> Client:
        """Dask's client, for what Dask offers beside: its dashboard, say.

        Example:
            >>> len(ex.client.scheduler_info()["workers"]) >= 1
            True
        """
        return self._client

    def options(
        self,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        priority: int = 0,
    ) -> OptionsView:
        """The same cluster with other settings for the calls made through it.

        Args:
            timeout: Seconds a call may run. Default: the executor's.
            retries: How often it runs again after its worker died. Default: the
                executor's.
            priority: Calls of a higher one run earlier. Default 0.

        Example:
            >>> ex.options(timeout=60).submit(abs, -1).result()
            1
        """
        own = self._call_options
        return OptionsView(
            self,
            CallOptions(
                own.timeout if timeout is None else timeout,
                own.retries if retries is None else retries,
                priority,
            ),
        )

    def broadcast(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> list[T]:
        """Run a call once in every worker of every node; waits for the results.

        Nodes and workers that start later have not run it: for those there is
        ``initializer``.

        Raises:
            WorkerDied: If a node is lost meanwhile.

        Example:
            >>> len(ex.broadcast(os.getpid)) >= 1
            True
        """
        calls = self._calls
        calls.check_open()
        call = PackedCall(calls.inputs, fn, args, kwargs)
        parts = calls.remote_parts(call)
        with reaching(self._client):
            nodes = list(self._client.nthreads())
        remotes = {
            address: self._client.submit(
                node.run_everywhere,
                calls.name,
                call.cargo,
                parts,
                key=calls.new_key(call),
                workers=[address],
                pure=False,
            )
            for address in nodes
        }
        came = calls.gather(remotes, call.name)
        return [cargo.open() for cargos in came for cargo in cargos]

    def stats(self) -> ClusterStats:
        """Figures about nodes, calls and inputs at this moment.

        Raises:
            ClusterError: If the scheduler is gone.

        Example:
            >>> ex.stats().failed
            0
        """
        calls, inputs = self._calls, self._calls.inputs
        with reaching(self._client):
            found = self._client.run(node.stats_of, calls.name, on_error="ignore")
        nodes = [NodeStats(address, *each) for address, each in sorted(found.items())]
        return ClusterStats(
            nodes=tuple(nodes),
            submitted=calls.submitted,
            pending=calls.pending(),
            done=calls.done,
            failed=calls.failed,
            cancelled=calls.cancelled,
            sent_again=calls.sent_again,
            inputs_sent=inputs.sent,
            inputs_reused=inputs.reused,
            bytes_sent=inputs.bytes_sent,
            bytes_fetched=calls.bytes_fetched,
        )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; those submitted still run, then the nodes' pools end.

        If the client was made here, results that somebody may still ask for are fetched,
        and it is closed.

        Args:
            wait: Return only when all calls are done and all pools gone. A callback of a
                future's never waits for that.
            cancel_futures: Cancel calls that have not ended.

        Example:
            >>> from shmexec.cluster import DaskExecutor
            >>> small = DaskExecutor.local(nodes=1, threads=1)
            >>> small.shutdown()
        """
        try:
            self._calls.close(cancel=cancel_futures)
            for actor in list(self._actors):
                actor.close(wait=False, cancel_futures=cancel_futures)
            if wait and not self._calls.ends_before():
                self._end()
            else:
                threading.Thread(target=self._end, name="shmexec-cluster-end").start()
        except KeyboardInterrupt as interrupt:
            self._calls.close(cancel=True)
            raise interrupt.with_traceback(None) from None

    def _end(self) -> None:
        # Who comes second waits for the first, whom the ends of all calls wake.
        with self._ending:
            if self._ended:
                return
            for actor in list(self._actors):
                actor.close()
            self._calls.finish(fetch=self._own)
            self._ended = True
            self._finalizer.detach()
            _leave(self._client, self._calls.name, self._started, own=self._own)

    def __repr__(self) -> str:
        calls = self._calls
        state = "closed" if self._ended else f"{calls.pending()} calls pending"
        return f"<shmexec.cluster.DaskExecutor {calls.name!r} at {self._at}: {state}>"

    def __reduce__(self) -> NoReturn:
        msg = "a DaskExecutor cannot be pickled: calls cannot submit to where they run"
        raise TypeError(msg)


def _abandon(calls: Calls, started: list[LocalCluster], *, own: bool) -> None:
    """The executor was garbage-collected, or the program ends."""
    if threading.main_thread().is_alive():
        # A finalizer waits for nobody; calls that were submitted still run.
        close_apart(partial(_finish, calls, started, own))
    else:
        _leave(calls.client, calls.name, started, own=own)


def _finish(calls: Calls, started: list[LocalCluster], own: bool) -> None:
    calls.close(cancel=False)
    calls.finish(fetch=own)
    _leave(calls.client, calls.name, started, own=own)


def _leave(
    client: Client, name: str, started: list[LocalCluster], *, own: bool
) -> None:
    """Have the nodes end their pools; the client goes if it was made here.

    And so does a cluster that was.
    """
    with contextlib.suppress(Exception):  # the scheduler may be gone, or the loop
        client.unregister_scheduler_plugin(name)
        client.unregister_worker_plugin(name)
    if own:
        with contextlib.suppress(Exception):
            client.close()
    for cluster in started:
        cluster.close()


class OptionsView(_ClusterCalling):
    """An executor's calls with other settings; made by :meth:`DaskExecutor.options`."""

    def __init__(self, executor: DaskExecutor, options: CallOptions) -> None:
        self._executor = executor
        self._calls = executor._calls  # noqa: SLF001
        self._pool: Any = self._calls
        self._call_options = options

    @property
    def _owner(self) -> DaskExecutor:
        return self._executor

    def _adopt(self, made: Actor[Any] | Pipeline[Any, Any]) -> None:
        self._executor._adopt(made)  # noqa: SLF001
