"""The figures of reliability: measured, put into a table, and checked."""

from __future__ import annotations

import argparse
import json

import pytest

from benchmarks import leaks, recovery, storm
from benchmarks.breakable import POOLS, NeverCame, Pool
from benchmarks.reliability import Figures, failed, main, table
from shmexec.comparing.systems import SYSTEMS

pytestmark = pytest.mark.slow

STORM = {
    "faults": 4,
    "calls": 20,
    "failed": 0,
    "never": 0,
    "wrong": 0,
    "remade": 0,
    "lost": {},
    "processes": 0,
    "descriptors": 0,
    "names": 0,
    "memory": 0,
}


def cells(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_a_smoke_run_of_shmexec_loses_nothing(capfd, tmp_path):
    file = tmp_path / "figures.json"
    arguments = ["--quick", "--systems", "shmexec", "--json", str(file)]
    assert main(arguments) == 0, capfd.readouterr()
    found = cells(capfd.readouterr().out)
    assert found["faults tried"] == ["5"]
    for what in ("of those failed", "calls that never ended"):
        assert found[what] == ["**0**"]
    left = found["left: processes / descriptors / names / bytes"]
    assert left == ["0 / 0 / 0 / 0"]
    parts = json.loads(file.read_text(encoding="utf-8"))["shmexec"]
    assert {*parts} == {"deaths", "timeouts", "idle", "storm"}


def test_what_was_measured_is_shown():
    found = {
        "machine": Figures({"forks": [[0.001, 0.002, 0.003]]}),
        "shmexec": Figures(
            {
                "storm": [STORM, {**STORM, "memory": 64}],
                "deaths": [[0.01, 0.03], [0.02, None]],
                "timeouts": [[0.004]],
                "idle": [0.0002, 0.0001],
            }
        ),
        "pool": Figures(
            {
                "storm": [{**STORM, "failed": 3, "memory": None, "lost": {"X": 3}}],
                "deaths": [[None]],
                "timeouts": [None],
            },
            ["it broke"],
        ),
    }
    text = table(found)
    rows = cells(text)
    assert rows["other calls run"] == ["40", "20"]
    assert rows["of those failed"] == ["**0**", "3"]
    left = rows["left: processes / descriptors / names / bytes"]
    assert left == ["0 / 0 / 0 / 64", "0 / 0 / 0 / –"]
    assert rows["from death to a reply of a new worker"] == [
        "20.0 ms (10.0–30.0); 1 of 4 never came",
        "never came",
    ]
    assert rows["the same, × the least¹"] == ["10.0 ×", "–"]
    slot = rows["from time-out to the next call in that slot"]
    assert slot == ["4.0 ms (4.0–4.0)", "–"]
    idle = rows["idle CPU of 8 workers, of one core"]
    assert idle == ["0.015 % (0.010–0.020)", "–"]
    assert "- multiprocessing.Pool: calls lost with X 3" in text
    assert "- FAILED: multiprocessing.Pool: it broke" in text


@pytest.mark.parametrize(
    "what", ["failed", "never", "wrong", "remade", "processes", "descriptors", "memory"]
)
def test_a_loss_of_shmexec_is_a_failure_and_a_peers_is_not(what):
    bad, good = [{**STORM, what: 1}], [STORM]
    assert failed({"shmexec": Figures({"storm": bad})})
    peer = Figures({"storm": bad})
    assert not failed({"shmexec": Figures({"storm": good}), "pool": peer})


class Broken(Pool):
    """Runs every call here; loses every third, and is wrong about every fourth."""

    made = 0

    def submit(self, fn, *args):
        Broken.made += 1
        return argparse.Namespace(result=lambda timeout: self._run(fn, args, timeout))

    def _run(self, fn, args, _timeout):
        Broken.made += 1
        if fn.__name__ != "plus_one":
            return "told nothing"
        if Broken.made % 3 == 0:
            raise NeverCame
        return fn(*args) + (Broken.made % 4 == 0)

    def close(self):
        pass


def test_what_goes_wrong_is_counted(monkeypatch):
    monkeypatch.setitem(POOLS, "pool", Broken)
    monkeypatch.setattr(Broken, "made", 0)
    monkeypatch.setattr(
        storm.breaking, "FAULTS", [storm.breaking.Fault("X", storm.breaking.recurse)]
    )
    counts = storm.run("pool", storm.Storm(2, 6, 0.1, 1))
    assert counts["faults"] == 2
    assert counts["calls"] == 12
    assert counts["failed"] == counts["never"] == counts["lost"]["X"] > 0
    assert counts["wrong"] > 2  # both faults, and some results
    assert counts["memory"] is None


def test_a_descriptor_that_stays_open_is_a_leak(tmp_path):
    before = leaks.held()
    with (tmp_path / "file").open("w"):
        assert leaks.left(before, 0.0)["descriptors"] == 1
    assert leaks.left(before, 0.0)["descriptors"] == 0


def test_the_least_is_measured():
    assert all(0 < seconds < 10 for seconds in recovery.forks(2))


def test_all_pools_are_systems():
    assert {*POOLS} <= {*SYSTEMS}
