"""The benchmarks run, count a wrong result as a failure, and leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shmexec.comparing.caller import Caller

pytestmark = pytest.mark.slow

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
def main():
    """The runner, in this process; one repeat."""
    from benchmarks.__main__ import main

    return lambda *arguments: main(["--repeats", "1", *arguments])


def rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_smallest_run_gives_a_table(tmp_path):
    done = run(
        *("--cases", "noop-latency,noop-submit", "--systems", "shmexec,inprocess"),
        *("--quick", "--json", str(tmp_path / "out.json")),
        *("--markdown", str(tmp_path / "out.md")),
    )
    assert done.returncode == 0, done.stderr
    header, _, unit, *body = rows(done.stdout)
    assert header == ["system", "one call", "p99", "submit × 10,000, per call"]
    assert unit[1].startswith("*ping-pong: ")
    assert [row[0] for row in body] == ["shmexec", "in process (no copy)"]
    for row in body:
        for cell in (row[1], row[3]):
            time, ratio = cell.replace("*", "").split(", ")
            assert time.endswith("s")
            assert float(ratio.removesuffix(" ×")) > 0
    assert (tmp_path / "out.md").read_text(encoding="utf-8") == done.stdout
    figures = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert len(figures["samples"]) == 4
    assert not figures["failures"]
    assert figures["environment"]["memory"] > 1 << 20


def test_one_of_each_kind_of_case(main, capsys):
    cases = "noop-map-chunked,in-1MB,out-1MB,both-1MB,slices-160MB,mlp,start-next"
    assert main("--quick", "--cases", cases, "--systems", "shmexec") == 0
    table = rows(capsys.readouterr().out)
    assert (
        len([row for row in table if row[0] == "shmexec"]) == 7
    )  # one for each family


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--systems", "nonesuch"], "unknown system 'nonesuch'"),
        (["--cases", "nonesuch"], "unknown case 'nonesuch'"),
        (["--repeats", "0"], "--repeats"),
        (["--json", "/nonesuch/out.json"], "cannot write to /nonesuch/out.json"),
        (["--plot", "/nonesuch/out.svg"], "cannot write to /nonesuch/out.svg"),
        (["--load", "nonesuch.json"], "there is no nonesuch.json"),
        (["--readme", "nonesuch.md"], "there is no nonesuch.md"),
    ],
)
def test_bad_arguments(main, capsys, arguments, complaint):
    with pytest.raises(SystemExit) as exit_status:
        main(*arguments)
    assert exit_status.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_failure_shows_in_table_and_exit_status(main, capsys, monkeypatch):
    from shmexec.comparing import fresh

    def fail(system: str, case: str, **_settings: object) -> None:
        raise fresh.Failed(f"{system} got {case} wrong")

    monkeypatch.setattr(fresh, "measure", fail)
    assert main("--quick", "--cases", "noop-latency", "--systems", "inprocess") == 1
    output = capsys.readouterr().out
    assert rows(output)[-1] == ["in process (no copy)", "FAILED", "-"]
    assert "FAILED: inprocess, noop-latency, repeat 1: inprocess got" in output


def test_a_peer_that_is_not_installed_is_named(main, capsys, monkeypatch):
    from shmexec.comparing import systems

    absent = replace(systems.SYSTEMS["loky"], package="nonesuch")
    monkeypatch.setitem(systems.SYSTEMS, "loky", absent)
    arguments = ("--quick", "--cases", "noop-latency", "--systems", "loky,inprocess")
    assert main(*arguments) == 0
    output = capsys.readouterr().out
    assert "- loky: not installed" in output
    assert [row[0] for row in rows(output)[3:]] == ["in process (no copy)"]


def test_a_peer_that_breaks_stops_nothing(main, capsys, monkeypatch):
    """The measuring process has no such system; the runner's has."""
    from shmexec.comparing import systems

    broken = replace(systems.SYSTEMS["inprocess"], name="broken", title="broken")
    monkeypatch.setitem(systems.SYSTEMS, "broken", broken)
    arguments = ("--quick", "--cases", "noop-latency", "--systems", "broken,inprocess")
    assert main(*arguments) == 1
    output = capsys.readouterr().out
    table = {row[0]: row[1] for row in rows(output)[3:]}
    assert table["broken"] == "FAILED"
    assert table["in process (no copy)"].endswith("×")
    assert "- FAILED: broken, noop-latency, repeat 1: KeyError: 'broken'" in output


def test_what_was_measured_before_an_interrupt_is_kept(main, capsys, monkeypatch):
    from shmexec.comparing import fresh
    from shmexec.comparing.sampling import Sample

    def measure(system: str, case: str, **_settings: object) -> Sample:
        if case == "noop-submit":
            raise KeyboardInterrupt
        return Sample(1e-5, None, 1)

    monkeypatch.setattr(fresh, "measure", measure)
    assert main("--quick", "--cases", "noop", "--systems", "inprocess") == 130
    output = capsys.readouterr().out
    assert "Interrupted: not all repeats are there." in output
    assert rows(output)[-1][:2] == ["in process (no copy)", "10.0 µs, 1 ×"]


class Liar(Caller):
    """Gives the result of the call before; the first one is right."""

    def __init__(self):
        self._results = []

    def call(self, fn, *args):
        self._results.append(fn(*args))
        return self._results[max(0, len(self._results) - 2)]

    def gather(self, fn, calls):
        return [self.call(fn, *args) for args in calls]


@pytest.mark.parametrize(
    "name",
    [
        "noop-latency",
        "noop-submit",
        "noop-map-chunked",
        "in-8KB",
        "shared-8KB",
        "mlp",
        "slices-160MB",
        "broadcast-256MB",
        "import",
    ],
)
def test_a_stale_result_is_noticed(name):
    from shmexec.comparing.cases import CASES
    from shmexec.comparing.sampling import Plan, WrongResult

    with pytest.raises(WrongResult):
        CASES[name].measure(Liar(), Plan.of(0, quick=True))


@pytest.mark.parametrize("name", ["in-8KB", "out-8KB", "both-8KB", "plus-64MB"])
def test_wrong_content_is_noticed(name):
    from shmexec.comparing import work
    from shmexec.comparing.cases import CASES
    from shmexec.comparing.sampling import Plan, WrongResult

    class Spoiler(Caller):
        """All but the middle of an array arrives."""

        def call(self, fn, *args):
            args = [arg.copy() if hasattr(arg, "shape") else arg for arg in args]
            for arg in args:
                if hasattr(arg, "shape"):
                    arg[len(arg) // 2] += 1
            result = fn(*args)
            if fn is work.fresh:
                result = result.copy()
                result[len(result) // 2] += 1
            return result

    with pytest.raises(WrongResult):
        CASES[name].measure(Spoiler(), Plan.of(0, quick=True))


def test_a_child_that_takes_too_long_is_stopped():
    from shmexec.comparing import fresh

    with pytest.raises(fresh.Failed, match="was stopped after"):
        fresh.measure(
            "shmexec", "noop-latency", nbytes=0, workers=1, quick=False, timeout=0.1
        )


def test_a_child_that_breaks_gives_its_last_words():
    from shmexec.comparing import fresh

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


# -- from figures to text --------------------------------------------------------------


def measured(repeats=3, **figures):
    """Results in which each "system:case" or limit has these figures."""
    from shmexec.comparing.results import Results
    from shmexec.comparing.sampling import Sample

    results = Results(2, repeats, quick=False)
    for name, values in figures.items():
        samples = [None if v is None else Sample(v, v * 3, 10) for v in values]
        system, _, case = name.partition(":")
        if case:
            results.samples[case, system] = samples
        else:
            results.limits[system, 0] = samples
    return results


NOOPS = {
    "ping-pong": [10e-6, 20e-6, 10e-6],
    "shmexec:noop-latency": [20e-6, 50e-6, 30e-6],
    "pool:noop-latency": [60e-6, 50e-6, 60e-6],
    "ray:noop-latency": [1e-3, None, 3e-3],
}


def table_of(results, *names):
    from benchmarks.report import markdown
    from shmexec.comparing.cases import CASES

    return rows(markdown(results, [CASES[name] for name in names]))


def test_ratios_are_taken_within_repeats():
    table = {row[0]: row[1:3] for row in table_of(measured(**NOOPS), "noop-latency")}
    assert table["*1 ×*"] == ["*ping-pong: 10.0 µs*", ""]
    assert table["shmexec"] == ["**30.0 µs**, 2.5 × (2–3)", "90.0 µs"]
    assert table["multiprocessing.Pool"] == ["60.0 µs, 6 × (2.5–6)", "180 µs"]
    assert table["Ray"] == ["2.00 ms, 200 × (100–300)", "6.00 ms"]


def test_the_arithmetic_of_targets():
    results = measured(**NOOPS)
    targets = [row for row in table_of(results, "noop-latency") if len(row) == 4]
    title = "no-op round trip, p50"
    assert targets[2:] == [
        [title, "≤ 3 × ping-pong", "2.5 ×", "yes"],
        [title, "≤ 0.5 × `multiprocessing.Pool.apply`", "0.5 ×", "yes"],
    ]
    results.samples["noop-latency", "ppe-fork"] = results.samples[
        "noop-latency", "pool"
    ]
    targets = [row for row in table_of(results, "noop-latency") if len(row) == 4]
    assert targets[-1] == [title, "≤ 0.3 × `ProcessPoolExecutor`", "0.5 ×", "**no**"]


def test_bounds_of_targets():
    from benchmarks.targets import Target
    from shmexec.comparing.quantities import BEST_PEER, memcpy, taken

    results = measured(
        **{
            "shmexec:a": [3.0, 4.0, 5.0],
            "pool:a": [6.0, 9.0, 10.0],
            "ray:a": [9.0, 8.0, 11.0],
            "inprocess:a": [1.0, 1.0, 2.0],
            "shmexec-nonative:a": [0.1, 0.1, 0.1],
        }
    )
    best = Target("", "", taken(BEST_PEER, "a"), taken("shmexec", "a"), at_least=2)
    assert (
        best.measured(results) == 2.0
    )  # of 6/3, 8/4, 10/5: neither ours nor in process
    assert best.met(2.0)
    assert not best.met(1.99)
    beyond = Target("", "", taken("shmexec", "a") - taken("inprocess", "a"), at_most=3)
    assert beyond.measured(results) == 3.0
    assert beyond.met(3.0)
    assert not beyond.met(3.01)
    half = taken("inprocess", "a").shared_out() + taken("ray", "a")
    assert results.values(half) == [9.5, 8.5, 12.0]
    missing = Target("", "", taken("shmexec", "a"), memcpy(8), at_most=1)
    assert missing.measured(results) is None


def test_all_targets_and_limits_name_cases_and_systems():
    from benchmarks.report import FAMILIES, README_CASES
    from benchmarks.targets import TARGETS
    from shmexec.comparing.cases import CASES
    from shmexec.comparing.quantities import BEST_PEER, LIMIT
    from shmexec.comparing.systems import SYSTEMS

    sums = [case.limit for case in CASES.values()]
    sums += [quantity for target in TARGETS for quantity in (target.value, target.to)]
    for term in (term for quantity in sums for term in quantity.terms):
        if term.system != LIMIT:
            assert term.case in CASES
            assert term.system in {*SYSTEMS, BEST_PEER}
            if term.system != BEST_PEER:
                assert SYSTEMS[term.system].takes_part(CASES[term.case]), term
    assert {case.family for case in CASES.values()} == {*FAMILIES}
    assert {*README_CASES} <= {*CASES}
    assert all((t.at_most is None) != (t.at_least is None) for t in TARGETS)


def test_figures_survive_a_file():
    from shmexec.comparing.results import Failure, as_json, from_json

    results = measured(**NOOPS)
    results.failures.append(Failure("ray", "noop-latency", 1, "it broke"))
    again = from_json(json.loads(json.dumps(as_json(results))))
    assert again == results


def test_the_readme_gets_the_table_between_its_markers(tmp_path):
    from benchmarks.report import write_readme

    readme = tmp_path / "README.md"
    markers = "<!-- benchmarks: begin -->\nof before\n<!-- benchmarks: end -->"
    readme.write_text(f"before\n{markers}\nafter\n", encoding="utf-8")
    for _ in range(2):
        write_readme(readme, measured(**NOOPS))
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- benchmarks: begin -->\n\n20")
    assert text.endswith("\n\n<!-- benchmarks: end -->\nafter\n")
    assert "of before" not in text
    header, _, noop, *_ = rows(text)
    assert header == ["", "shmexec", "multiprocessing.Pool", "Ray"]
    assert noop == ["one call", "30.0 µs", "2 ×", "75 ×"]
    write_readme(readme, measured(**NOOPS), tmp_path / "pictures" / "out.svg")
    assert "](pictures/out.svg)\n" in readme.read_text(encoding="utf-8")
    readme.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="benchmarks: begin"):
        write_readme(readme, measured(**NOOPS))


def test_the_plot_is_drawn_from_a_file_of_figures(tmp_path):
    pytest.importorskip("matplotlib")
    from shmexec.comparing.results import as_json

    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps(as_json(measured(**NOOPS))), encoding="utf-8")
    done = run("--load", str(figures), "--plot", str(tmp_path / "out.svg"))
    assert done.returncode == 0, done.stderr
    assert "30.0 µs" in done.stdout
    assert "<svg" in (tmp_path / "out.svg").read_text(encoding="utf-8")


def test_runs_are_put_together():
    from shmexec.comparing.quantities import BEST_PEER, taken
    from shmexec.comparing.results import as_json, combined, from_json, known

    one = measured(**NOOPS)
    other = measured(
        **{key: value for key, value in NOOPS.items() if "pool" not in key}
    )
    whole = from_json(combined([as_json(one), as_json(other)]))
    assert whole.runs == 2
    assert whole.repeats == one.repeats + other.repeats
    case = "noop-latency"
    assert whole.figures("shmexec", case) == one.figures("shmexec", case) * 2
    assert (
        whole.figures("pool", case)
        == one.figures("pool", case) + [None] * other.repeats
    )
    best = known(whole.values(taken(BEST_PEER, case)))
    assert best == known(one.figures("pool", case)), "the best one's own repeats only"
    with pytest.raises(ValueError, match="cannot be put together"):
        combined([as_json(one), {**as_json(other), "workers": 7}])
