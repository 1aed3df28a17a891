"""Deadlines, as far as they need no clock."""

from __future__ import annotations

import pytest

from shmexec.deadline import Deadline


@pytest.mark.parametrize(
    ("left", "wanted", "given"),
    [(None, None, None), (None, 5.0, 5.0), (0.0, None, 0.0), (0.0, 5.0, 0.0)],
)
def test_a_wait_takes_what_is_left_at_most(left, wanted, given):
    assert Deadline(left).within(wanted) == given


def test_a_short_wait_takes_what_it_wants():
    deadline = Deadline(1000.0)
    assert deadline.within(5.0) == 5.0
    assert 0 < deadline.within(None) <= 1000.0
    assert not deadline.passed()
    assert Deadline(0.0).passed()
