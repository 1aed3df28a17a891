"""``map`` and ``map_batches``: many calls from one.

Written against a :class:`~shmexec.runtime.backend.Backend`, which a pool is, and a pool
without processes too.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Future as BaseFuture,
    wait,
)
from typing import Any

import numpy as np

from shmexec.deadline import Deadline
from shmexec.memory.files import FileArray, in_file
from shmexec.memory.views import loan_of
from shmexec.options import CallOptions, positive_int
from shmexec.runtime.backend import Backend, placed_rows
from shmexec.runtime.calls import rebuild_error
from shmexec.runtime.futures import Future
from shmexec.wire.messages import Mode
from shmexec.worker.tasks import Blank, check_like, run_batch, run_chunk

PROBE_FROM = 256
"""Items of a map from which it is worth finding out how long one takes."""

PROBE_SECONDS = 0.05
"""What finding out may take; items slower than that are not put into chunks."""

CHUNK_SECONDS = 0.002
"""A chunk should take about this long, so that one failure or one slow item hits few."""

CHUNK_AT_MOST = 16384

PROBE_ITEMS = 16
"""Items that are timed together, in a worker."""

ITEM_SECONDS = 2e-7
"""What an item takes at least, with its way there and back."""


# -- map -----------------------------------------------------------------------------


def map_calls(
    backend: Backend,
    options: CallOptions,
    fn: Callable[..., Any],
    iterables: Sequence[Iterable[Any]],
    *,
    timeout: float | None,
    chunksize: int | None,
    buffersize: int | None,
    ordered: bool,
    progress: bool,
) -> Iterator[Any]:
    """See :meth:`shmexec.Executor.map`."""
    deadline = Deadline(timeout)
    if chunksize is not None:
        chunksize = positive_int("chunksize", chunksize)
    if buffersize is not None:
        buffersize = positive_int("buffersize", buffersize)
    star = len(iterables) != 1
    items = zip(*iterables, strict=False) if star else iter(iterables[0])
    run = _Run(backend, options, fn, star=star)
    total = None
    left: Iterator[Any] = iter(())
    try:
        if buffersize is None:
            known = list(items)
            total = len(known)
            chunksize = chunksize or run.choose_chunksize(known)
            # Eager: all is submitted before the first result is asked for.
            run.submit_all(known, chunksize)
        else:
            left = items
            run.fill(left, chunksize or 1, buffersize)
    except KeyboardInterrupt as interrupt:
        run.cancel(running=True)
        raise interrupt.with_traceback(None) from None
    except BaseException:
        run.cancel()  # none of them stays behind
        raise
    results = run.results(left, chunksize or 1, buffersize, deadline, ordered=ordered)
    return _with_progress(results, total) if progress else results


class _Run:
    """One map: its pending futures, each of one item or of a chunk."""

    def __init__(
        self,
        backend: Backend,
        options: CallOptions,
        fn: Callable[..., Any],
        *,
        star: bool,
    ) -> None:
        self._backend = backend
        self._options = options
        self._fn = fn
        self._star = star  # items are tuples of arguments
        self._pending: deque[tuple[BaseFuture[Any], int]] = deque()
        self._in_chunks: set[BaseFuture[Any]] = set()

    def choose_chunksize(self, items: list[Any]) -> int:
        """Items per call: one, unless a probe shows that they are tiny.

        The probed items are taken off the list: they have run.
        """
        options, width = self._options, self._backend.width()
        if len(items) < PROBE_FROM or options.timeout or options.retries:
            return 1
        each = 0.0
        for count in 1, 1, PROBE_ITEMS:
            probe, items[:count] = items[:count], []
            self._submit(probe, PROBE_ITEMS)
            # The first one may have to wait for a pool that has yet to start.
            seconds = self._seconds_of_last(PROBE_SECONDS if each else 1.0)
            if seconds is None:
                return 1
            each = seconds / count
            if each > CHUNK_SECONDS:
                return 1
        fits = int(CHUNK_SECONDS / max(each, ITEM_SECONDS))
        shares = -(-len(items) // (4 * width))
        return max(1, min(fits, shares, CHUNK_AT_MOST))

    def _seconds_of_last(self, timeout: float) -> float | None:
        """What the chunk submitted last took in the worker; None if it failed or takes long."""
        future = self._pending[-1][0]
        try:
            if future.exception(timeout) is None:
                seconds: float = future.result()[2]
                return seconds
        except (TimeoutError, CancelledError):
            pass
        return None

    def submit_all(self, items: list[Any], chunksize: int) -> None:
        """Submit items in chunks."""
        for start in range(0, len(items), chunksize):
            self._submit(items[start : start + chunksize], chunksize)

    def _submit(self, chunk: list[Any], chunksize: int) -> None:
        submit, options = self._backend.submit, self._options
        if chunksize == 1:
            future = submit(
                self._fn, chunk[0] if self._star else (chunk[0],), {}, options
            )
        else:
            future = submit(run_chunk, (self._fn, chunk, self._star), {}, options)
            self._in_chunks.add(future)
        self._pending.append((future, len(chunk)))

    def fill(self, items: Iterator[Any], chunksize: int, buffersize: int) -> None:
        """Read ahead, and no further than ``buffersize`` unfinished items."""
        ahead = sum(count for _, count in self._pending)
        while ahead < buffersize:
            chunk = list(itertools.islice(items, min(chunksize, buffersize - ahead)))
            if not chunk:
                return
            self._submit(chunk, chunksize)
            ahead += len(chunk)

    def results(
        self,
        items: Iterator[Any],
        chunksize: int,
        buffersize: int | None,
        deadline: Deadline,
        *,
        ordered: bool,
    ) -> Iterator[Any]:
        """Yield results; leaving early cancels what has not begun, Ctrl-C all of it."""
        parts = self._parts(items, chunksize, buffersize, deadline, ordered=ordered)
        try:
            yield from itertools.chain.from_iterable(parts)
        except KeyboardInterrupt as interrupt:
            self.cancel(running=True)
            # The frames below this one tell the user nothing.
            raise interrupt.with_traceback(None) from None
        finally:
            parts.close()
            self.cancel()

    def _parts(
        self,
        items: Iterator[Any],
        chunksize: int,
        buffersize: int | None,
        deadline: Deadline,
        *,
        ordered: bool,
    ) -> Generator[Iterator[Any], None, None]:
        """Yield iterators over the results of one chunk or call."""
        while self._pending:
            # Nothing here refers to a result once it was yielded: it may be large.
            if self._next_is_chunk(deadline, ordered=ordered):
                results, error, _ = self._take(deadline)
                yield _drain(results)
                if error is not None:
                    raise rebuild_error(error)
            else:
                yield _drain([self._take(deadline)])
            if buffersize is not None:
                self.fill(items, chunksize, buffersize)

    def _next_is_chunk(self, deadline: Deadline, *, ordered: bool) -> bool:
        """Bring the future to be yielded next to the front; whether it is a chunk."""
        if not ordered:
            futures = [future for future, _ in self._pending]
            done, _ = wait(futures, deadline.remaining(), FIRST_COMPLETED)
            if not done:
                raise TimeoutError
            index = next(i for i, future in enumerate(futures) if future in done)
            chosen = self._pending[index]
            del self._pending[index]
            self._pending.appendleft(chosen)
        return self._pending[0][0] in self._in_chunks

    def _take(self, deadline: Deadline) -> Any:
        """The result of the first future, which is taken off the list."""
        future = self._pending[0][0]
        try:
            result = future.result(deadline.remaining())
            self._pending.popleft()
            return result
        finally:
            # An exception's traceback has this frame, and must not keep the future.
            self._in_chunks.discard(future)
            future.cancel()
            del future

    def cancel(self, *, running: bool = False) -> None:
        """Cancel what has not begun; stop what runs, too, if that is wanted."""
        # What waits first: else it would begin where something was stopped.
        for future, _ in reversed(self._pending):
            future.cancel()
        if running:
            for future, _ in self._pending:
                stop(future)
        self._pending.clear()


def stop(future: BaseFuture[Any]) -> bool:
    """Cancel a call, also one that runs, where there is a way; whether that helped."""
    if isinstance(future, Future):
        return future.cancel(running=True)
    return future.cancel()


def _drain(results: list[Any]) -> Iterator[Any]:
    """The items, none of which is referred to any more once it was taken. All in C."""
    results.reverse()
    return map(list.pop, itertools.repeat(results, len(results)))


def _with_progress(results: Iterator[Any], total: int | None) -> Iterator[Any]:
    bar = progress_bar(total, "it")
    try:
        for result in results:
            bar.update(1)
            yield result
    finally:
        bar.close()


def progress_bar(total: int | None, unit: str) -> Any:
    """A tqdm bar.

    Raises:
        ImportError: If tqdm is not installed, with what to install.
    """
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        msg = "progress=True needs tqdm: pip install 'shmexec[progress]'"
        raise ImportError(msg) from error
    return tqdm(total=total, unit=unit)


# -- map_batches -----------------------------------------------------------------------


def map_batches(
    backend: Backend,
    options: CallOptions,
    fn: Callable[..., Any],
    arrays: Sequence[Any],
    *,
    batch_size: int | None,
    out: Any,
    progress: Any,
) -> np.ndarray:
    """See :meth:`shmexec.Executor.map_batches`."""
    inputs = [np.asanyarray(array) for array in arrays]
    rows = _common_length(inputs)
    if batch_size is None:
        size = max(1, -(-rows // (4 * backend.width())))
    else:
        size = positive_int("batch_size", batch_size)
    target = _Target(backend, fn, inputs, out)
    bar = progress_bar(rows, "row") if progress is True else None
    report = bar.update if bar is not None else progress if callable(progress) else None
    sources: list[_Input] = []
    try:
        sources.extend(_Input(backend, array) for array in inputs)
        _Batches(backend, options, fn, sources, target, size, rows).run(report)
        return target.finish()
    except KeyboardInterrupt as interrupt:
        target.discard()
        raise interrupt.with_traceback(None) from None
    except BaseException:
        target.discard()
        raise
    finally:
        for source in sources:
            source.close()
        if bar is not None:
            bar.close()


def _common_length(inputs: list[np.ndarray]) -> int:
    for index, array in enumerate(inputs):
        if array.ndim == 0:
            msg = f"array {index} has no axis to split: it is a scalar"
            raise ValueError(msg)
    lengths = [array.shape[0] for array in inputs]
    if len(set(lengths)) > 1:
        msg = f"the arrays have different lengths: {', '.join(map(str, lengths))}"
        raise ValueError(msg)
    return int(lengths[0])


class _Input:
    """An input array, put where workers can see it, once."""

    def __init__(self, backend: Backend, array: np.ndarray) -> None:
        self._backend = backend
        self._block: Any = None
        self._array = array
        plain = type(array) in {np.ndarray, np.memmap} and not array.dtype.hasobject
        loan = loan_of(array)
        if loan is not None and loan.mode == "r+":
            # Shared as it is; but batches are promised to be read-only.
            self._array = array = array.view()
            array.flags.writeable = False
        shared = loan is not None and loan.mode and not array.flags.writeable
        if plain and array.nbytes and not shared and in_file(array) is None:
            self._block = backend.blocks.place(array.nbytes)
        if self._block is not None:
            data = backend.blocks.bytes_of(self._block)
            np.copyto(np.ndarray(array.shape, array.dtype, data.data), array)
            backend.blocks.count_copied(array.nbytes)

    def rows(self, start: int, stop: int) -> Any:
        """What to send for these rows; of a shared array, they go by reference."""
        if self._block is not None:
            return placed_rows(self._block, self._array, start, stop, Mode.SHARED)
        return self._array[start:stop]

    def close(self) -> None:
        """Let the block go; workers that still look at it keep it."""
        block, self._block = self._block, None
        if block is not None:
            self._backend.blocks.give_back(block)


def takes_out(fn: Callable[..., Any], inputs: int) -> bool:
    """Whether a function of so many arrays can be told where its result goes.

    A ufunc can, and what has a parameter named ``out`` that is free.
    """
    if isinstance(fn, np.ufunc):
        return fn.nout == 1 and fn.nin == inputs
    if isinstance(fn, functools.partial) and "out" in fn.keywords:
        return False
    try:
        signature = inspect.signature(fn)
        signature.bind(*range(inputs), out=None)
    except (TypeError, ValueError):
        return False
    return "out" in signature.parameters


def _needs_out(fn: Callable[..., Any]) -> bool:
    if isinstance(fn, np.ufunc):
        return False
    return inspect.signature(fn).parameters["out"].default is inspect.Parameter.empty


class _Target:
    """The output: decided when the first batch has told its shape and dtype.

    Where the user gave an array and the function takes ``out=``, it is decided at once.

    Attributes:
        passes_out: Whether the function is called with ``out=``.
    """

    def __init__(
        self,
        backend: Backend,
        fn: Callable[..., Any],
        inputs: list[np.ndarray],
        out: Any,
    ) -> None:
        self._backend = backend
        self._inputs = inputs
        self._rows = len(inputs[0])
        self._out = out
        self._block: Any = None
        self._file: FileArray | None = None
        self.array: np.ndarray | None = None
        self.passes_out = takes_out(fn, len(inputs))
        if isinstance(out, np.ndarray):
            self._check(out)
            if self.passes_out:
                _check_ufunc(fn, inputs, out)
                self._use(out)
        elif out is not None and not callable(out):
            msg = f"out must be an array, a callable or None, not {type(out).__name__}"
            raise TypeError(msg)
        elif self.passes_out and _needs_out(fn):
            msg = (
                "the function must be given out=, so the output must be known before "
                "the first batch: pass an array as out= to map_batches, too"
            )
            raise TypeError(msg)

    def _check(self, out: np.ndarray) -> None:
        """Raise ValueError if results cannot be put there."""
        if out.ndim == 0 or out.shape[0] != self._rows:
            msg = f"out has shape {out.shape}, but there are {self._rows} rows"
            raise ValueError(msg)
        if not out.flags.writeable:
            msg = "out is read-only"
            raise ValueError(msg)
        for index, array in enumerate(self._inputs):
            if _overlap(out, array):
                msg = (
                    f"out overlaps array {index}: batches that are done would change "
                    "those that are not. Give it memory of its own"
                )
                raise ValueError(msg)

    def _use(self, out: np.ndarray) -> None:
        self.array = out
        if self._backend.blocks.files:
            self._file = in_file(out, ("r+", "w+"))

    def decide(self, first: np.ndarray) -> None:
        """Make the array that batches like this one go into."""
        shape, dtype = (self._rows, *first.shape[1:]), first.dtype
        out = self._out
        if callable(out):
            out = out(shape, dtype)
            self._check(out)
        if out is not None:
            if out.shape != shape or out.dtype != dtype:
                msg = (
                    f"out is {out.dtype} of shape {out.shape}, but the function gives "
                    f"{dtype} of shape {shape}"
                )
                raise ValueError(msg)
            self._use(out)
            return
        nbytes = dtype.itemsize * math.prod(shape)
        if nbytes and not dtype.hasobject:
            self._block = self._backend.blocks.place(nbytes)
        if self._block is None:
            self.array = np.empty(shape, dtype)
        else:
            data = self._backend.blocks.bytes_of(self._block)
            self.array = np.ndarray(shape, dtype, data.data)

    def rows(self, start: int, stop: int) -> Any:
        """What to send so that a worker writes these rows; None: it sends them back."""
        if self.array is None:
            return None
        if self._backend.blocks.can_write(self.array):
            return self.array[start:stop]
        if self._file is not None:
            return self._file.rows(start, stop)
        if self._block is not None:
            return placed_rows(self._block, self.array, start, stop, Mode.WRITABLE)
        if self.passes_out:
            return Blank((stop - start, *self.array.shape[1:]), self.array.dtype)
        return None

    def write(self, start: int, stop: int, result: np.ndarray) -> None:
        """Put a batch that came back into its place."""
        assert self.array is not None
        place = self.array[start:stop]
        check_like(result, place)
        place[...] = result

    def finish(self) -> np.ndarray:
        """The array, now the caller's."""
        assert self.array is not None
        if self._block is None:
            return self.array
        shape, dtype = self.array.shape, self.array.dtype
        block, self._block = self._block, None
        return np.ndarray(shape, dtype, self._backend.blocks.keep(block))

    def discard(self) -> None:
        """Something failed: give the memory back."""
        block, self._block = self._block, None
        self.array = None
        if block is not None:
            self._backend.blocks.give_back(block)


def _check_ufunc(
    fn: Callable[..., Any], inputs: list[np.ndarray], out: np.ndarray
) -> None:
    """Raise ValueError if a ufunc cannot write there: no rows of it tell."""
    if not isinstance(fn, np.ufunc):
        return
    try:
        fn(*(array[:0] for array in inputs), out=out[:0])
    except (TypeError, ValueError) as error:
        msg = f"out does not take what {fn.__name__} gives: {error}"
        raise ValueError(msg) from error


def _overlap(out: np.ndarray, array: np.ndarray) -> bool:
    """Whether they have bytes in common, in memory or in a file; when in doubt, yes."""
    file, other = in_file(out, ("r+", "w+")), in_file(array)
    if file is not None and other is not None and file.overlaps(other):
        return True
    bound: Any = 10_000  # steps; an exact answer may take for ever
    try:
        return np.shares_memory(out, array, max_work=bound)
    except np.exceptions.TooHardError:
        return True


class _Batches:
    """One ``map_batches``: which batches are under way."""

    def __init__(
        self,
        backend: Backend,
        options: CallOptions,
        fn: Callable[..., Any],
        sources: list[_Input],
        target: _Target,
        size: int,
        rows: int,
    ) -> None:
        self._backend = backend
        self._options = options
        self._fn = fn
        self._sources = sources
        self._target = target
        starts = range(0, rows, size) if rows else range(1)
        self._todo = deque(
            (index, start, min(start + size, rows))
            for index, start in enumerate(starts)
        )
        self._pending: deque[tuple[int, int, int, BaseFuture[Any]]] = deque()

    def run(self, report: Callable[[int], object] | None) -> None:
        """Run all batches; the first failure cancels the rest."""
        width = self._backend.width()
        try:
            # The first ones tell the shape of the output, and come back as results.
            self._start(width)
            while self._pending:
                # Stays in the list until it is done: an interrupt must cancel it too.
                index, start, stop, future = self._pending[0]
                try:
                    result = future.result()
                    if self._target.array is None:
                        self._target.decide(result)
                    if result is not None:
                        self._target.write(start, stop, result)
                except Exception as error:
                    error.add_note(f"batch {index}, rows {start}:{stop}")
                    raise
                self._pending.popleft()
                del future, result
                if report is not None:
                    report(stop - start)
                self._start(3 * width)
        finally:
            for *_, future in self._pending:
                future.cancel()
            self._settle()

    def _start(self, at_most: int) -> None:
        while self._todo and len(self._pending) < at_most:
            index, start, stop = self._todo.popleft()
            parts = tuple(source.rows(start, stop) for source in self._sources)
            target = self._target.rows(start, stop)
            future = self._backend.submit(
                run_batch,
                (self._fn, parts, stop - start, target, self._target.passes_out),
                {},
                self._options,
            )
            self._pending.append((index, start, stop, future))

    def _settle(self) -> None:
        """After a failure: nobody shall write into the output any more."""
        running = [future for *_, future in self._pending if not future.cancelled()]
        stopped = [
            future
            for future in running
            if isinstance(future, Future) and future.cancel(running=True)
        ]
        # Each ends when its worker has replied, or is gone: it is killed in 0.1 s.
        wait(stopped)
        self._pending.clear()
