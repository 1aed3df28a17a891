"""``shmexec.load``: a script that brings its own pool."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from shmexec.closing import Closing
from shmexec.executor import Executor
from shmexec.figures import Stats
from shmexec.options import WORKERS_AT_MOST, default_workers, positive_int
from shmexec.scripts import Script, checked_path, read_source
from shmexec.worker.script import begin

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from shmexec.signatures import ExecutorSettings

__all__ = ["LoadedScript", "load"]


class LoadedScript(Closing, Script):
    """A script and the pool it runs in; made by :func:`shmexec.load`.

    To be closed, or used as a context manager.

    Example:
        >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
        >>> with shmexec.load("model.py", workers=1) as model:
        ...     model.double(21).result()
        42
    """

    def __init__(self, executor: Executor, script: Script) -> None:
        self._executor = executor
        super().__init__(script._file, script._options)  # noqa: SLF001

    def stats(self) -> Stats:
        """Figures about its pool, see :meth:`shmexec.Executor.stats`.

        Example:
            >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
            >>> with shmexec.load("model.py", workers=1) as model:
            ...     model.stats().max_workers
            1
        """
        return self._executor.stats()

    def _repr_html_(self) -> str:
        """For notebooks: the pool it runs in."""
        return self._executor._repr_html_()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As :meth:`shmexec.Executor.shutdown`.

        Example:
            >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
            >>> model = shmexec.load("model.py", workers=1)
            >>> future = model.double(21)
            >>> model.shutdown()
            >>> future.result()
            42
        """
        self._executor.shutdown(wait, cancel_futures=cancel_futures)

    def close(self) -> None:
        """Take no more calls; returns when those submitted are done.

        Example:
            >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
            >>> model = shmexec.load("model.py", workers=1)
            >>> model.close()
            >>> model.double(21)
            Traceback (most recent call last):
            ...
            shmexec.errors.PoolClosed: ...
        """
        self.shutdown()


def load(
    path: str | os.PathLike[str],
    workers: int | None = None,
    *,
    cache: str | int | os.PathLike[str] | None = None,
    autoreload: bool = False,
    **settings: Unpack[ExecutorSettings],
) -> LoadedScript:
    """Load a Python file once, and call its functions; see :class:`shmexec.Script`.

    A worker loads it as it starts: a ``timeout`` is for calls alone.

    Args:
        path: The file; its folder is put on ``sys.path`` in the workers.
        workers: Processes that load it. Default: ``SHMEXEC_WORKERS``, else one, since a
            model fills memory.
        cache: See :meth:`shmexec.Executor.script`.
        autoreload: See :meth:`shmexec.Executor.script`.
        **settings: Those of :class:`shmexec.Executor`, such as ``timeout``.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: If there is no such ``.py``
            file.
        Exception: Whatever the script raises while it is loaded.

    Example:
        >>> from pathlib import Path
        >>> import tempfile, shmexec
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.py")
        ...     _ = path.write_text("def double(x): return 2 * x")
        ...     with shmexec.load(path) as model:
        ...         model.double(21).result()
        42
    """
    number = (
        default_workers(1)
        if workers is None
        else positive_int("workers", workers, WORKERS_AT_MOST)
    )
    others: dict[str, Any] = {**settings}
    initializer = others.pop("initializer", None)
    if initializer is not None and not callable(initializer):
        msg = f"initializer must be callable, not {initializer!r}"
        raise TypeError(msg)
    # While a worker starts, not in its first call: else a time-out shorter than the
    # loading would strike in each worker that takes the place of another.
    source = read_source(checked_path(path))
    first = (source, initializer, tuple(others.pop("initargs", ())))
    executor = Executor(number, initializer=begin, initargs=first, **others)
    try:
        script = executor.script(path, cache=cache, autoreload=autoreload)
        return LoadedScript(executor, script)
    except BaseException:
        executor.shutdown(cancel_futures=True)
        raise
