"""The display of a pool, from figures alone."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from shmexec.figures import Glimpse, Stats, WorkerStats
from shmexec.panels import TROUBLE_AT_MOST, WORKERS_AT_MOST, line, merged, panel

IDLE = WorkerStats(101, "idle", 7, 30_000_000, 0, 60_000_000)
BUSY = WorkerStats(102, "busy", 3, 60_000_000, 24_000_000, 60_000_000)
STATS = Stats(
    name="pool",
    max_workers=4,
    workers=(IDLE, BUSY),
    submitted=20,
    pending=4,
    running=1,
    done=10,
    failed=3,
    cancelled=2,
    worker_deaths=0,
    bytes_copied_in=0,
    bytes_copied_out=64_000_000,
    bytes_by_reference=0,
    blocks_recycled=0,
    blocks_faulted=0,
    shared_memory_used=1_000_000_000,
    shared_memory_budget=4_000_000_000,
    native=True,
)


class Reader(HTMLParser):
    """What a browser would show, and how wide each filled part of a bar is."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.widths = [], [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        style = dict(attrs).get("style", "")
        self.widths += map(float, re.findall(r"(?<!-)width:([\d.]+)%", style))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


def read(html):
    reader = Reader()
    reader.feed(html)
    assert not reader.open  # all that was opened is closed
    return " ".join(filter(None, reader.words)), reader.widths


def test_what_is_in_it():
    text, widths = read(panel("Executor 'pool'", [Glimpse("busy", STATS)]))
    for part in (
        "Executor 'pool'",
        "busy",
        "2 of 4",
        "10 done",
        "3 failed",
        "2 cancelled",
        "1 running",
        "4 pending",
        "1 GB of 4 GB",
        "64 MB copied out",
        "101",
        "102",
        "30 MB",
        "24 MB",
    ):
        assert part in text
    assert "copied in" not in text  # nothing was
    # Calls; the budget; then each worker's memory, up to its peak, and its results.
    assert widths == [50, 15, 10, 5, 20, 25, 50, 50, 100, 100]


@pytest.mark.parametrize(
    "state", ["starting", "ready", "busy", "failed", "closing", "closed", "<x>"]
)
def test_all_that_comes_from_outside_is_escaped(state):
    evil = "<script>alert('&')</script>"
    worker = replace(IDLE, state=evil)
    glimpse = Glimpse(state, replace(STATS, workers=(worker,), name=evil), evil)
    html = panel(evil, [glimpse], [evil])
    assert "<script" not in html
    text, _ = read(html)
    assert text.count(evil) == 4  # title, worker, part and trouble
    assert state in text


def test_themes():
    """Text has the theme's colour, and no style depends on what is around it."""
    html = panel("pool", [Glimpse("failed", STATS, "why")])
    assert "<style" not in html
    assert "class=" not in html
    assert not re.search(r"[;\"]color:(?!inherit)", html)


def test_one_that_was_never_used():
    empty = replace(
        STATS, workers=(), pending=0, running=0, done=0, failed=0, cancelled=0
    )
    text, _ = read(panel("pool", [Glimpse("starting", empty)]))
    assert "none yet" in text
    assert "pid" not in text


def test_one_that_nobody_can_look_at():
    glimpse = Glimpse("unknown", None, "its lock is held")
    text, _ = read(panel("pool", [glimpse]))
    assert text == "pool unknown its lock is held"
    assert line(glimpse) == "unknown"


def test_a_worker_of_which_little_is_known():
    worker = WorkerStats(None, "starting", 0, None, 0)
    text, widths = read(
        panel("p", [Glimpse("busy", replace(STATS, workers=(worker,)))])
    )
    assert "? starting 0 ? none" in text.replace("  ", " ")


def test_many_workers_and_a_long_text():
    many = replace(STATS, workers=(IDLE,) * 40)
    text, _ = read(panel("pool", [Glimpse("failed", many, "x" * 10_000)]))
    assert text.count("101") == WORKERS_AT_MOST
    assert f"and {40 - WORKERS_AT_MOST} workers more" in text
    assert text.count("x") == TROUBLE_AT_MOST


def test_remarks():
    bad = replace(STATS, worker_deaths=2, workers_killed=1, paused=True)
    bad = replace(bad, memory_free=10_000_000, min_free_memory=1_000_000_000)
    text, _ = read(panel("pool", [Glimpse("busy", bad)]))
    assert "workers that died: 2; workers killed for their memory: 1" in text
    assert "10 MB of memory is free, 1 GB shall be" in text


def test_several_pools_that_are_one_thing():
    both = merged([STATS, replace(STATS, paused=True)])
    assert (both.done, both.max_workers, len(both.workers)) == (20, 8, 4)
    assert both.shared_memory_used == 2_000_000_000
    assert both.shared_memory_budget == 4_000_000_000  # they have it in common
    assert both.paused
    text, _ = read(panel("Actor", [Glimpse("ready", STATS), Glimpse("failed", STATS)]))
    assert "ready failed" in text
    assert "20 done" in text


def test_in_words():
    assert line(Glimpse("busy", STATS)) == (
        "busy, 2 of 4 workers, 1 calls running, 4 pending"
    )
