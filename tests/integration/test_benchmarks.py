"""The benchmarks run, count a wrong result as a failure, and leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def main(monkeypatch):
    """The runner, in this process; one repeat."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.__main__ import main

    return lambda *arguments: main(["--repeats", "1", *arguments])


def rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_smallest_run_gives_a_table(tmp_path):
    done = run(
        *("--cases", "noop", "--systems", "shmexec,inprocess", "--quick"),
        *("--repeats", "1", "--json", str(tmp_path / "out.json")),
        *("--markdown", str(tmp_path / "out.md")),
    )
    assert done.returncode == 0, done.stderr
    header, _, *body = rows(done.stdout)
    assert header[:3] == ["case", "system", "ratio to limit"]
    assert [row[:2] for row in body] == [
        [title, system]
        for title in ("no-op, one at a time", "no-op, many at once, per call")
        for system in (
            "*limit: ping-pong*",
            "*ping-pong on one CPU*",
            "shmexec",
            "in process (no copy)",
        )
    ]
    for row in body:
        assert float(row[2]) > 0
        assert row[4].endswith("s")
    assert (tmp_path / "out.md").read_text(encoding="utf-8") == done.stdout
    figures = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert len(figures["samples"]) == 4
    assert not figures["failures"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--systems", "nonesuch"], "unknown system 'nonesuch'"),
        (["--cases", "nonesuch"], "unknown case 'nonesuch'"),
        (["--repeats", "0"], "--repeats"),
        (["--json", "/nonesuch/out.json"], "cannot write to /nonesuch/out.json"),
    ],
)
def test_bad_arguments(main, capsys, arguments, complaint):
    with pytest.raises(SystemExit) as exit_status:
        main(*arguments)
    assert exit_status.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_failure_shows_in_table_and_exit_status(main, capsys, monkeypatch):
    from benchmarks import fresh

    def fail(system: str, case: str, **_settings: object) -> None:
        raise fresh.Failed(f"{system} got {case} wrong")

    monkeypatch.setattr(fresh, "measure", fail)
    assert main("--quick", "--cases", "noop-latency", "--systems", "inprocess") == 1
    output = capsys.readouterr().out
    assert rows(output)[-1][4] == "FAILED"
    assert "FAILED: inprocess, noop-latency, repeat 1: inprocess got" in output


class Liar:
    """Gives the result of the call before; the first one is right."""

    def __init__(self):
        self._results = []

    def call(self, fn, *args):
        self._results.append(fn(*args))
        return self._results[max(0, len(self._results) - 2)]

    def gather(self, fn, items):
        return [self.call(fn, item) for item in items]


@pytest.mark.parametrize("name", ["noop-latency", "noop-throughput", "in-8KB"])
def test_a_stale_result_is_noticed(main, name):
    from benchmarks.cases import CASES
    from benchmarks.sampling import Plan, WrongResult

    with pytest.raises(WrongResult):
        CASES[name].measure(Liar(), Plan.of(0, quick=True))


@pytest.mark.parametrize("name", ["in-8KB", "out-8KB", "both-8KB"])
def test_wrong_content_is_noticed(main, name, monkeypatch):
    from benchmarks import work
    from benchmarks.cases import CASES
    from benchmarks.sampling import Plan, WrongResult

    class Spoiler:
        """All but the middle of an array arrives."""

        def call(self, fn, *args):
            args = [arg.copy() if hasattr(arg, "shape") else arg for arg in args]
            for arg in args:
                if hasattr(arg, "shape"):
                    arg[len(arg) // 2] += 1
            result = fn(*args)
            if fn is work.cached:
                result = result.copy()
                result[len(result) // 2] += 1
            return result

    with pytest.raises(WrongResult):
        CASES[name].measure(Spoiler(), Plan.of(0, quick=True))


def test_a_child_that_takes_too_long_is_stopped(main):
    from benchmarks import fresh

    with pytest.raises(fresh.Failed, match="was stopped after"):
        fresh.measure(
            "shmexec", "noop-latency", nbytes=0, workers=1, quick=False, timeout=0.1
        )


def test_a_child_that_breaks_gives_its_last_words(main):
    from benchmarks import fresh

    with pytest.raises(fresh.Failed, match="KeyError: 'nonesuch'"):
        fresh.measure(
            "shmexec", "nonesuch", nbytes=0, workers=1, quick=True, timeout=30
        )


def test_a_reader_that_leaves_early_is_no_crash():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks", "--quick", "--repeats", "1"),
                *("--cases", "noop-latency", "--systems", "inprocess"),
            ],
            cwd=ROOT,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
