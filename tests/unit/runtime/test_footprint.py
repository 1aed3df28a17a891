"""Figures of one worker over time, and how steady growth is told from other growth."""

from __future__ import annotations

import pytest

from shmexec.runtime.footprint import GROWTH_AT_LEAST, Footprint, Growth

MB = 1 << 20


def grown(size_after, calls=100):
    """What is told of a worker that has ``size_after(n)`` bytes after n calls."""
    footprint = Footprint()
    footprint.start(size_after(0))
    for number in range(1, calls + 1):
        growth = footprint.mark(number, size_after(number))
        if growth is not None:
            return growth
    return None


def test_now_at_most_and_since_the_start():
    footprint = Footprint()
    assert (footprint.now, footprint.peak, footprint.growth) == (None, None, None)
    footprint.see(10)
    assert footprint.growth is None
    footprint.start(20)
    footprint.see(90)
    footprint.see(50)
    assert (footprint.now, footprint.peak, footprint.growth) == (50, 90, 30)


@pytest.mark.parametrize("each", [MB, 20 * MB])
def test_growth_by_the_same_with_every_call_is_told_in_figures(each):
    growth = grown(lambda n: 30 * MB + n * each)
    assert isinstance(growth, Growth)
    assert growth.nbytes == growth.calls * each >= GROWTH_AT_LEAST


@pytest.mark.parametrize(
    "size_after",
    [
        pytest.param(lambda n: 30 * MB + min(n, 1) * 500 * MB, id="loaded once"),
        pytest.param(
            lambda n: 30 * MB + min(n, 9) * 50 * MB, id="a cache that is full"
        ),
        pytest.param(lambda n: 30 * MB + (n % 2) * 200 * MB, id="up and down"),
        pytest.param(lambda n: 30 * MB + n * 1000, id="hardly any"),
        pytest.param(lambda n: 900 * MB - n * MB, id="less and less"),
    ],
)
def test_other_growth_is_not(size_after):
    assert grown(size_after) is None
