"""``shmexec bench``: from anywhere, honest, and with what was measured if interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from shmexec.cli import main
from shmexec.comparing import fresh, systems
from shmexec.comparing.sampling import Sample

pytestmark = pytest.mark.slow

SECONDS = {
    "limit": [1e-5, 2e-5],
    "shmexec": [2e-5, 4e-5],
    "shmexec-share": [2e-5, 4e-5],
    "ppe-fork": [1e-5, 3e-5],
    "loky": [1e-5, 6e-5],
    "pool": [9e-5, 6e-5],
    "fork-per-call": [4e-3, 4e-3],
    "inprocess": [1e-7, 1e-7],
}
TWO = ("--cases", "noop-latency", "--repeats", "2", "--workers", "2")


@pytest.fixture
def measured(monkeypatch):
    """What was asked for; figures come from the table above."""
    asked = []

    def measure(system, case, **_settings):
        number = sum(each == (system, case) for each in asked)
        asked.append((system, case))
        return Sample(SECONDS[system][number], None, 1)

    monkeypatch.setattr(fresh, "measure", measure)
    return asked


def lines(text):
    """The cells of what looks like a row."""
    rows = [line.strip("│").split("│") for line in text.splitlines() if "│" in line]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_it_measures_where_there_is_nothing_but_the_package(tmp_path):
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not this one')")
    command = (
        *("bench", "--quick", "--peers", "fork-per-call", "--cases", "noop-latency"),
        *("--repeats", "1", "--workers", "1", "--json", "figures.json"),
        *("--plot", "figure.png"),
    )
    program = (
        f"import sys; from shmexec.cli import main; code = main({list(command)!r}); "
        "assert 'benchmarks' not in sys.modules; raise SystemExit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert {*lines(done.stdout)} == {"shmexec", "fork per call"}
    assert "one call: shmexec is " in done.stdout
    assert "[3/3] " in done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {each["system"] for each in figures["samples"]} == {
        "shmexec",
        "fork-per-call",
    }
    assert not figures["failures"]
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_who_is_faster_is_said(measured, capsys):
    assert main(["bench", *TWO, "--peers", "ppe-fork,pool", "fork-per-call"]) == 0
    text = capsys.readouterr().out
    table = lines(text)
    assert [*table] == [
        *("ProcessPoolExecutor (fork)", "shmexec", "multiprocessing.Pool"),
        "fork per call",
    ]
    assert table["shmexec"] == ["30.0 µs", "20.0 µs", "40.0 µs", "1", "2", ""]
    won = ["20.0 µs", "10.0 µs", "30.0 µs", "0.62", "1.2", "faster"]
    assert table["ProcessPoolExecutor (fork)"] == won
    assert table["multiprocessing.Pool"][3] == "3"
    assert "one call; limit: ping-pong, 15.0 µs" in text
    assert (
        "one call: ProcessPoolExecutor (fork) is 1.60 x as fast as shmexec; "
        "shmexec is 150 x as fast as fork per call"
    ) in text


def test_what_is_noise_is_no_victory(measured, capsys, monkeypatch):
    there = replace(systems.SYSTEMS["loky"], package=None)
    monkeypatch.setitem(systems.SYSTEMS, "loky", there)
    assert main(["bench", *TWO, "--peers", "loky"]) == 0
    text = capsys.readouterr().out
    assert lines(text)["loky"][-1] == "about even"
    assert "one call: loky is about even with shmexec (0.50 to 1.50 x its time)" in text


def test_systems_take_turns_and_limits_are_measured_with_them(measured, capsys):
    assert main(["bench", *TWO, "--peers", "pool"]) == 0
    assert [system for system, _ in measured] == [
        *("limit", "shmexec", "pool"),
        *("limit", "pool", "shmexec"),
    ]
    measured.clear()
    # The limit of a program is what it takes in process, with as many workers as it has.
    assert main(["bench", "--cases", "mlp", "--repeats", "1", "--peers", "pool"]) == 0
    assert {system for system, _ in measured} == {
        *("shmexec", "shmexec-share", "pool", "inprocess")
    }


def test_what_was_measured_is_shown_after_ctrl_c(monkeypatch, capsys, tmp_path):
    def measure(system, case, **_settings):
        if system == "pool":
            raise KeyboardInterrupt
        return Sample(SECONDS[system][0], None, 1)

    monkeypatch.setattr(fresh, "measure", measure)
    file = tmp_path / "figures.json"
    assert main(["bench", *TWO, "--peers", "pool", "--json", str(file)]) == 130
    said = capsys.readouterr()
    assert lines(said.out)["shmexec"][0] == "20.0 µs"
    assert "interrupted: not all repeats are there" in said.err
    assert json.loads(file.read_text())["interrupted"] is True


def test_a_failure_shows_in_table_and_exit_code(monkeypatch, capsys):
    def measure(system, case, **_settings):
        if system == "pool":
            msg = "WrongResult: echo(3) returned 2"
            raise fresh.Failed(msg)
        return Sample(SECONDS[system][0], None, 1)

    monkeypatch.setattr(fresh, "measure", measure)
    assert main(["bench", *TWO, "--peers", "pool"]) == 1
    text = capsys.readouterr().out
    assert lines(text)["multiprocessing.Pool"] == ["FAILED", "-", "-", "-", "-", ""]
    assert "FAILED: pool, noop-latency, repeat 1: WrongResult: echo(3)" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--peers", "nonesuch"], "there is no peer 'nonesuch'; shmexec bench --list"),
        (["--cases", "nonesuch"], "there is no case 'nonesuch'; shmexec bench --list"),
        (["--repeats", "0"], "--repeats"),
        (["--json", "/nonesuch/a.json"], "cannot write to /nonesuch/a.json"),
        (["--plot", "/nonesuch/a.png"], "cannot write to /nonesuch/a.png"),
        (["--plot", "a.txt"], "writes .png, .svg or .pdf, not a.txt"),
    ],
)
def test_bad_arguments(measured, capsys, arguments, complaint):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not measured


def test_what_is_not_installed_is_named_with_its_remedy(measured, capsys, monkeypatch):
    absent = replace(systems.SYSTEMS["pool"], package="nonesuch")
    monkeypatch.setitem(systems.SYSTEMS, "pool", absent)
    assert main(["bench", *TWO, "--peers", "pool"]) == 2
    assert "pool is not installed: pip install nonesuch" in capsys.readouterr().err
    monkeypatch.setattr("shmexec.cli.bench._PEERS", ("pool", "ppe-fork"))
    assert main(["bench", *TWO]) == 0
    assert "not installed: multiprocessing.Pool (pip" in capsys.readouterr().out
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert main(["bench", *TWO, "--plot", "a.png"]) == 2
    assert "pip install 'shmexec[bench]'" in capsys.readouterr().err


def test_the_choices_are_listed(capsys):
    assert main(["bench", "--list"]) == 0
    text = capsys.readouterr().out
    for name in (*systems.SYSTEMS, "noop-latency", "mlp"):
        assert name in text or name.startswith("shmexec")
