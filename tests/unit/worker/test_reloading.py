"""What becomes of the objects of a module that is reloaded in a worker."""

from __future__ import annotations

import importlib
import sys

import pytest

from shmexec.worker.reloading import reload_all

NAME = "reloaded_in_worker"
TEXT = """
import enum

class Color(enum.Enum):
    RED = 1
    BLUE = 2

    def shown(self):
        return "first"

class Point:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x

    def shown(self):
        return "first"
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """One whose file is another one than it was imported from."""
    file = tmp_path / f"{NAME}.py"
    file.write_text(TEXT)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module(NAME)
    file.write_text(TEXT.replace("first", "second"))
    yield module
    del sys.modules[NAME]


def test_an_enum_keeps_its_members(module):
    color = module.Color
    red = color.RED
    reload_all([NAME])
    assert module.Color is not color
    assert list(color) == [red, color.BLUE]
    assert color(1) is color["RED"] is color.RED is red
    assert type(red) is color
    assert [each.RED.shown() for each in (color, module.Color)] == ["second"] * 2
    assert module.Color(1) is module.Color.RED is not red


def test_instances_with_slots(module):
    point, kept = module.Point, module.Point(1)
    reload_all([NAME])
    assert (kept.x, kept.shown()) == (1, "second")
    assert type(kept) is module.Point
    made = point(2)  # by who imported the class before
    made.x += 1
    assert (made.x, made.shown()) == (3, "second")


def test_one_that_ends_the_program_stays_as_it_was(module, capsys):
    color = module.Color
    with open(module.__file__, "a") as file:
        file.write("raise SystemExit(3)\n")
    reload_all([NAME])
    assert module.Color is color
    assert "SystemExit: 3" in capsys.readouterr().err
