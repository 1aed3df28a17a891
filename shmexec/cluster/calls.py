"""Calls of one executor, from here: sent to the cluster, followed, sent again if lost."""

from __future__ import annotations

import asyncio
import itertools
import threading
import uuid
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import (
    CancelledError,
    Executor as BaseExecutor,
    ThreadPoolExecutor,
    wait,
)
from functools import partial
from typing import TYPE_CHECKING, Any

from distributed import KilledWorker
from distributed.client import FutureCancelledError

from shmexec.cluster import node
from shmexec.cluster.connecting import reaching
from shmexec.cluster.failing import CallFailed
from shmexec.cluster.futures import Future
from shmexec.cluster.inputs import Inputs
from shmexec.cluster.packing import PackedCall, Part
from shmexec.deadline import Deadline
from shmexec.errors import (
    ClusterError,
    PoolClosed,
    SerializationError,
    WorkerDied,
)
from shmexec.options import CallOptions
from shmexec.runtime.inline import NoBlocks

if TYPE_CHECKING:
    from distributed import Client, Future as DaskFuture

    from shmexec.cluster.streams import ClusterStream, Pump
    from shmexec.runtime.backend import Feeder

SENT_AT_MOST = 10
"""How often a call is sent whose inputs are lost again and again."""

ASK_EVERY = 1.0
"""Seconds after which it is asked whether the nodes of a broadcast are still there."""

_HELPERS = 32
"""Threads that run callbacks and send calls again; they may wait for one another."""

Failed = BaseException | None


class Calls:
    """See the module. What the ways of calling are written against, too.

    Args:
        client: Of the cluster.
        name: Of the executor among all that use the cluster.
        inputs: Sends what is large.
    """

    def __init__(self, client: Client, name: str, inputs: Inputs) -> None:
        self.client = client
        self.name = name
        self.inputs = inputs
        self.blocks = NoBlocks(writes=False, files=False)
        self.feeders: weakref.WeakSet[Feeder] = weakref.WeakSet()
        self._here = threading.local()
        self.helpers: BaseExecutor = ThreadPoolExecutor(
            _HELPERS, "shmexec-cluster", self._begin_helping
        )
        self._numbers = itertools.count(1)
        # Guards all below; held for bookkeeping only.
        self._lock = threading.Lock()
        self._closed = False
        self._unfinished: set[Future[Any]] = set()
        self._alive: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self.pumps: set[Pump] = set()
        self.submitted = self.done = self.failed = self.cancelled = 0
        self.sent_again = self.bytes_fetched = 0

    # -- what ways of calling ask for ------------------------------------------------

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        worker: int | None = None,
        keep: Callable[[Any], object] | None = None,
    ) -> Future[Any]:
        """Run a call on some node."""
        self.check_open()
        try:
            call = PackedCall(self.inputs, fn, args, dict(kwargs))
        except SerializationError as error:
            failed: Future[Any] = Future(self, None, options)
            failed.settle(error)
            return failed
        future: Future[Any] = Future(self, call, options)
        future.keep = keep
        self._check_parts(call)
        with self._lock:
            self.submitted += 1
            # Dask forgets what nobody refers to; calls run all the same.
            self._unfinished.add(future)
            self._alive.add(future)
        try:
            self._send(future)
        except Exception as error:  # noqa: BLE001  (the future's)
            self._fail(future, error)
        except BaseException:
            self._forget(future)
            raise
        return future

    def _check_parts(self, call: PackedCall) -> None:
        """Raise ValueError for a future whose result is not in reach."""
        for part in call.parts:
            if isinstance(part, Future) and part.calls is not self:
                msg = "a future of another executor cannot be passed: pass its result()"
                raise ValueError(msg)

    def check_open(self) -> None:
        """Raise PoolClosed after shutdown, ClusterError without a scheduler."""
        if self._closed:
            msg = f"executor {self.name}: cannot schedule new futures after shutdown"
            raise PoolClosed(msg)
        if self.client.status != "running":
            msg = f"executor {self.name}: its scheduler is gone"
            raise ClusterError(msg)

    def width(self) -> int:
        """How many calls may run at once: the threads of all nodes."""
        with reaching(self.client):
            threads: Mapping[str, int] = self.client.nthreads()
        return max(1, sum(threads.values()))

    def add_feeder(self, feeder: Feeder) -> None:
        """Tell it before the end."""
        self.feeders.add(feeder)

    def stream(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        buffersize: int,
    ) -> ClusterStream:
        """Run a call that yields on some node."""
        from shmexec.cluster.streams import ClusterStream

        self.check_open()
        call = PackedCall(self.inputs, fn, args, dict(kwargs))
        remote = self.submit_actor(
            node.NodeStream, self.name, options, buffersize, call=call
        )
        return ClusterStream(self, remote, buffersize)

    def submit_actor(self, cls: type, *args: Any, call: PackedCall) -> DaskFuture[Any]:
        """Make a Dask actor of a call and what it needs."""
        parts = self.remote_parts(call)
        return self.client.submit(
            cls, *args, call.cargo, parts, key=self.new_key(call), actor=True
        )

    def remote_parts(self, call: PackedCall) -> list[DaskFuture[Any]]:
        """Where the parts of a call are on the cluster; sends what is not there."""
        return [self._remote_of(part) for part in call.parts]

    def pending(self) -> int:
        """Calls that have not ended."""
        return len(self._unfinished)

    def new_key(self, call: PackedCall) -> str:
        """A name for a task of Dask, which shows it as that of the function."""
        return f"{call.name}-{uuid.uuid4().hex}"

    # -- one call --------------------------------------------------------------------

    def _send(self, future: Future[Any]) -> None:
        call, options = future.call, future.call_options
        if call is None:
            return  # it was cancelled
        parts = self.remote_parts(call)
        key = self.new_key(call)
        future.times_sent += 1
        future.remote = remote = self.client.submit(
            node.run_call,
            self.name,
            key,
            options,
            call.cargo,
            parts,
            key=key,
            priority=options.priority,
            pure=False,
        )
        remote.add_done_callback(partial(self._landed, weakref.ref(future)))
        if future.cancelled():
            remote.cancel()

    def _remote_of(self, part: Part) -> DaskFuture[Any]:
        """Where a part is on the cluster; sends it if it is not there."""
        if not isinstance(part, Future):
            return part.remote()
        if part.cancelled():
            msg = "a future that was passed to a call was cancelled"
            raise CancelledError(msg)
        error = part.exception(0) if part.done() else None
        if error is not None:
            raise error
        if part.remote is None or part.remote.cancelled():
            self._send_again(part, part.remote)
        assert part.remote is not None
        return part.remote

    def _landed(self, of: weakref.ref[Future[Any]], remote: DaskFuture[Any]) -> None:
        """A call has ended on the cluster. In Dask's thread: nothing here waits."""
        future = of()
        if future is None or not future.is_at(remote):
            return  # it was sent again since
        status = remote.status
        if status == "finished":
            if future.land():
                self._settled(future)
        elif status == "error":
            self._fail(future, error_of(remote.exception(), future))
        elif not future.cancelled() and not future.done():
            self.help_out(self._recover, future, remote)

    def _settled(self, future: Future[Any]) -> None:
        with self._lock:
            if future.cancelled():
                self.cancelled += 1
            elif future.failed:
                self.failed += 1
            else:
                self.done += 1
        self._forget(future)
        if not future.unwatched:
            self.help_out(future.tell)

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._unfinished.discard(future)

    def help_out(self, fn: Callable[..., Any], *args: Any) -> None:
        """Have a thread do something that may wait."""
        try:
            self.helpers.submit(fn, *args)
        except RuntimeError:  # after shutdown
            fn(*args)

    def _recover(self, future: Future[Any], lost: DaskFuture[Any]) -> None:
        """The cluster has forgotten a call: its inputs were lost with a node."""
        try:
            self._send_again(future, lost)
        except Exception as error:  # noqa: BLE001  (the future's)
            self._fail(future, error)

    def _fail(self, future: Future[Any], error: BaseException) -> None:
        if future.settle(error):
            self._settled(future)

    def _send_again(self, future: Future[Any], lost: DaskFuture[Any] | None) -> None:
        """Send a call that is lost there, unless another thread has done so."""
        # Calls hold those of what they are given, and these hold none of theirs.
        with future.sending:
            if future.is_at(lost):
                self._check_hope(future)
                with self._lock:
                    self.sent_again += 1
                self._send(future)

    def _check_hope(self, future: Future[Any]) -> None:
        """Raise if a call is not to be sent again."""
        if self.client.status != "running":
            msg = f"the scheduler of {self.name} is gone: its calls are lost"
            raise ClusterError(msg)
        if future.times_sent >= SENT_AT_MOST:
            name = "a call" if future.call is None else future.call.name
            msg = (
                f"{name} was sent {future.times_sent} times, and each time a node died "
                "that had its input"
            )
            raise WorkerDied(msg)

    def fetch(self, future: Future[Any], deadline: Deadline) -> tuple[Any, Failed]:
        """The value of a call that has ended, or the exception if it was run again.

        Raises:
            TimeoutError: If it is not here in time.
        """
        while True:
            remote = future.remote
            assert remote is not None
            try:
                cargo = remote.result(deadline.remaining())
            except TimeoutError:
                raise
            except FutureCancelledError:
                try:
                    self._send_again(future, remote)
                except Exception as error:  # noqa: BLE001  (the future's)
                    return None, error
            except Exception as error:  # noqa: BLE001  (the future's)
                return None, error_of(error, future)
            else:
                with self._lock:
                    self.bytes_fetched += cargo.data.nbytes
                return cargo.open(), None

    def gather(self, remotes: Mapping[str, DaskFuture[Any]], what: str) -> list[Any]:
        """What came of tasks that may run on one node each.

        Dask lets a task whose node has left wait until that comes again, and does not
        say so: it is asked now and then.

        Args:
            remotes: The tasks, by the addresses of their nodes.
            what: They run, for messages.

        Raises:
            WorkerDied: If one of the nodes has left.
        """
        tasks = list(remotes.values())
        gathered = self.helpers.submit(self.client.gather, tasks)
        try:
            while not wait([gathered], ASK_EVERY).done:
                with reaching(self.client):
                    here = self.client.nthreads()
                gone = sorted(remotes.keys() - here)
                if gone:
                    msg = (
                        f"the node at {gone[0]} was lost while {what} ran on all nodes: "
                        "call it again for those that are left"
                    )
                    raise WorkerDied(msg)
        except BaseException:
            if self.client.status == "running":
                self.client.cancel(tasks)  # which ends the thread that gathers
            raise
        try:
            return list(gathered.result())
        except Exception as error:  # noqa: BLE001  (whatever Dask says)
            raise error_of(error) from None

    def cancel(self, future: Future[Any], *, running: bool) -> None:
        """A future was cancelled: let the cluster know."""
        remote = future.remote
        self._settled(future)
        if remote is not None:
            self.help_out(self._cancel, remote, running)

    def _cancel(self, remote: DaskFuture[Any], running: bool) -> None:
        if self.client.status != "running":
            return
        remote.cancel()
        if running:
            self.client.run(node.stop_call, self.name, remote.key, on_error="ignore")

    def _begin_helping(self) -> None:
        self._here.helps = True

    # -- the end ---------------------------------------------------------------------

    def ends_before(self) -> bool:
        """Whether the end waits for this thread, in which then nobody waits for the end.

        Callbacks run in such: in helpers, and those of actors' calls on the loop.
        """
        try:
            on_loop = asyncio.get_running_loop() is self.client.loop.asyncio_loop
        except RuntimeError:
            on_loop = False
        return on_loop or getattr(self._here, "helps", False)

    def close(self, *, cancel: bool) -> None:
        """Take no more calls."""
        with self._lock:
            self._closed = True
            left = list(self._unfinished)
        for feeder in list(self.feeders):
            feeder.feed_last(cancel=cancel)
        if cancel:
            for future in left:
                future.cancel()

    def finish(self, *, fetch: bool) -> None:
        """Wait for all calls; each ends on the cluster, or with the scheduler.

        Args:
            fetch: Get the results that somebody may still ask for.
        """
        with self._lock:
            left = list(self._unfinished)
        wait(left)
        del left
        with self._lock:
            alive = list(self._alive) if fetch else []
        for future in alive:
            future.bring()
        pumps = list(self.pumps)
        for pump in pumps:
            pump.close_stream(0)
        wait([pump.ended for pump in pumps])
        self.inputs.clear()
        self.helpers.shutdown(wait=True)


def error_of(error: BaseException, future: Future[Any] | None = None) -> BaseException:
    """What to raise for what Dask says a call failed with."""
    name = "a call" if future is None or future.call is None else future.call.name
    if isinstance(error, CallFailed):
        return error.error()
    if isinstance(error, KilledWorker):
        msg = (
            f"nodes died while they ran {name}, {error.allowed_failures + 1} times in "
            f"all, the last one {error.last_worker.address}: it may be what kills them"
        )
        return WorkerDied(msg)
    if isinstance(error, CancelledError):
        return error
    failure = ClusterError(f"{name} could not be run: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
