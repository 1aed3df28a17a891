"""What ``shmexec top`` draws."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

pytest.importorskip("rich")

from rich.console import Console
from rich.text import Text

from shmexec.cli.watching.display import duration, heading, overview, size
from shmexec.cli.watching.records import Pool, Program, Usage, Worker
from shmexec.cli.watching.screen import Screen

USAGE = Usage(99.6, 123_456_789, 987_654_321)
WORKER = Worker(
    pid=4194304,
    state="draining",
    state_seconds=1.0,
    call="a_function_with_a_name_that_is_far_too_long_for_any_terminal",
    call_seconds=100_000.0,
    more_calls=12,
    stopping=True,
    done=123_456,
    usage=USAGE,
)
POOL = Pool(
    name="my pool",
    actor="Model",
    state="busy",
    start_method="fork",
    uptime_seconds=3600.0,
    max_workers=2,
    pending=1000,
    oldest_pending_seconds=61.0,
    failed=1,
    restarts=1,
    last_failure="worker 1 was killed by SIGKILL",
    paused=True,
    shared_used_bytes=5_000_000,
    workers=(WORKER, replace(WORKER, call=None, state="idle", stopping=False)),
    more_workers=1,
)
PROGRAM = Program(
    pid=4194303,
    command=("/some/where/python", "train.py", "--name", "two words", *"abcdefgh" * 9),
    uptime_seconds=200_000.0,
    answers=True,
    usage=USAGE,
    pools=(POOL,),
    more_pools=2,
)
SILENT = replace(PROGRAM, answers=False, why="stopped", pools=(), processes=(WORKER,))


def _drawn(programs, width):
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False)
    console.print(heading(programs, 1.0, keys=True))
    console.print(overview(programs, width))
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_lines_are_no_wider_than_the_terminal(width):
    text = _drawn([PROGRAM, SILENT], width)
    assert max(map(len, text.splitlines())) <= width


def test_80_columns_hold_what_matters():
    text = _drawn([PROGRAM, SILENT], 80)
    for what in (
        "4194303  python train.py --name 't…  up 2 days, CPU 100 %, 123 MB, 988 MB shared",
        "my pool (actor Model)  busy, 3 of 2 workers, up 1:00:00, 5 MB of shared ",
        "1000 waiting (the first for 1:01), 0 running, 0 done, 1 failed, 1 restart",
        "last: worker 1 was killed by SIGKILL",
        "draining  a_function_with_a_name…  27:46:40    100   123 MB  988 MB",
        "does not answer: stopped",
        "and 1 worker more",
        "and 2 pools more",
        "2 programs, 1 pool, 4 workers",
    ):
        assert what in text, text


def test_nothing_that_a_terminal_obeys_is_drawn():
    worker = replace(WORKER, call="\x1b[31mred")
    pool = replace(POOL, name="\x1b[2J", last_failure="a\rb", workers=(worker,))
    program = replace(PROGRAM, command=("\x1b]0;title\x07", "[bold]"), pools=(pool,))
    text = _drawn([program], 100)
    assert not set("\x1b\r\x07") & set(text)
    assert "[bold]" in text
    assert "?[31mred" in text


def test_the_screen_scrolls_as_far_as_there_is_something():
    file = io.StringIO()
    console = Console(file=file, width=20, height=4, force_terminal=True)
    screen = Screen(console)
    body = Text("\n".join(f"line {number}" for number in range(6)))

    def drawn(keys=""):
        assert screen._obey(keys) or not keys
        file.seek(0)
        file.truncate()
        screen.draw(Text("head"), body)
        text = Text.from_ansi(file.getvalue().removeprefix("\x1b[H")).plain
        return [line.rstrip() for line in text.splitlines()]

    assert drawn() == ["head", "line 0", "line 1", "… 4 lines more"]
    assert drawn("\x1b[B") == ["head", "line 1", "line 2", "… 3 lines more"]
    assert drawn("\x1b[6~") == ["head", "line 3", "line 4", "line 5"]
    assert drawn("k") == ["head", "line 2", "line 3", "… 2 lines more"]
    assert drawn("\x1b[5~") == drawn("x") == drawn()
    assert not any(map(screen._obey, ["q", "Q", "\x03", "", "abq"]))


def test_no_program():
    assert "No program of this user" in _drawn([], 80)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.7, "1:00"),
        (187, "3:07"),
        (7387, "2:03:07"),
        (432_000, "5 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (5_000, "5 kB"),
        (999_600, "1 MB"),
        (1_234_000_000, "1.2 GB"),
        (123_400_000_000, "123 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes(nbytes, text):
    assert size(nbytes) == text
