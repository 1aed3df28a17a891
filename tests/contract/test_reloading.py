"""A module that the program reloads is reloaded in the workers, which go on."""

from __future__ import annotations

import importlib
import os
import sys

import pytest

from tests.contract import calls

FIRST = """
import helper_of_edited
from helper_of_edited import unit

class Base:
    scale = 1

class Model(Base):
    def __init__(self):
        self.seen = 0

    def process(self, x=0):
        self.seen += 1
        return ("first", self.seen)

    def reset(self):
        self.seen = 0

def version(x=0):
    return "first"

def remember(value):
    global remembered
    remembered = value

def recall():
    return remembered
"""
SECOND = FIRST.replace('"first"', '"second"').replace("x=0", "x=1")
SECOND += "    # longer\n"


class Edited:
    """A module in a folder of its own, edited and reloaded here."""

    def __init__(self, folder, patch):
        self.file = folder / "edited_module.py"
        self.file.write_text(FIRST)
        (folder / "helper_of_edited.py").write_text("def unit(): return 'm'\n")
        patch.syspath_prepend(str(folder))
        self.module = importlib.import_module("edited_module")
        self.helper = importlib.import_module("helper_of_edited")

    def reload(self, text):
        self.file.write_text(text)
        importlib.invalidate_caches()
        self.module = importlib.reload(self.module)


@pytest.fixture
def edited(tmp_path, monkeypatch):
    yield Edited(tmp_path, monkeypatch)
    for name in ("edited_module", "helper_of_edited"):
        del sys.modules[name]


def test_its_functions(make_executor, edited):
    executor = make_executor(1)
    old = edited.module.version
    pid = executor.submit(os.getpid).result()
    assert executor.submit(edited.module.version).result() == "first"
    edited.reload(SECOND)
    assert executor.submit(edited.module.version).result() == "second"
    assert list(executor.map(edited.module.version, range(3))) == ["second"] * 3
    assert executor.submit(old).result() == "first"  # as it would be here
    assert executor.submit(os.getpid).result() == pid


def test_functions_that_use_it(make_executor, edited):
    executor = make_executor(1)
    edited_module = edited.module
    assert executor.submit(lambda: edited_module.version() + "").result() == "first"
    edited.reload(SECOND)
    assert executor.submit(lambda: edited_module.version() + "").result() == "second"


def test_functions_that_the_worker_does_not_know_yet(make_executor, edited):
    executor = make_executor(1)
    module = edited.module
    assert executor.submit(module.version).result() == "first"
    edited.reload(SECOND + "def added(): return 'added'\n")
    added = module.added
    assert executor.submit(lambda: added() + module.version()).result() == "addedsecond"
    edited.reload(SECOND)
    model = module.Model
    is_one = executor.submit(lambda x: type(x) is model is module.Model, model())
    assert is_one.result()


@pytest.mark.one_kind
def test_who_has_it_of_before(make_executor, edited):
    """Names that other modules imported, and instances that live in the worker."""
    executor = make_executor(1)
    (edited.file.parent / "user_of_edited.py").write_text(
        "from edited_module import Model, version\n"
        "model = Model()\n"
        "def ask(): return version(), Model().process(), model.process()\n"
    )
    user = importlib.import_module("user_of_edited")
    try:
        first = ("first", ("first", 1), ("first", 1))
        assert executor.submit(user.ask).result() == first
        edited.reload(SECOND)
        executor.submit(edited.module.version).result()
        second = ("second", ("second", 1), ("second", 2))
        assert executor.submit(user.ask).result() == second
    finally:
        del sys.modules["user_of_edited"]


@pytest.mark.one_kind
def test_an_actor_keeps_its_state(make_executor, edited):
    executor = make_executor(1)
    with executor.actor(edited.module.Model) as node:
        assert node.process().result() == ("first", 1)
        edited.reload(SECOND)
        executor.submit(edited.module.version).result()  # here it is noticed
        assert node.process().result() == ("second", 2)


@pytest.mark.one_kind
def test_what_calls_have_put_there_stays(make_executor, edited):
    executor = make_executor(1, initializer=edited.module.remember, initargs=(7,))
    assert executor.submit(edited.module.recall).result() == 7
    edited.reload(SECOND)
    assert executor.submit(edited.module.recall).result() == 7


@pytest.mark.one_kind
def test_one_that_cannot_be_reloaded_there(make_executor, edited, capsys):
    executor = make_executor(1)
    assert executor.submit(edited.module.version).result() == "first"
    only_here = f"import os\nif os.getpid() != {os.getpid()}: raise OSError('no')\n"
    edited.reload(SECOND.replace('"second"', '"third"') + only_here)
    assert executor.submit(edited.module.version).result() == "first"
    assert "[edited_module cannot be reloaded here:" in capsys.readouterr().err
    edited.reload(SECOND)
    assert executor.submit(edited.module.version).result() == "second"


@pytest.mark.one_kind
def test_workers_that_start_later_import_it_once(make_executor, edited):
    executor = make_executor(1)
    assert executor.submit(edited.module.version).result() == "first"
    count = "import builtins; builtins.times = getattr(builtins, 'times', 0) + 1\n"
    edited.reload(SECOND + count)
    assert executor.submit(edited.module.version).result() == "second"
    executor.submit(calls.kill_me).exception()
    assert executor.submit(edited.module.version).result() == "second"
    assert executor.submit(lambda: __import__("builtins").times).result() == 1


@pytest.mark.one_kind
def test_a_pack_of_calls(make_executor, edited):
    executor = make_executor(1)
    version = edited.module.version
    assert {executor.submit(version).result() for _ in range(200)} == {"first"}
    edited.reload(SECOND)
    version = edited.module.version
    futures = [executor.submit(version) for _ in range(200)]
    assert {future.result() for future in futures} == {"second"}
