"""Running a call: the function and its arguments made from a message, and user code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from types import CoroutineType
from typing import Any, NoReturn

from shmexec.deadline import now
from shmexec.wire import functions
from shmexec.wire.messages import Kind, Message
from shmexec.wire.pickling import Pickled, load
from shmexec.worker import loop as event_loop
from shmexec.worker.failures import dump_as, pickle_error
from shmexec.worker.memory import WorkerMemory
from shmexec.worker.notes import note_read_only
from shmexec.worker.stacks import MARK_BYTES

Called = tuple[Callable[..., Any], Any, Any]
"""A function, its arguments and its keyword arguments."""


class Calls:
    """Runs them.

    Args:
        memory: Where their arrays are.
        mark: Descriptor of the fault log, at whose start the call that begins is noted.
    """

    def __init__(self, memory: WorkerMemory, mark: int) -> None:
        self._memory = memory
        self._mark = mark
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self._pickled: dict[bytes, bytes] = {}  # until modules are reloaded
        self.running = False
        """Whether user code runs now, so that it can be interrupted."""
        self.reloads: list[str] = []
        """Modules to be reloaded before the next call; as part of that."""

    def is_running(self) -> bool:
        """See :attr:`running`."""
        return self.running

    def note_running(self, running: bool) -> None:
        """See :attr:`running`."""
        self.running = running

    def begin(self, message: Message) -> float:
        """Note that a call begins; returns when, by the clock of all processes."""
        self._memory.make_room()
        # From here on the call is charged if the worker dies.
        os.pwrite(self._mark, message.request.to_bytes(MARK_BYTES, "little"), 0)
        return now()

    def running_call(self) -> int | None:
        """The number of the call that runs, if calls run one at a time."""
        if not self.running:
            return None
        return int.from_bytes(os.pread(self._mark, MARK_BYTES, 0), "little") or None

    def execute(self, message: Message) -> tuple[Kind, Pickled]:
        """Run the call and pickle what came of it; its arguments die on return."""
        called: Called | None = None
        try:
            fn, args, kwargs = called = self.unpack(message)
            result = self.run(fn, args, kwargs, births=bool(message.request))
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is the reply)
            if called:
                note_read_only(error, *called)
            return Kind.ERROR, pickle_error(error, skip=1)
        if not message.request:
            result = None  # an initializer's: nobody asked for it
        return dump_as(result, "result")

    def run(
        self,
        fn: Callable[..., Any],
        args: Any,
        kwargs: Any,
        *,
        births: bool,
        awaits: bool = True,
    ) -> Any:
        """Call a function of the user's.

        Args:
            fn: The function.
            args: Its arguments.
            kwargs: By name.
            births: Have arrays that it makes be born in shared memory.
            awaits: If it returns a coroutine, return what comes of that.
        """
        # What an initializer makes is to stay: it belongs into private memory.
        before = self._memory.arena.enter() if births else None
        try:
            self.running = True
            try:
                result = fn(*args, **kwargs)
                if awaits and type(result) is CoroutineType:
                    return event_loop.run(result)
                return result
            finally:
                self.running = False
        finally:
            if births:
                self._memory.arena.leave(before)

    def unpack(self, message: Message) -> Called:
        """What is to be called."""
        if self.reloads:
            self._reload()
        buffers = self._memory.borrow(message.refs)
        payload: Any = buffers.pop() if message.spilled else message.payload
        key = message.key
        if not key:
            fn, args, kwargs, *around = load(payload, buffers)
            return _surround(fn, around, message), args, kwargs
        if functions.is_digest(key):
            fn = self._functions[key]
        else:
            try:
                fn = functions.find_by_name(key)
            except Exception as error:
                error.add_note(
                    f"The worker could not import {key[1:].decode()}, "
                    "which the call refers to by name."
                )
                raise
        args, kwargs, *around = load(payload, buffers)
        return _surround(fn, around, message), args, kwargs

    def _reload(self) -> None:
        from shmexec.worker.reloading import reload_all

        names, self.reloads = self.reloads, []
        try:
            reload_all(names)
        finally:
            while self._pickled:
                self._load(*self._pickled.popitem())

    def define(self, digest: bytes, pickled: bytes) -> None:
        """Learn a function that calls to come will refer to; unlearn it if empty."""
        if not pickled:
            self._functions.pop(digest, None)
            self._pickled.pop(digest, None)
        elif self.reloads:
            # It may refer to what is only in the new modules, and is not to have the old.
            self._pickled[digest] = pickled
        else:
            self._load(digest, pickled)

    def _load(self, digest: bytes, pickled: bytes) -> None:
        try:
            self._functions[digest] = pickle.loads(pickled)
        except BaseException as error:  # noqa: BLE001  (reported by the call that needs it)
            self._functions[digest] = _Raises(error)


def _surround(
    fn: Callable[..., Any], around: list[Any], message: Message
) -> Callable[..., Any]:
    """The function with what its call was sent to surround it, if anything."""
    if not around:
        return fn
    from shmexec.worker.surroundings import Surrounded

    return Surrounded(fn, around[0], message.request)


class _Raises:
    """Stands for a function that could not be rebuilt."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise self._error
