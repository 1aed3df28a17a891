"""Pipelines on paper: any order of completions gives the same results, in order."""

from __future__ import annotations

from collections import Counter
from itertools import chain, count

import pytest
from hypothesis import given, strategies as st

from shmexec.scheduler.flow import Begin, Deliver, Entry, Flow, Flush, Stream

STAGES = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from(["plain", "batches", "fails"])),
    min_size=1,
    max_size=4,
)


class Fails(Exception):
    """By a stage that fails for every fourth item."""


class Stage:
    """Plain: item + "." - Batches: keeps what it gets, and flushes it, a piece at a time."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.kept: list[str] = []

    def process(self, value: str) -> str:
        if self.kind == "fails" and value[0] in "37":
            raise Fails(value)
        if self.kind == "batches":
            self.kept.append(value[:2])
        return value + "."

    def flush(self) -> str | None:
        return self.kept.pop(0) if self.kept else None


class Simulation:
    """A pipeline whose stages are done when the test says so."""

    def __init__(self, stages: list[tuple[int, str]], buffersize: int) -> None:
        self.stages = [[Stage(kind) for _ in range(n)] for n, kind in stages]
        self.flow = Flow(
            [n for n, _ in stages],
            [kind == "batches" for _, kind in stages],
            buffersize,
        )
        self.working: list[Begin | Flush] = []
        self.came: dict[Stream, list[Entry]] = {}
        self.wishes = 0

    def go_on(self) -> None:
        while (command := self.flow.next()) is not None:
            if isinstance(command, Deliver):
                entry = command.entry
                assert not entry.stream.wanted, "delivered twice for one wish"
                assert self.wishes > 0 or entry.stream.dropped
                self.wishes -= 1
                self.came.setdefault(entry.stream, []).append(entry)
            else:
                assert all(
                    (each.stage, each.replica) != (command.stage, command.replica)
                    for each in self.working
                ), "a replica does two things at once"
                if isinstance(command, Flush):
                    busy = {each.stage for each in self.working}
                    assert command.stage not in busy, "flushed while it works"
                self.working.append(command)
        self.check()

    def finish(self, index: int) -> None:
        begun = self.working.pop(index % len(self.working))
        stage = self.stages[begun.stage][begun.replica]
        try:
            if isinstance(begun, Begin):
                value = stage.process(begun.entry.value)
            else:
                value = stage.flush()
                if value is None:
                    self.flow.flushed(begun)
                    self.go_on()
                    return
            self.flow.done(begun, value, None)
        except Fails as error:
            self.flow.done(begun, None, error)
        self.go_on()

    def check(self) -> None:
        """What is said of buffers holds."""
        flow = self.flow
        for index, line in enumerate(flow._lines[1:]):
            items = [entry for entry in line if not entry.ends]
            assert len(items) <= flow.buffersize + flow.replicas[index]
        running = Counter(each.stage for each in self.working)
        assert all(n <= flow.replicas[stage] for stage, n in running.items())


@given(
    STAGES,
    st.integers(1, 3),
    st.integers(0, 10),
    st.lists(st.integers(0, 100), max_size=200),
)
def test_order_errors_and_flushes(stages, buffersize, number, choices):
    simulation = Simulation(stages, buffersize)
    stream = Stream()
    choices = chain(choices, count(1))
    left = [f"{i}" for i in range(number)]
    ended = False
    results: list[Entry] = simulation.came.setdefault(stream, [])
    while not (results and results[-1].ends):
        choice = next(choices)
        if left and simulation.flow.has_room and choice % 3:
            value = left.pop(0)
            simulation.flow.enter(Entry(stream, value, value))
        elif not left and not ended:
            simulation.flow.enter(Entry(stream, ends=True))
            ended = True
        elif choice % 2 or not simulation.working:
            simulation.wishes += not stream.wanted
            stream.wanted = True
        simulation.go_on()
        if simulation.working:
            simulation.finish(choice)
    assert simulation.flow.empty
    assert not simulation.working
    assert all(s.kind != "batches" or not s.kept for r in simulation.stages for s in r)
    tags = [entry.tag for entry in results if entry.tag is not None]
    assert tags == [f"{i}" for i in range(number)]
    fails = [kind for _, kind in stages].count("fails")
    for entry in results:
        if entry.tag is None:
            continue
        if fails and entry.tag in {"3", "7"}:
            assert isinstance(entry.error, Fails)
        else:
            assert entry.value == entry.tag + "." * len(stages)
    # What comes behind the items was flushed; each stage before it saw the same ones.
    flushed = results[len(tags) : -1]
    if [kind for _, kind in stages] == ["plain", "batches"] and stages[1][0] == 1:
        assert [entry.value for entry in flushed] == [f"{i}." for i in range(number)]


@given(STAGES, st.integers(1, 2), st.lists(st.integers(0, 100), max_size=100))
def test_a_stream_that_nobody_reads_stops_and_one_that_is_dropped_goes(
    stages, buffersize, choices
):
    simulation = Simulation(stages, buffersize)
    stream = Stream()
    entered = 0

    def fill() -> int:
        entered = 0
        while simulation.flow.has_room:
            simulation.flow.enter(Entry(stream, 0, "0"))
            simulation.go_on()
            entered += 1
        return entered

    choices = chain(choices, count(1))
    entered += fill()
    while simulation.working:
        simulation.finish(next(choices))
        entered += fill()
    replicas = sum(n for n, _ in stages)
    assert entered <= replicas + buffersize * (len(stages) + 1)
    assert entered >= buffersize * (len(stages) + 1)
    simulation.flow.drop(stream)
    simulation.flow.enter(Entry(stream, ends=True))
    simulation.go_on()
    while simulation.working:
        simulation.finish(next(choices))
    assert simulation.flow.empty
    assert [entry.ends for entry in simulation.came[stream]] == [True]
    assert all(not s.kept for r in simulation.stages for s in r)


def test_a_replica_answers_once():
    flow = Flow([1], [False], 1)
    flow.enter(Entry(Stream(endless=True), 0, "0"))
    begun = flow.next()
    flow.done(begun, "0.", None)
    with pytest.raises(AssertionError):
        flow.done(begun, "0.", None)
