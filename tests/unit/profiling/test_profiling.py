"""What is made of recorded calls: times on one clock, figures, advice, traces."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from shmexec.profiling import chrome
from shmexec.profiling.advice import advise
from shmexec.profiling.summary import seconds, summarize
from shmexec.profiling.table import Facts, PoolFacts, covered, lanes, make_table
from shmexec.profiling.timeline import draw
from shmexec.runtime import tape as tapes
from shmexec.runtime.tape import NEVER, Outcome, Row, Tape, Who, unsent

START = 1000.0


class Story:
    """Makes up calls of a profile."""

    def __init__(self, span=1.0, workers=2, *, up=None, threads=1, cpus=2, native=True):
        self.tape = Tape(100_000)
        up = workers if up is None else up
        pool = PoolFacts("p", workers, workers, up)
        self.facts = Facts(span, (pool,), threads, cpus, native)
        self.number = 0

    def call(self, queued, sent, began, took, replied, worker=1, name="f", **other):
        """A call; times since the profile's start, `skew` is that of its worker."""
        self.number += 1
        row = unsent(Outcome.DONE, START + queued, START + replied)._replace(
            call=self.number,
            sent=START + sent,
            began=START + began + other.pop("skew", 0.0),
            seconds=took,
            attempts=1,
        )
        error = other.pop("error", "")
        row = row._replace(**other)
        self.tape.add(row, name, error, Who("p", worker, 100 + worker))

    def table(self):
        return make_table(self.tape.read(), self.facts, START)

    def found(self):
        table = self.table()
        found = summarize(table, ())
        return found, " / ".join(advise(table, found))


def back_to_back(story, count, took, worker=1, **other):
    """Calls that a worker runs one after the other, all queued at once."""
    for i in range(count):
        at = i * took
        story.call(0.0, at, at, took, at + took, worker, **other)


# -- one clock ---------------------------------------------------------------------------


def test_times_are_relative_and_in_order_of_submission():
    story = Story()
    story.call(0.2, 0.3, 0.4, 0.1, 0.6)
    story.call(0.1, 0.11, 0.12, 0.1, 0.3, worker=2)
    table = story.table()
    assert table.call.tolist() == [2, 1]
    np.testing.assert_allclose(table.began, [0.12, 0.4])
    np.testing.assert_allclose(table.ended, [0.22, 0.5])


@pytest.mark.parametrize("skew", [0.0, 7.5, -300.0])
def test_a_clock_of_a_workers_own_is_put_on_ours(skew):
    story = Story()
    for i in range(10):
        at = i / 10
        story.call(at, at, at + 0.001, 0.05, at + 0.052, skew=skew)
        story.call(at, at, at + 0.001, 0.05, at + 0.052, worker=2)
    table = story.table()
    own = table.worker == 0
    np.testing.assert_allclose(table.began[own], table.began[~own], atol=0.001)
    assert (table.began >= table.sent).all()
    assert (table.ended <= table.replied).all()


def test_nonsense_of_a_worker_stays_within_its_call():
    story = Story()
    story.call(0.1, 0.2, -500.0, 1e9, 0.3)
    table = story.table()
    assert 0.2 <= table.began[0] <= table.ended[0] <= 0.3


def test_lanes_and_cover():
    assert lanes([0, 1, 2, 2.5], [2, 3, 4, 3]) == [0, 1, 0, 2]
    assert covered(np.array([0, 1, 5.0]), np.array([2, 3, 6.0])) == 4.0
    assert covered(np.array([]), np.array([])) == 0.0


# -- the tape ------------------------------------------------------------------------------


class Interleaved:
    """A tape's lock; each time that it was free others note calls."""

    def __init__(self, tape, calls):
        self._tape, self._left = tape, list(calls)

    def __enter__(self):
        pass

    def __exit__(self, *_):
        (number, *left), self._left = self._left or [0], []
        note(self._tape, number)
        self._left = left


def note(tape, number):
    for _ in range(number):
        i = tape.count
        tape.add(unsent(Outcome.CANCELLED, i, i), "f")


@pytest.mark.parametrize(
    "more", [(), (1,), (1, 1, 1), (2, 0, 3), (9,), (0, 9, 3, 3, 1)]
)
@pytest.mark.parametrize("noted", [0, 1, 3, 4, 7, 8, 13, 16, 30])
def test_a_tape_is_read_in_parts_while_calls_are_noted(monkeypatch, noted, more):
    monkeypatch.setattr(tapes, "COPIED_AT_ONCE", 3)
    tape = Tape(8)
    note(tape, noted)
    tape._lock = Interleaved(tape, more)
    read = tape.read()
    queued = [int(number) for number in read.rows["queued"]]
    count = read.lost + len(queued)
    assert noted <= count <= tape.count
    assert queued == list(range(max(0, count - 8), count))


def test_a_full_tape_keeps_the_latest():
    tape = Tape(3)
    for i in range(8):
        tape.add(unsent(Outcome.CANCELLED, i, i), f"f{i}")
    read = tape.read()
    assert read.rows["queued"].tolist() == [5, 6, 7]
    assert [read.names[i] for i in read.rows["name"]] == ["f5", "f6", "f7"]
    assert read.lost == 5


def test_names_are_bounded(monkeypatch):
    monkeypatch.setattr(tapes, "NAMES_AT_MOST", 3)
    tape = Tape(100)
    for i in range(6):
        tape.add(unsent(Outcome.CANCELLED, i, i), f"f{i}", who=Who("p", i, i))
    read = tape.read()
    named = [read.names[i] for i in read.rows["name"]]
    assert named == ["f0", "f1", "f2", "others", "others", "others"]
    assert read.workers[read.rows["worker"][-1]] == Who("others", 0, None)
    assert len(read.workers) == 4


def test_rows_come_back_as_they_were():
    tape = Tape(1)
    row = Row(1, 3, True, 2, 1.5, 2.5, 3.5, 4.5, NEVER, 0.1, 0.2, *range(5))
    tape.add(row, "f", "E", Who("p", 1, 2))
    back = tape.read().rows[0].item()
    assert back[:3] == (0, 0, 0)
    assert back[3:11] == row[:8]
    assert math.isnan(back[11])
    assert back[12:] == row[9:]


# -- where the time went -------------------------------------------------------------------


def test_the_parts_of_the_time():
    story = Story(span=1.0, workers=1)
    story.call(0.1, 0.3, 0.4, 0.2, 0.9, packing=0.05, placing=0.1, copied_out=5)
    found, _ = story.found()
    parts = (found.packing, found.waiting, found.sending, found.running, found.placing)
    np.testing.assert_allclose(parts, (0.05, 0.2, 0.1, 0.2, 0.1))
    assert found.returning == pytest.approx(0.2)
    assert found.busy == pytest.approx(0.3)
    assert found.queue == pytest.approx(0.2)
    text = str(found)
    assert "1 calls in 1 s on 1 worker: 1 done" in text
    assert "running                    200 ms" in text


def test_calls_of_a_pack_wait_for_each_other():
    story = Story(workers=1)
    for i in range(10):
        at = 0.1 + i * 0.01
        story.call(0.0, 0.1, at, 0.01, 0.25, packed=True)
    found, _ = story.found()
    assert found.sending == 0
    assert found.waiting == pytest.approx(sum(0.1 + i * 0.01 for i in range(10)))


def test_nothing_was_recorded():
    found, advice = Story().found()
    assert (found.calls, found.busy, advice) == (0, 0.0, "")
    assert "0 calls in 1 s" in str(found)


def test_durations_to_be_read():
    told = [seconds(value) for value in (0.0, 2e-6, 0.0123, 12.5, NEVER)]
    assert told == ["0 µs", "2 µs", "12.3 ms", "12.5 s", "-"]


# -- advice ----------------------------------------------------------------------------------


def test_an_array_that_was_copied_again_and_again():
    story = Story()
    for i in range(10):
        again = 10**8 if i else 0
        story.call(0, 0, 0, 0.1, 0.2, name="f", copied_in=10**8, again=again)
    assert "900 MB of the 1 GB" in story.found()[1]
    assert "shmexec.share(x)" in story.found()[1]


def test_more_workers():
    story = Story(workers=2, cpus=8)
    for worker in (1, 2):
        back_to_back(story, 10, 0.1, worker)
    assert "6 of 8 CPUs had none: more workers would help" in story.found()[1]
    story.facts = story.facts._replace(cpus=2)
    assert story.found()[1] == ""


def test_too_many_threads():
    story = Story(threads=4, cpus=4)
    back_to_back(story, 3, 0.1, 1)
    back_to_back(story, 3, 0.1, 2)
    assert "2 workers with 4 BLAS threads each share 4 CPUs" in story.found()[1]


def test_tiny_calls():
    story = Story(span=1.0)
    for i in range(200):
        at = i * 0.005
        story.call(at, at, at, 50e-6, at + 0.004)
    assert "200 calls of f ran 50 µs each" in story.found()[1]
    assert "map(chunksize=20)" in story.found()[1]


def test_one_call_at_a_time():
    story = Story(span=1.0, workers=2)
    for i in range(10):
        at = i / 10
        story.call(at, at, at + 0.01, 0.05, at + 0.09)
    assert "each call was submitted after the one before was done" in story.found()[1]


def test_a_program_that_only_packs():
    story = Story(span=1.0, workers=2)
    for i in range(10):
        at = i / 10
        story.call(at, at, at, 0.01, at + 0.25, packing=0.09, copied_in=10**8)
    assert "to pickle and copy arguments: share arrays" in story.found()[1]


def test_large_results():
    story = Story(native=False)
    story.call(0, 0, 0, 0.5, 0.9, placing=0.3, copied_out=10**9)
    assert "with the native part they need no copy" in story.found()[1]
    story.facts = story.facts._replace(native=True)
    assert "workers copied 1 GB of results for 300 ms" in story.found()[1]


def test_workers_that_start():
    story = Story(span=1.0, workers=1, up=0)
    story.call(0.0, 0.5, 0.5, 0.4, 0.9)
    assert "500 ms of 1 s went until the first worker was up" in story.found()[1]


def test_a_long_tail():
    story = Story(span=1.0, workers=2)
    back_to_back(story, 4, 0.1, 1)
    back_to_back(story, 3, 0.33, 2)
    assert "in the last 590 ms some workers had nothing left" in story.found()[1]


# -- traces and plots ------------------------------------------------------------------------


def various():
    story = Story(span=1.0)
    for at in (0.0, 0.1, 0.2):
        story.call(0, at, at, 0.08, at + 0.1, placing=0.01, copied_out=10)
    story.call(
        0.1, 0.2, 0.3, 0.1, 0.5, 2, "g", outcome=Outcome.FAILED, error="KeyError"
    )
    story.call(0.3, 0.35, 0.38, 0.1, 0.5, 2, "g")  # beside the one before
    story.tape.add(unsent(Outcome.PENDING, START + 0.5, NEVER), "h")
    running = unsent(Outcome.RUNNING, START + 0.6, NEVER)._replace(sent=START + 0.7)
    story.tape.add(running, "h", "", Who("p", 1, 101))
    died = running._replace(outcome=Outcome.WORKER_DIED, replied=START + 0.9)
    story.tape.add(died, "h", "WorkerDied", Who("p", 2, 102))
    return story.table()


def test_a_trace_is_what_the_format_says(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text("what was there before")
    chrome.write(various(), path)
    assert [each.name for each in tmp_path.iterdir()] == ["trace.json"]
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "b", "e", "C"}
    for event in events:
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["name"]
        if event["ph"] != "M":
            assert isinstance(event["ts"], int | float)
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    ran = [event for event in events if event["ph"] == "X"]
    assert {(event["pid"], event["tid"]) for event in ran} == named
    _check_nesting(ran)
    _check_pairs([event for event in events if event["ph"] in "be"])
    failed = [event for event in ran if event["args"].get("error") == "KeyError"]
    assert len(failed) == 1
    assert failed[0]["dur"] == pytest.approx(1e5)


def _check_nesting(events):
    """What a thread does may not overlap."""
    threads = {}
    for event in events:
        threads.setdefault((event["pid"], event["tid"]), []).append(event)
    for own in threads.values():
        own.sort(key=lambda event: event["ts"])
        ends = [event["ts"] + event["dur"] for event in own]
        for end, following in zip(ends, own[1:], strict=False):
            assert end <= following["ts"] + 0.01


def _check_pairs(events):
    """Each begin has its end, and not before."""
    open_ones = {}
    for event in events:
        key = event["cat"], event["id"], event["name"]
        if event["ph"] == "b":
            assert key not in open_ones
            open_ones[key] = event["ts"]
        else:
            assert event["ts"] >= open_ones.pop(key)
    assert not open_ones


def test_a_trace_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        chrome.write(various(), tmp_path / "no" / "trace.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):  # noqa: PT011  (which one, the system says)
        chrome.write(various(), tmp_path / "folder")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_a_plot_has_a_row_for_each_lane():
    ax = draw(various(), Figure().subplots())
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["worker 1", "worker 2", ""]
    assert ax.get_xlim() == (0, 1)
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == ["f", "g", "copying results", "failed"]
    assert draw(Story().table(), Figure().subplots()).get_title("left").startswith("0")
