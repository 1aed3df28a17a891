"""The one event loop of this process, on which coroutines of calls run.

It is made by the first call that needs it and lasts as long as the process: what a call
leaves running on it goes on while later calls await, and while the worker waits for its
next message.
"""

from __future__ import annotations

import sys
import threading
from types import CoroutineType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine


class _Own(threading.local):
    """A loop for each thread: ``in_process=True`` runs calls in the program's own."""

    loop: asyncio.AbstractEventLoop | None = None


_own = _Own()

on_made: Callable[[], object] | None = None
"""Called when the main thread's loop is made: of a worker's, its calls run there."""


def awaited(result: Any) -> Any:
    """What a call returned; if that is a coroutine, what it returns."""
    if type(result) is not CoroutineType:
        return result
    return run(result)


def own() -> asyncio.AbstractEventLoop:
    """This thread's loop, made if need be."""
    import asyncio

    if _own.loop is None or _own.loop.is_closed():
        _own.loop = asyncio.new_event_loop()
        if on_made is not None and _in_main_thread():
            on_made()
    return _own.loop


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def made() -> asyncio.AbstractEventLoop | None:
    """This thread's loop, if there is one."""
    return _own.loop


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end."""
    if is_running():
        # In the program's own process, called from a coroutine: another thread's turn.
        return _elsewhere(coroutine)
    return own().run_until_complete(coroutine)


def is_needed() -> bool:
    """Whether tasks of earlier calls are still under way in this thread's loop."""
    if _own.loop is None:
        return False
    import asyncio

    return bool(asyncio.all_tasks(_own.loop))


def run_until_readable(descriptor: int) -> None:
    """Let tasks go on until there is something to read."""
    loop = _own.loop
    assert loop is not None
    loop.add_reader(descriptor, loop.stop)
    try:
        loop.run_forever()
    finally:
        loop.remove_reader(descriptor)


def close() -> None:
    """Cancel what still runs and close the loop, as ``asyncio.run`` does at its end."""
    loop, _own.loop = _own.loop, None
    if loop is None or loop.is_closed():
        return
    import asyncio

    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    try:
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def is_running() -> bool:
    """Whether this thread runs an event loop, any one, just now."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _elsewhere(coroutine: Coroutine[Any, Any, Any]) -> Any:
    import asyncio

    came: list[Any] = []
    raised: list[BaseException] = []

    def target() -> None:
        try:
            came.append(asyncio.run(coroutine))
        except BaseException as error:  # noqa: BLE001  (raised in the other thread)
            raised.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()  # it ends as the coroutine does
    if raised:
        raise raised[0]
    return came[0]
