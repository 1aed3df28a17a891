"""Which modules the program has reloaded, and who is told."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

from shmexec.wire.reloads import NAME_AT_MOST, Reloads


@pytest.fixture
def make_module(tmp_path, monkeypatch):
    """Makes modules, in ``sys.modules``."""
    made = []

    def make(name):
        (tmp_path / f"{name}.py").write_text("value = 1\n")
        made.append(name)
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(str(tmp_path))
    yield make
    for name in made:
        del sys.modules[name]


@pytest.fixture
def module(make_module):
    """One of its own."""
    return make_module("reloaded_here")


def test_a_module_that_a_call_refers_to(module):
    reloads = Reloads()
    for _ in range(2):
        reloads.see(module)
    assert (reloads.stamp, reloads.since(0)) == (0, ([], 0))
    importlib.reload(module)
    for _ in range(2):
        reloads.see(module)
    assert reloads.stamp == 1
    assert reloads.since(0) == (["reloaded_here"], 1)
    assert reloads.since(1) == ([], 1)


def test_one_that_is_reloaded_again_is_named_once(module):
    reloads = Reloads()
    reloads.see(module)
    for _ in range(3):
        importlib.reload(module)
        reloads.see(module)
    assert reloads.since(0) == (["reloaded_here"], 3)
    assert reloads.since(2) == (["reloaded_here"], 3)


def test_all_are_looked_at_when_it_is_time(module):
    reloads = Reloads()
    reloads.look()
    importlib.reload(module)
    assert reloads.since(0) == ([], 0)
    reloads.look()
    assert reloads.since(0) == (["reloaded_here"], 1)


def test_they_are_told_in_the_order_in_which_they_were_reloaded(make_module):
    reloads = Reloads()
    others = [make_module(f"{letter}_reloaded_here") for letter in "abc"]
    reloads.look()
    one, two, three = others
    for module in (three, one, two):
        importlib.reload(module)
    reloads.look()
    assert reloads.since(0)[0] == [each.__name__ for each in (three, one, two)]
    importlib.reload(three)
    reloads.look()
    assert reloads.since(0)[0] == [each.__name__ for each in (one, two, three)]


def test_another_module_in_its_place_counts(module):
    reloads = Reloads()
    reloads.look()
    del sys.modules["reloaded_here"]
    importlib.import_module("reloaded_here")
    reloads.look()
    assert reloads.stamp == 1
    reloads.see(module)  # the old one, which nobody can import
    assert reloads.stamp == 1


def test_other_marks():
    reloads, marks = Reloads(), {"one": 1000.5, "two": 1000.5}
    reloads.watch(lambda: marks)
    assert reloads.stamp == 0
    marks |= {"one": 2000.5, "three": 2000.5}
    reloads.look()
    assert reloads.since(0) == (["one"], 1)


@pytest.mark.parametrize(
    "name", ["__main__", "shmexec", "shmexec.options", "x" * NAME_AT_MOST]
)
def test_what_is_never_reloaded(name):
    reloads, marks = Reloads(), {name: 1000.5}
    reloads.watch(lambda: marks)
    marks[name] = 2000.5
    reloads.look()
    assert reloads.stamp == 0


def test_one_made_by_hand_is_none_of_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "by_hand", ModuleType("by_hand"))
    other = ModuleType("by_hand")
    other.__spec__ = object()
    reloads = Reloads()
    for _ in range(3):
        reloads.see(sys.modules["by_hand"])
        reloads.see(other)
    assert reloads.stamp == 0
