"""A pool without processes: calls run where they are submitted, for a debugger."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shmexec.deadline import now
from shmexec.errors import PoolBroken
from shmexec.figures import Glimpse, Health, Stats
from shmexec.options import CallOptions, Options
from shmexec.runtime.backend import Feeder
from shmexec.runtime.calls import closed_error, name_of
from shmexec.runtime.futures import Future
from shmexec.runtime.here import show_here
from shmexec.runtime.streams import LocalStream
from shmexec.runtime.surroundings import around_calls
from shmexec.runtime.tape import Outcome, Tape, Who, here
from shmexec.wire.objects import with_values
from shmexec.worker import loop
from shmexec.worker.actor import Instance
from shmexec.worker.loop import awaited
from shmexec.worker.notes import note_read_only
from shmexec.worker.steps import Steps


class NoBlocks:
    """Stands for blocks where nothing is shared.

    Args:
        writes: Whether calls write to the arrays they are given.
        files: Whether they can open the files that this process can.
    """

    shared = False

    def __init__(self, *, writes: bool = True, files: bool = True) -> None:
        self._writes = writes
        self.files = files

    def place(self, nbytes: int, *, may_wait: bool = False) -> None:
        """Nothing is shared."""
        return

    def count_copied(self, nbytes: int) -> None:
        """Never called, since nothing is placed."""
        raise TypeError(nbytes)

    def can_write(self, array: np.ndarray) -> bool:
        """Whether a call that is given it writes to it itself."""
        return self._writes and array.flags.writeable

    def bytes_of(self, block: Any) -> np.ndarray:
        """Never called, since nothing is placed."""
        raise TypeError(block)

    def is_alone(self, block: Any) -> bool:
        """Never called, since nothing is placed."""
        raise TypeError(block)

    def keep(self, block: Any) -> np.ndarray:
        """Never called, since nothing is placed."""
        raise TypeError(block)

    def give_back(self, block: Any) -> None:
        """Never called, since nothing is placed."""
        raise TypeError(block)


def _check_worker(options: CallOptions) -> None:
    if options.worker not in {None, os.getpid()}:
        msg = (
            f"worker={options.worker}: with in_process=True calls run in this process "
            f"({os.getpid()}), and nowhere else"
        )
        raise ValueError(msg)


class InlinePool:
    """What :class:`~shmexec.runtime.pool.Pool` is, in one process.

    Arguments are not copied, and time-outs and retries have no meaning here.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.blocks = NoBlocks()
        self.feeders: weakref.WeakSet[Feeder] = weakref.WeakSet()
        self._closed = False
        self._initialized = False
        self._refusal: BaseException | None = None
        self._numbers = itertools.count(1)
        self._done = self._failed = 0
        self._tapes: tuple[Tape, ...] = ()

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        worker: int | None = None,
        keep: Callable[[Any], object] | None = None,
    ) -> Future[Any]:
        """Run the call now."""
        self._prepare()
        _check_worker(options)
        future: Future[Any] = Future()
        future.keep = keep
        future.set_running_or_notify_cancel()
        name, started = self._name_of(fn, args), now()
        try:
            fn, args, kwargs = with_values((fn, args, kwargs))
            run = self._surround(fn)
            future.set_result(awaited(run(*args, **kwargs)))
            self._done += 1
        except (Exception, SystemExit) as error:  # noqa: BLE001  (the future's)
            note_read_only(error, fn, args, kwargs)
            future.set_exception(error)
            self._failed += 1
        if self._tapes:
            self._record(name, started, future.exception())
        return future

    @staticmethod
    def _name_of(fn: Callable[..., Any], args: tuple[Any, ...]) -> str:
        """The user's word for a call; that of an actor is known by its method."""
        if getattr(fn, "__func__", None) is Instance.call:
            return str(args[0])
        return name_of(fn, args)

    def _record(self, name: str, started: float, error: BaseException | None) -> None:
        outcome = Outcome.DONE if error is None else Outcome.FAILED
        row = here(self._done + self._failed, outcome, started, now())
        who = Who(self.options.name, 0, os.getpid())
        for tape in self._tapes:
            tape.add(row, name, "" if error is None else type(error).__name__, who)

    def start_recording(self, tape: Tape) -> None:
        """Note calls on a tape; harmless if they are already."""
        if tape.adopt(self):
            self._tapes = (*self._tapes, tape)

    def flush_recording(self) -> None:
        """They are on it at once."""

    def stop_recording(self, tape: Tape) -> None:
        """Note them there no more; harmless if they are not."""
        self._tapes = tuple(each for each in self._tapes if each is not tape)

    def _prepare(self) -> None:
        """Run the initializer before the first call; if it fails, no call ever runs."""
        self.check_open()
        initializer = self.options.initializer
        if initializer is not None and not self._initialized:
            self._initialized = True
            try:
                awaited(initializer(*self.options.initargs))
            except (Exception, SystemExit) as error:  # noqa: BLE001  (told each time)
                self._refusal = error
        if self._refusal is not None:
            reason = f"the initializer failed: {self._refusal!r}"
            msg = f"pool {self.options.name!r} cannot run calls: {reason}"
            raise PoolBroken(msg, (reason,)) from self._refusal

    def stream(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        buffersize: int,
    ) -> LocalStream[Any]:
        """Call it now; its steps run as they are asked for."""
        self._prepare()
        _check_worker(options)
        fn, args, kwargs = with_values((fn, args, kwargs))
        return LocalStream(Steps(self._surround(fn)(*args, **kwargs)))

    def _surround(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        around = around_calls(self.options.context)
        return fn if around is None else around.wrap(fn, next(self._numbers))

    def check_open(self) -> None:
        """Raise PoolClosed if no call can be taken."""
        if self._closed:
            raise closed_error(self.options, forked=False, exiting=False)

    def broadcast(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[Future[Any]]:
        """Run it once."""
        return [self.submit(fn, args, kwargs, self.options.call)]

    def add_feeder(self, feeder: Feeder) -> None:
        """Tell it before the pool's end."""
        self.feeders.add(feeder)

    def resize(self, max_workers: int) -> None:
        """Nothing to do: there is one process."""

    def pids(self) -> list[int]:
        """There are none."""
        return []

    def width(self) -> int:
        """One call at a time."""
        return 1

    def dump(self) -> str:
        """See :meth:`shmexec.Executor.dump`."""
        what = (
            "closed" if self._closed else "calls run in this process, in_process=True"
        )
        return show_here(f"executor {self.options.name!r}: {what}")

    def health(self) -> Health:
        """See :meth:`shmexec.Executor.health`."""
        failed = "" if self._refusal is None else repr(self._refusal)
        state = "failed" if failed else "ready"
        return Health(
            state="closed" if self._closed else state,
            workers=0,
            starting=0,
            busy=0,
            pending=0,
            oldest_pending=0.0,
            restarts=0,
            last_failure=failed,
            last_failure_ago=None,
            private_bytes=0,
        )

    def stats(self) -> Stats:
        """Figures, most of them zero."""
        return Stats(
            name=self.options.name,
            max_workers=1,
            workers=(),
            submitted=self._done + self._failed,
            pending=0,
            running=0,
            done=self._done,
            failed=self._failed,
            cancelled=0,
            worker_deaths=0,
            bytes_copied_in=0,
            bytes_copied_out=0,
            bytes_by_reference=0,
            blocks_recycled=0,
            blocks_faulted=0,
            shared_memory_used=0,
            shared_memory_budget=0,
            native=False,
        )

    def glimpse(self) -> Glimpse:
        """What a display shows of it."""
        health = self.health()
        return Glimpse(health.state, self.stats(), health.last_failure)

    def shutdown(self, *, wait: bool = True, cancel_futures: bool = False) -> None:
        """Take no more calls."""
        for feeder in list(self.feeders):
            feeder.feed_last(cancel=cancel_futures)
        self._closed = True
        loop.close()

    def halt(self) -> None:
        """Nothing to end: calls run in the thread that makes them."""
        self._closed = True

    def abandon(self) -> None:
        """Nothing is left behind."""
