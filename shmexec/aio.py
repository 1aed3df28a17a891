"""Calls for ``asyncio``: awaited, and stopped when whoever awaits them is cancelled.

A pool does not belong to an event loop: any loop, in any thread, one after the other,
may use it. Who wakes a task that awaits a call: the pool's dispatcher, through the loop's
``call_soon_threadsafe``; it lives as long as the pool, and what breaks it fails all
futures.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import Future as BaseFuture
from functools import partial
from typing import TYPE_CHECKING, Any

from shmexec.errors import SharedMemoryFull
from shmexec.options import positive_int

if TYPE_CHECKING:
    from shmexec.runtime.futures import Future

Submit = Callable[..., "Future[Any]"]
"""Submits ``fn`` with its arguments; may block if not called under an event loop."""


async def submit(submit_call: Submit, /, *args: Any, **kwargs: Any) -> Future[Any]:
    """Submit a call; waits for room in shared memory without blocking the loop."""
    try:
        return submit_call(*args, **kwargs)
    except SharedMemoryFull as error:
        if error.needed > error.budget:
            raise
    return await asyncio.to_thread(submit_call, *args, **kwargs)


async def result_of(future: Future[Any]) -> Any:
    """A call's result; a cancelled task stops the call, also one that runs."""
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.cancel(running=True)
        raise


async def map_calls(
    submit_call: Submit,
    width: int,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...],
    *,
    buffersize: int | None,
    ordered: bool,
) -> AsyncIterator[Any]:
    """See :meth:`shmexec.Executor.amap`."""
    ahead = 2 * width if buffersize is None else positive_int("buffersize", buffersize)
    items = _zipped(iterables)
    pending: deque[Future[Any]] = deque()
    one_is_done = asyncio.Event()
    tell = partial(_tell, asyncio.get_running_loop(), one_is_done)
    try:
        more = True
        while more or pending:
            while more and len(pending) < ahead:
                try:
                    args = await anext(items)
                except StopAsyncIteration:
                    more = False
                    break
                pending.append(await submit(submit_call, fn, *args))
                if not ordered:
                    pending[-1].add_done_callback(tell)
            if not pending:
                break
            if not ordered:
                await _bring_done_to_front(pending, one_is_done)
            result = await asyncio.wrap_future(pending[0])
            pending.popleft()
            yield result
            del result
    finally:
        for future in pending:
            future.cancel(running=True)
        await items.aclose()  # type: ignore[attr-defined]


async def _bring_done_to_front(
    pending: deque[Future[Any]], one_is_done: asyncio.Event
) -> None:
    while True:
        one_is_done.clear()  # before the look: what is done since sets it again
        for i, future in enumerate(pending):
            if future.done():
                pending.rotate(-i)
                return
        await one_is_done.wait()


def _tell(
    loop: asyncio.AbstractEventLoop, event: asyncio.Event, _: BaseFuture[Any]
) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)


async def _zipped(
    iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...],
) -> AsyncIterator[tuple[Any, ...]]:
    """As ``zip``, of plain and asynchronous iterables alike."""
    sources = [
        aiter(each) if isinstance(each, AsyncIterable) else iter(each)
        for each in iterables
    ]
    while sources:
        items = []
        for source in sources:
            try:
                item = (
                    await anext(source)
                    if isinstance(source, AsyncIterator)
                    else next(source)
                )
            except (StopIteration, StopAsyncIteration):
                return
            items.append(item)
        yield tuple(items)
