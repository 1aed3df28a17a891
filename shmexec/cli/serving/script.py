"""The service that ``shmexec serve`` offers: one script, in a pool of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from shmexec import __version__
from shmexec.cli.output import CommandError
from shmexec.cli.serving.jsonrpc import INVALID_PARAMS, RpcError
from shmexec.cli.serving.service import about
from shmexec.errors import (
    PoolBroken,
    PoolClosed,
    UnknownFunction,
    WrongArguments,
)
from shmexec.executor import Executor
from shmexec.scripts import Script, read_source
from shmexec.worker.script import load as load_source

if TYPE_CHECKING:
    from concurrent.futures import Future

    from shmexec.cli.serving.service import Items
    from shmexec.runtime.pool import Pool

__all__ = ["ScriptService"]


class ScriptService:
    """See :class:`~shmexec.cli.serving.service.Service`.

    Args:
        path: The script.
        workers: Processes that load it.
        timeout: Seconds that a call may run, unless its request says otherwise.
        shutdown: Asks the server to end.
        figures: The server's part of ``stats``.
    """

    def __init__(
        self,
        path: str,
        *,
        workers: int,
        timeout: float | None,
        shutdown: Callable[[], None],
        figures: Callable[[], Mapping[str, int]],
    ) -> None:
        self._path = path
        self._figures = figures
        self.shutdown = shutdown
        try:
            source = read_source(path)
        except OSError as error:
            msg = f"cannot read {path}: {error.strerror or error}"
            raise CommandError(msg, code=1) from None
        # Loaded while a worker starts, not with its first call: a time-out is for calls
        # only, also for the first one of a worker that takes the place of another.
        self._executor = Executor(
            workers,
            initializer=load_source,
            initargs=(source,),
            timeout=timeout,
            # To this process's stderr, not by way of this process: if the client does
            # not read that, the call that prints has to wait, and nothing else.
            worker_output="inherit",
            name="shmexec-serve",
        )
        self._script: Script | None = None

    def load(self) -> None:
        """Load the script in every worker.

        Raises:
            CommandError: It cannot be loaded; the details are its traceback.
        """
        try:
            self._executor.broadcast(os.getpid)
            self._script = self._executor.script(self._path)
        except PoolBroken as error:
            reason, _, details = error.reasons[-1].partition("\nTraceback ")
            details = f"Traceback {details}" if details else ""
            msg = f"cannot load {os.path.basename(self._path)}: {reason}"
            raise CommandError(msg, code=1, details=details) from None
        except Exception as error:  # noqa: BLE001  (whatever the pool says, in one line)
            msg = f"cannot load {os.path.basename(self._path)}: {error}"
            raise CommandError(msg, code=1) from None

    def call(
        self,
        function: str,
        args: list[Any],
        kwargs: dict[str, Any],
        timeout: float | None,
    ) -> Future[Any]:
        """Run a function of the script."""
        if self._is_generator(function):
            msg = f"{function} is a generator: its items come by the method 'stream'"
            raise RpcError(INVALID_PARAMS, msg)
        future: Future[Any] = self._submit(function, args, kwargs, timeout=timeout)
        return future

    def stream(
        self,
        function: str,
        args: list[Any],
        kwargs: dict[str, Any],
        timeout: float | None,
        buffersize: int,
    ) -> Items:
        """Run a generator of the script."""
        if not self._is_generator(function):
            msg = f"{function} is no generator: its result comes by the method 'call'"
            raise RpcError(INVALID_PARAMS, msg)
        items: Items = self._submit(
            function, args, kwargs, timeout=timeout, buffersize=buffersize
        )
        return items

    def _is_generator(self, function: str) -> bool:
        info = self._loaded.functions().get(function)
        # Of one that is not there, more is said when it is called.
        return info is not None and "generator" in info.kind

    def _submit(
        self, function: str, args: list[Any], kwargs: dict[str, Any], **settings: Any
    ) -> Any:
        try:
            script = self._loaded.options(**settings)
        except ValueError as error:
            raise RpcError(INVALID_PARAMS, f"params.{error}") from None
        try:
            return script[function](*args, **kwargs)
        except (UnknownFunction, WrongArguments) as error:
            raise RpcError(INVALID_PARAMS, str(error), about(error)) from None

    @property
    def _loaded(self) -> Script:
        assert self._script is not None  # loaded before the first client comes
        return self._script

    def functions(self) -> list[dict[str, Any]]:
        """What can be called, in the order in which the script defines it."""
        return [
            {
                "name": info.name,
                "kind": info.kind,
                "signature": None if info.signature is None else str(info.signature),
                "doc": info.doc,
            }
            for info in self._loaded.functions().values()
        ]

    def health(self) -> dict[str, Any]:
        """Whether calls can be taken: ``ok``, or why they cannot."""
        stats = self._executor.stats()
        status = "ok"
        try:
            cast("Pool", self._executor._pool).check_open()  # noqa: SLF001
        except PoolBroken:
            status = "broken"
        except PoolClosed:
            status = "closed"
        return {
            "status": status,
            "version": __version__,
            "pid": os.getpid(),
            "max_workers": stats.max_workers,
            "workers": len(stats.workers),
            "running": stats.running,
            "pending": stats.pending,
        }

    def stats(self) -> dict[str, Any]:
        """The pool's figures, and the server's."""
        return {"pool": asdict(self._executor.stats()), **self._figures()}

    def close(self) -> None:
        """End the workers. No call runs any more, or none is to go on."""
        # Closed first, so that no worker is started in place of those that end here.
        self._executor.shutdown(wait=False, cancel_futures=True)
        for worker in self._executor.stats().workers:
            if worker.pid is not None and worker.state != "idle":
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        self._executor.shutdown(wait=True, cancel_futures=True)
