"""What :meth:`shmexec.Executor.profile` returns."""

from __future__ import annotations

import html
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from shmexec.deadline import now
from shmexec.figures import CallRecord, Stats
from shmexec.options import Options, cpu_count, positive_int
from shmexec.profiling.summary import Summary, seconds, summarize
from shmexec.profiling.table import Facts, PoolFacts, Table, make_table
from shmexec.runtime.tape import CALLS_AT_MOST, Outcome, Tape

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Profile"]


class _Pool(Protocol):
    def start_recording(self, tape: Tape) -> None: ...

    def stats(self) -> Stats: ...


class _Owner(Protocol):
    """The executor."""

    _options: Options
    _tapes: list[Tape]

    def _pools(self) -> Sequence[_Pool]: ...


class Profile:
    """The calls of an executor between two moments; made by :meth:`Executor.profile`.

    Recording begins when the ``with`` block is entered and ends with it. What was
    recorded can be looked at meanwhile, and afterwards for as long as the profile lives,
    also when the executor is shut down; the executor is not kept alive by it.

    A call that is not done when recording ends is in it as ``running`` or ``pending``.

    Example:
        >>> import shmexec
        >>> with shmexec.Executor(1) as ex, ex.profile() as p:
        ...     ex.submit(pow, 2, 10).result()
        1024
        >>> len(p)
        1
        >>> p.calls[0].queued <= p.calls[0].began <= p.calls[0].replied
        True
    """

    def __init__(self, owner: _Owner, max_calls: int) -> None:
        size = positive_int("max_calls", max_calls, CALLS_AT_MOST)
        self._owner: _Owner | None = owner
        self._options = owner._options  # noqa: SLF001
        self._tape = Tape(size)
        self._lock = threading.Lock()  # of the two moments
        self._start: float | None = None
        self._end: float | None = None
        self._pools: dict[str, PoolFacts] = {}
        self._over = False
        self._table: Table | None = None

    # -- recording ---------------------------------------------------------------------

    def __enter__(self) -> Self:
        with self._lock:
            owner = self._owner
            if self._start is not None or owner is None:
                msg = "a profile records once: ask the executor for another one"
                raise RuntimeError(msg)
            self._start = now()
        # In this order, and an actor that is made the other way round.
        owner._tapes.append(self._tape)  # noqa: SLF001
        try:
            for pool in owner._pools():  # noqa: SLF001
                pool.start_recording(self._tape)
            self._look(owner)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            owner, self._owner = self._owner, None
        if owner is None:
            return
        try:
            self._end = now()
            self._look(owner)
        finally:
            if self._tape in owner._tapes:  # noqa: SLF001
                owner._tapes.remove(self._tape)  # noqa: SLF001
            self._tape.stop()
            self._over = True

    def _look(self, owner: _Owner) -> None:
        """Note which pools there are, and their workers."""
        for pool in owner._pools():  # noqa: SLF001
            stats = pool.stats()
            up = sum(worker.state != "starting" for worker in stats.workers)
            known = self._pools.get(stats.name)
            first = up if known is None and self._end is None else 0
            self._pools[stats.name] = PoolFacts(
                stats.name,
                stats.max_workers,
                max(up, 0 if known is None else known.workers),
                first if known is None else known.up,
            )

    # -- what was recorded ---------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """How long it recorded; so far, if it does still.

        Example:
            >>> with ex.profile() as p:
            ...     _ = ex.submit(abs, -1).result()
            >>> p.seconds > 0
            True
        """
        if self._start is None:
            return 0.0
        return (now() if self._end is None else self._end) - self._start

    def __len__(self) -> int:
        """Calls that were recorded, also those that are not kept any more."""
        self._tape.flush()
        return self._tape.count

    @property
    def table(self) -> Table:
        """The calls as columns, for who computes with them: NumPy arrays.

        Example:
            >>> with ex.profile() as p:
            ...     _ = ex.submit(abs, -1).result()
            >>> len(p.table)
            1
        """
        if self._table is not None:
            return self._table
        self._tape.flush()
        over = self._over  # before the tape is read: nothing comes after that
        options = self._options
        facts = Facts(
            self.seconds,
            tuple(self._pools.values()),
            options.threads_per_worker,
            cpu_count(),
            _is_native(options),
        )
        table = make_table(self._tape.read(), facts, self._start or 0.0)
        if over:
            self._table = table
        return table

    @property
    def calls(self) -> tuple[CallRecord, ...]:
        """The calls, in the order in which they were submitted.

        Example:
            >>> with ex.profile() as p:
            ...     _ = ex.submit(abs, -1).result()
            >>> p.calls[0].name, p.calls[0].outcome
            ('abs', 'done')
        """
        table = self.table
        return tuple(_record(table, i) for i in range(len(table)))

    def summary(self) -> Summary:
        """Where the time went, and what to change; ``print`` it.

        Example:
            >>> import shmexec
            >>> with shmexec.Executor(1) as ex, ex.profile() as p:
            ...     _ = list(ex.map(abs, range(10), chunksize=1))
            >>> p.summary().outcomes["done"]
            10
        """
        from shmexec.profiling.advice import advise

        table = self.table
        found = summarize(table, ())
        return replace(found, advice=advise(table, found))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw a line for each worker: when it ran which function.

        Needs matplotlib: ``pip install 'shmexec[plot]'``.

        Args:
            ax: Where to. Default: a new figure.

        Returns:
            The axes; ``ax.figure.savefig("profile.png")`` keeps it.

        Raises:
            ImportError: Without matplotlib.

        Example:
            >>> import shmexec
            >>> from matplotlib.figure import Figure
            >>> with shmexec.Executor(1) as ex, ex.profile() as p:
            ...     _ = list(ex.map(abs, range(10), chunksize=1))
            >>> ax = p.plot(Figure().subplots())
            >>> [label.get_text() for label in ax.get_yticklabels()]
            ['worker 1']
        """
        from shmexec.profiling.timeline import draw

        return draw(self.table, ax)

    def to_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write a trace that https://ui.perfetto.dev and ``chrome://tracing`` open.

        A row for each worker, and one for calls that wait; with all that was recorded of
        a call beside it. The file appears when it is whole.

        Args:
            path: Where to; a file that is there is replaced.

        Raises:
            OSError: If it cannot be written.

        Example:
            >>> import json, tempfile, shmexec
            >>> from pathlib import Path
            >>> with shmexec.Executor(1) as ex, ex.profile() as p:
            ...     _ = ex.submit(abs, -1).result()
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = Path(folder, "trace.json")
            ...     p.to_chrome_trace(path)
            ...     events = json.loads(path.read_text())["traceEvents"]
            >>> [event["name"] for event in events if event["ph"] == "X"]
            ['abs']
        """
        from shmexec.profiling.chrome import write

        write(self.table, Path(path))

    def to_frame(self) -> pd.DataFrame:
        """The calls as a pandas DataFrame, a column for each field of a call.

        Needs pandas. See :class:`shmexec.CallRecord` for the columns.

        Raises:
            ImportError: Without pandas.

        Example:
            >>> import shmexec
            >>> with shmexec.Executor(1) as ex, ex.profile() as p:
            ...     _ = list(ex.map(abs, range(10), chunksize=1))
            >>> p.to_frame().groupby("name").size().to_dict()
            {'abs': 10}
        """
        try:
            import pandas as pd
        except ImportError as error:
            msg = "to_frame() needs pandas: pip install pandas"
            raise ImportError(msg) from error
        columns = CallRecord.__slots__
        return pd.DataFrame(
            [[getattr(call, name) for name in columns] for call in self.calls],
            columns=list(columns),
        )

    def __repr__(self) -> str:
        state = "not begun" if self._start is None else "recording"
        state = state if self._end is None else "over"
        return (
            f"<shmexec.Profile of {self._options.name!r}, {state}: {len(self):,} calls "
            f"in {seconds(self.seconds)}>"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self.summary()))}</pre>"


def _is_native(options: Options) -> bool:
    from shmexec.memory import native

    return options.native and native.is_built()


def _record(table: Table, index: int) -> CallRecord:
    worker = int(table.worker[index])
    who = table.workers[worker] if worker >= 0 else None
    error = int(table.error[index])
    return CallRecord(
        call=int(table.call[index]),
        name=table.names[table.name[index]],
        outcome=Outcome(table.outcome[index]).text,
        error=table.errors[error] if error >= 0 else "",
        pool=who.pool if who is not None else "",
        worker=who.number if who is not None else None,
        pid=who.pid if who is not None else None,
        attempts=int(table.attempts[index]),
        packed=bool(table.packed[index]),
        queued=float(table.queued[index]),
        sent=_time(table.sent, index),
        began=_time(table.began, index),
        ended=_time(table.ended, index),
        replied=_time(table.replied, index),
        packing=float(table.packing[index]),
        placing=float(table.placing[index]),
        copied_in=int(table.copied_in[index]),
        by_reference_in=int(table.passed_in[index]),
        copied_again=int(table.again[index]),
        copied_out=int(table.copied_out[index]),
        by_reference_out=int(table.passed_out[index]),
    )


def _time(column: np.ndarray, index: int) -> float | None:
    value = float(column[index])
    return None if np.isnan(value) else value
