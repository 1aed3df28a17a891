"""Programs as people write them change one line, their import, and say the same."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

import shmexec

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "users"
BEFORE = "from concurrent.futures import ThreadPoolExecutor as Executor\n"
AFTER = "from shmexec import Executor\n"
NEEDS = {"evolve": "scipy", "sample": "emcee", "infer": "torch", "groups": "pandas"}


@pytest.mark.parametrize("name", NEEDS)
def test_one_line_is_changed(name, tmp_path, capsys):
    pytest.importorskip(NEEDS[name])
    source = (FOLDER / f"{name}.py").read_text()
    assert source.count(BEFORE) == 1
    said = []
    for line in (BEFORE, AFTER):
        path = tmp_path / f"{name}.py"
        path.write_text(source.replace(BEFORE, line))
        # As `python name.py` runs it: what it defines is in no module to be imported.
        ended = runpy.run_path(str(path), run_name="__main__")
        assert (ended["Executor"] is shmexec.Executor) == (line is AFTER)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert len(said[0]) > 40


def _bowl(point):
    return (point[0] - 0.3) ** 2 + (point[1] + 0.2) ** 2


def _waves(x):
    return np.cos(np.arange(5) * x)


def test_other_workers_of_scipy():
    grid = (slice(-1, 1, 0.25), slice(-1, 1, 0.25))
    with shmexec.Executor(2) as ex:
        found = scipy.optimize.brute(_bowl, grid, finish=None, workers=ex.map)
        integral, _ = scipy.integrate.quad_vec(_waves, 0, 1, workers=ex.map)
    assert np.array_equal(found, scipy.optimize.brute(_bowl, grid, finish=None))
    assert np.array_equal(integral, scipy.integrate.quad_vec(_waves, 0, 1)[0])
