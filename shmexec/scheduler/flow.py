"""Where the items of a pipeline are, and which may go on. Pure.

Between two stages, before the first and behind the last, there is a *line* of entries,
in order: an entry joins the line behind a stage when the stage begins with it, so that
what several replicas do at once keeps its order. A stage begins with the first entry of
its line when a replica is free and the line behind has room.

The end of a stream stands in line like an entry. It passes a stage that flushes when
everything before it has left the replicas: what they flush then goes before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(eq=False, slots=True)
class Stream:
    """Entries that belong together, up to an end.

    Attributes:
        wanted: Whether the next result may be delivered. Cleared when one is.
        endless: Results are always wanted; there is no end.
        dropped: Nobody wants results any more.
    """

    wanted: bool = False
    endless: bool = False
    dropped: bool = False


@dataclass(eq=False, slots=True)
class Entry:
    """An item, or the end of a stream.

    Attributes:
        stream: What it belongs to.
        tag: What the caller knows it by.
        value: The item as it stands in line; whoever begins with it takes it.
        error: Why there is none.
        ready: Whether it may go on; not while a stage works on it.
        cancelled: Says that nobody wants it any more.
        ends: Whether this is the end of its stream.
        context: Whatever the caller needs to begin with it.
    """

    stream: Stream
    tag: Any = None
    value: Any = None
    error: BaseException | None = None
    ready: bool = True
    cancelled: bool = False
    ends: bool = False
    context: Any = None

    @property
    def dropped(self) -> bool:
        """Whether it need not go on."""
        return self.stream.dropped or self.cancelled


class Begin(NamedTuple):
    """Have a replica of a stage work on an entry; to be answered by `Flow.done`."""

    stage: int
    replica: int
    entry: Entry


class Flush(NamedTuple):
    """Have it give what it kept, into a new entry; answered by `done` or `flushed`."""

    stage: int
    replica: int
    entry: Entry


class Deliver(NamedTuple):
    """An entry has left the last line, or the end of its stream has."""

    entry: Entry


Command = Begin | Flush | Deliver


@dataclass(slots=True)
class _Stage:
    idle: deque[int]
    replicas: int
    flushes: bool
    flushed: int = 0
    """Of the replicas, how many have given all they kept, at the present end."""


@dataclass(slots=True)
class Flow:
    """See the module. Not locked.

    Args:
        replicas: Of each stage.
        flushes: Whether each stage is to be flushed.
        buffersize: Entries that may wait before a stage. Beside them there may wait one
            for each replica of the stage before, which is not used meanwhile.
    """

    replicas: Sequence[int]
    flushes: Sequence[bool]
    buffersize: int
    reserved: int = 0
    """Places in the first line for entries to come."""
    _stages: list[_Stage] = field(init=False)
    _lines: list[deque[Entry]] = field(init=False)

    def __post_init__(self) -> None:
        self._stages = [
            _Stage(deque(range(n)), n, flushes)
            for n, flushes in zip(self.replicas, self.flushes, strict=True)
        ]
        self._lines = [deque() for _ in range(len(self._stages) + 1)]

    @property
    def has_room(self) -> bool:
        """Whether an entry may join the first line."""
        return len(self._lines[0]) + self.reserved < self.buffersize

    @property
    def empty(self) -> bool:
        """Whether there are no entries."""
        return not any(self._lines) and not self.reserved

    @property
    def waiting(self) -> tuple[Entry, ...]:
        """The entries before the first stage."""
        return tuple(self._lines[0])

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All of them, also those that stages work on."""
        return tuple(entry for line in self._lines for entry in line)

    def enter(self, entry: Entry) -> None:
        """An entry joins the first line, room or not."""
        self._lines[0].append(entry)

    def drop(self, stream: Stream) -> None:
        """Nobody wants these results: what has not begun need not."""
        stream.dropped = True
        for line in self._lines:
            for entry in line:
                if entry.stream is stream:
                    entry.value = entry.error = None

    def done(
        self, begun: Begin | Flush, value: Any, error: BaseException | None
    ) -> None:
        """A replica has done what it was told to."""
        stage, entry = self._stages[begun.stage], begun.entry
        assert not entry.ready, "done twice"
        if not entry.dropped:
            entry.value, entry.error = value, error
        entry.ready = True
        stage.idle.append(begun.replica)
        if isinstance(begun, Flush) and error is not None:
            stage.flushed += 1

    def flushed(self, begun: Flush) -> None:
        """A replica had nothing more to give."""
        stage = self._stages[begun.stage]
        last = self._lines[begun.stage + 1].pop()
        assert last is begun.entry, "flushed twice"
        stage.idle.append(begun.replica)
        stage.flushed += 1

    def next(self) -> Command | None:
        """What is to be done now; None if nothing is until something was done."""
        moved = True
        while moved:
            moved = False
            # From the end, so that there is room for what comes behind.
            for index in reversed(range(len(self._lines))):
                line = self._lines[index]
                while line and line[0].ready:
                    step = self._step(index, line[0])
                    if not isinstance(step, bool):
                        return step
                    if not step:
                        break
                    moved = True
        return None

    def _step(self, index: int, first: Entry) -> Command | bool:
        """What is to be done with the first of a line, or whether it went on by itself."""
        if first.ends:
            return self._pass_end(index, first)
        if first.dropped:
            self._lines[index].popleft()
            return True
        if index == len(self._stages):
            return self._deliver(first.stream)
        stage, behind = self._stages[index], self._lines[index + 1]
        needs_none = first.error is not None
        if not self._has_room_behind(index) or not (needs_none or stage.idle):
            return False
        behind.append(self._lines[index].popleft())
        if needs_none:
            return True
        first.ready = False
        return Begin(index, stage.idle.popleft(), first)

    def _has_room_behind(self, index: int) -> bool:
        at_most = self.buffersize + self._stages[index].replicas
        return len(self._lines[index + 1]) < at_most

    def _deliver(self, stream: Stream) -> Command | bool:
        if not (stream.wanted or stream.endless or stream.dropped):
            return False
        stream.wanted = False
        return Deliver(self._lines[-1].popleft())

    def _pass_end(self, index: int, end: Entry) -> Command | bool:
        if index == len(self._stages):
            return self._deliver(end.stream)
        stage, behind = self._stages[index], self._lines[index + 1]
        if not stage.flushes or stage.flushed == stage.replicas:
            stage.flushed = 0
            behind.append(self._lines[index].popleft())
            return True
        if len(stage.idle) < stage.replicas or not self._has_room_behind(index):
            return False
        stage.idle.remove(stage.flushed)
        entry = Entry(end.stream, context=end.context, ready=False)
        behind.append(entry)
        return Flush(index, stage.flushed, entry)
