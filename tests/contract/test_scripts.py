"""Scripts: a file loaded once per worker, its functions called often."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import shmexec
from tests.waiting import wait_until

pytestmark = pytest.mark.one_kind


@pytest.fixture
def write(tmp_path):
    """Write a file below the test's folder; its path."""

    def write(text: str, name: str = "model.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


COUNTING = """
    import os
    from pathlib import Path

    with Path(__file__).with_name("loads").open("a") as file:
        print(os.getpid(), file=file)
    n = 0

    def count(fails=False, end=False):
        global n
        n += 1
        if fails:
            raise TypeError(f"call {n}")
        if end:
            os._exit(3)
        return n

    def pid():
        return os.getpid()

    def same(*args, **kwargs):
        return args, kwargs

    def through(gate, value=None):
        gate.wait()
        return value
    """


def loads(path: Path) -> dict[str, int]:
    """How often each process loaded the script."""
    return Counter(path.with_name("loads").read_text().split())


# -- loading ---------------------------------------------------------------------------


@pytest.mark.every_start
def test_loaded_once_in_each_worker_and_state_stays(make_executor, write):
    path = write(COUNTING)
    executor = make_executor(1)
    model = executor.script(path)
    results = []
    for number in range(1, 51):
        future = model.count(number == 20)
        if number == 20:
            with pytest.raises(TypeError, match="call 20"):
                future.result()
            results.append(number)
        else:
            results.append(future.result())
    assert results == list(range(1, 51))
    assert list(loads(path).values()) == [1]


def test_each_worker_loads_it_before_its_first_call(make_executor, write, gate):
    path = write(COUNTING)
    model = make_executor(2).script(path)
    assert sum(loads(path).values()) == 1
    futures = [model.through(gate, i) for i in range(2)]
    pids = gate.arrived(2)
    gate.open()
    assert [f.result() for f in futures] == [0, 1]
    assert loads(path) == {str(pid): 1 for pid in pids}


def test_a_replaced_worker_loads_it_again(make_executor, write):
    path = write(COUNTING)
    model = make_executor(1).script(path)
    assert [model.count().result() for _ in range(3)] == [1, 2, 3]
    with pytest.raises(shmexec.WorkerDied, match=r"model\.count"):
        model.count(end=True).result()
    assert [model.count().result() for _ in range(2)] == [1, 2]
    assert list(loads(path).values()) == [1, 1]


def test_any_text_and_arrays_come_back_equal(executor, write):
    model = executor.script(write(COUNTING))
    texts = ["🦊👩‍👩‍👧", "漢字かな", "العربية", "\x00\ud7ff", "a\nb"]
    array = np.arange(100_000.0)
    args, kwargs = model.same(*texts, array, schlüssel="ß").result()
    assert list(args[:-1]) == texts
    assert np.array_equal(args[-1], array)
    assert args[-1].flags.writeable
    assert kwargs == {"schlüssel": "ß"}


def test_source_of_any_encoding_and_size(executor, tmp_path):
    latin = tmp_path / "latin.py"
    latin.write_bytes(
        "# coding: latin-1\nname = 'größe'\ndef f(): return name".encode("latin-1")
    )
    assert executor.script(latin).f().result() == "größe"
    noise = np.random.default_rng(0).bytes(100_000).hex()
    large = tmp_path / "large.py"
    large.write_text(
        f"n = 0\nx = '{noise}'\ndef f():\n global n; n += 1; return len(x)"
    )
    model = executor.script(large)
    assert {model.f().result() for _ in range(5)} == {200_000}


def test_neighbours_are_imported_absolutely_and_relatively(executor, write):
    write("def name(): return __name__", "near_by.py")
    write("from . import near_by\nwhat = near_by.name()", "nearer.py")
    model = executor.script(
        write(
            """
            import near_by
            from . import near_by as relative
            from .nearer import what

            def names():
                import near_by as again
                return near_by.name(), relative.name().endswith(".near_by"), what
            """
        )
    )
    names = model.names().result()
    assert names[:2] == ("near_by", True)
    assert names[2].endswith(".near_by")
    assert "near_by" not in sys.modules


def test_scripts_of_one_name_and_their_neighbours_are_apart(make_executor, write):
    executor = make_executor(1)
    text = "import helper_of_both\ndef f(): return helper_of_both.name"
    for folder in ("one", "two"):
        write(f"name = {folder!r}", f"{folder}/helper_of_both.py")
    one = executor.script(write(text, "one/model.py"))
    two = executor.script(write(text, "two/model.py"))
    assert [one.f().result(), two.f().result(), one.f().result()] == [
        "one",
        "two",
        "one",
    ]


def test_a_module_of_the_program_with_the_name_of_a_neighbour(
    make_executor, write, monkeypatch, tmp_path
):
    write(
        "def name(): return 'program'\ndef again(): return 'too'\ndef late(): return 3",
        "program/clashing_helper.py",
    )
    write("def name(): return 'script'", "script/clashing_helper.py")
    monkeypatch.syspath_prepend(tmp_path / "program")
    import clashing_helper

    try:
        executor = make_executor(1)
        assert executor.submit(clashing_helper.name).result() == "program"
        text = "import clashing_helper\ndef f(): return clashing_helper.name()"
        model = executor.script(write(text, "script/model.py"))
        assert model.f().result() == "script"
        assert executor.submit(clashing_helper.again).result() == "too"
        with pytest.raises(ZeroDivisionError):
            executor.script(write(f"{text}\n1 / 0", "script/broken.py"))
        assert executor.submit(clashing_helper.late).result() == 3
    finally:
        del sys.modules["clashing_helper"]


def test_more_functions_than_a_worker_keeps(make_executor, write):
    defined = "".join(f"def f{i}():\n    return count()\n" for i in range(300))
    model = make_executor(1).script(
        write(f"n = 0\ndef count():\n    global n\n    n += 1\n    return n\n{defined}")
    )
    numbers = [model[f"f{i % 300}"]() for i in range(400)]
    assert [f.result() for f in numbers] == [*range(1, 401)]


def test_its_main_block_does_not_run(executor, write):
    model = executor.script(
        write("x = 1\nif __name__ == '__main__':\n    x = 2\ndef f(): return x")
    )
    assert model.f().result() == 1


def test_dataclasses_and_exceptions_of_its_own_come_back(executor, write):
    model = executor.script(
        write(
            """
            from __future__ import annotations
            from dataclasses import dataclass

            @dataclass
            class Box:
                label: str

            class Odd(ValueError):
                pass

            def box(label): return Box(label)
            def odd(): raise Odd("oh")
            """
        )
    )
    assert model.box("a").result().label == "a"
    with pytest.raises(ValueError, match="oh") as caught:
        model.odd().result()
    assert type(caught.value).__name__ == "Odd"


def test_tracebacks_show_the_lines_that_ran(executor, write):
    path = write("# first\ndef f():\n    raise KeyError('x')  # the line\n")
    model = executor.script(path)
    path.write_text("something else\n" * 5)
    with pytest.raises(KeyError) as caught:
        model.f().result()
    text = str(caught.value.__cause__)
    assert f'File "{path}", line 3, in f' in text
    assert text.count("  File ") == 1
    assert "raise KeyError('x')  # the line" in text


CLASSES = """
    import enum, os
    from beside_classes import Part

    n = 0

    class Box:
        made = 0
        def __init__(self, value):
            Box.made += 1
            self.value = value
        def seen(self):
            return n
        class Lid:
            pass

    class Kind(enum.Enum):
        ROUND = 1

    def step():
        global n
        n += 1
        Box.made += 1
        return n

    def make(gate=None):
        if gate:
            gate.wait()
        return Box(5), Box.Lid(), Kind.ROUND, Part()

    def look(box, lid, kind, part, gate=None):
        if gate:
            gate.wait()
        same = type(box) is Box, type(lid) is Box.Lid, kind is Kind.ROUND
        return (*same, type(part) is Part, box.seen() == n, Box.made)
    """


def test_its_classes_keep_their_identity_there_and_back(make_executor, write):
    write("class Part: pass", "beside_classes.py")
    model = make_executor(1).script(write(CLASSES))
    parts = model.make().result()
    assert [type(part) for part in model.make().result()] == [*map(type, parts)]
    assert parts[0].value == 5
    assert [model.step().result() for _ in range(3)] == [1, 2, 3]
    # What came back has not replaced the methods there, nor what the class counts.
    assert model.look(*parts).result() == (True, True, True, True, True, 5)
    assert model.step().result() == 4


def test_its_classes_are_the_same_in_all_workers(make_executor, write, gate):
    write("class Part: pass", "beside_classes.py")
    model = make_executor(2).script(write(CLASSES))
    futures = [model.make(gate) for _ in range(2)]
    gate.arrived(2)
    gate.open(2)
    one, other = (future.result() for future in futures)
    assert [*map(type, one)] == [*map(type, other)]
    futures = [model.look(*one, gate) for _ in range(2)]
    gate.arrived(2)
    gate.open(2)
    assert [future.result()[:5] for future in futures] == [(True,) * 5] * 2


def test_an_argument_of_its_class_comes_to_a_new_worker(make_executor, write):
    write("class Part: pass", "beside_classes.py")
    path = write(CLASSES)
    parts = make_executor(1).script(path).make().result()
    executor = make_executor(1)
    assert executor.submit(lambda box: box.value, parts[0]).result() == 5  # not loaded
    executor.shutdown()
    model = make_executor(1).script(path)
    os.kill(executor_pid(model), signal.SIGKILL)
    assert model.options(retries=1).look(*parts).result()[:5] == (True,) * 5
    assert not [name for name in sys.modules if name.startswith("shmexec_scripts_")]


def executor_pid(model) -> int:
    return model._file.pool.pids()[0]


# -- scripts that cannot be loaded -----------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error", "line"),
    [
        ("x = 1\nimport no_such_module_at_all\n", ModuleNotFoundError, 2),
        ("def f(:\n", SyntaxError, 1),
        ("\n\nraise RuntimeError('no weights')\n", RuntimeError, 3),
        ("import sys\nsys.exit(5)\n", ImportError, 2),
    ],
    ids=["import", "syntax", "raises", "exit"],
)
def test_a_script_that_fails_fails_at_once(executor, write, text, error, line):
    path = write(text)
    with pytest.raises(error) as caught:
        executor.script(path)
    assert f'File "{path}", line {line}' in str(caught.value.__cause__)
    assert executor.submit(abs, -1).result() == 1


def test_a_script_that_ends_its_worker_is_not_tried_again(make_executor, write):
    path = write(COUNTING + "\n    os._exit(9)\n")
    executor = make_executor(1, retries=3)
    with pytest.raises(shmexec.WorkerDied, match=r"model\.py"):
        executor.script(path)
    assert sum(loads(path).values()) == 1
    assert executor.submit(abs, -1).result() == 1


def test_a_failure_in_another_worker_fails_that_call(make_executor, write, gate):
    path = write(
        """
        from pathlib import Path
        with Path(__file__).with_name("lock").open("x"):
            pass

        def through(gate):
            gate.wait()
        """
    )
    model = make_executor(2).script(path)
    first = model.through(gate)
    gate.arrived()
    with pytest.raises(FileExistsError) as caught:
        model.through(gate).result()
    assert f'File "{path}", line 3' in str(caught.value.__cause__)
    gate.open()
    first.result()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("missing.py", FileNotFoundError),
        ("", IsADirectoryError),
        ("notes.txt", ValueError),
    ],
)
def test_what_is_no_script_is_refused_before_anything_starts(
    make_executor, tmp_path, name, error
):
    (tmp_path / "notes.txt").touch()
    executor = make_executor(1)
    with pytest.raises(error):
        executor.script(tmp_path / name)
    assert executor.stats().submitted == 0
    with pytest.raises(TypeError):
        executor.script(5)


def test_what_it_keeps_is_no_shared_memory(make_executor, write):
    path = write(
        """
        import numpy as np
        from numpy._core.multiarray import get_handler_name

        weights = np.ones(100_000)

        class Model:
            def __init__(self):
                self.weights = np.ones(100_000)
            def where(self):
                made = np.ones(100_000)
                return [get_handler_name(a) for a in (weights, self.weights, made)]
        """
    )
    model = make_executor(1).script(path)
    for _ in range(2):
        kept, held, made = model["Model.where"]().result()
        assert kept == held == "default_allocator"
        assert made in {"default_allocator", "shmexec"}
    if shmexec.stats().native:
        assert made == "shmexec"


# -- functions -------------------------------------------------------------------------

OFFERING = '''
    import functools
    import numpy as np
    from dataclasses import dataclass
    from beside import borrowed

    def plain(x: int, *, scale: "float" = 1.5) -> float:
        """Scale it.

        Not a word more."""
        return x * scale

    async def later(x): return x
    def many(): yield 1
    async def many_later(): yield 1
    add = functools.partial(lambda a, b=2: a + b, 1)
    root = np.vectorize(lambda x: x**0.5)
    sqrt = np.sqrt
    _hidden = plain

    class Base:
        def inherited(self): return type(self).__name__

    class Classifier(Base):
        made = 0
        def __init__(self):
            type(self).made += 1
            self.calls = 0
        def predict(self, x, times=1):
            self.calls += 1
            return x * times, self.calls, self.made
        def __call__(self): return "called"
        @staticmethod
        def plain(x): return x
        @classmethod
        def name(cls): return cls.__name__
        @functools.lru_cache
        def kept(self, x): return x
        def _private(self): pass
        @property
        def value(self): return 5

    class NeedsArguments:
        def __init__(self, x): self.x = x
        def get(self): return self.x
        @classmethod
        def of(cls): return "of"
    '''


@pytest.fixture
def offering(write):
    write("def borrowed(): return 'borrowed'", "beside.py")
    return write(OFFERING)


def test_functions_says_what_there_is(executor, offering):
    infos = executor.script(offering).functions()
    assert {name: info.kind for name, info in infos.items()} == {
        "borrowed": "function",
        "plain": "function",
        "later": "async",
        "many": "generator",
        "many_later": "async generator",
        "add": "function",
        "root": "function",
        "Base.inherited": "function",
        "Classifier.predict": "function",
        "Classifier.__call__": "function",
        "Classifier.plain": "function",
        "Classifier.name": "function",
        "Classifier.kept": "function",
        "Classifier.inherited": "function",
        "NeedsArguments.get": "function",
        "NeedsArguments.of": "function",
    }
    plain = infos["plain"]
    assert str(plain) == "plain(x: int, *, scale: float = 1.5) -> float"
    assert plain.doc == "Scale it."
    assert [*infos["Classifier.predict"].signature.parameters] == ["x", "times"]
    assert [*infos["Classifier.kept"].signature.parameters] == ["x"]
    with pytest.raises(TypeError):
        infos["new"] = plain


def test_all_says_what_is_offered(executor, write):
    model = executor.script(
        write("__all__ = ['dumps']\nfrom json import dumps\ndef f(): return 1")
    )
    assert [*model.functions()] == ["dumps"]
    assert model.dumps([1]).result() == "[1]"


def test_methods_are_those_of_one_instance_per_worker(make_executor, offering):
    model = make_executor(1).script(offering)
    assert model["Classifier.predict"](2).result() == (2, 1, 1)
    assert model["Classifier.predict"](2, times=3).result() == (6, 2, 1)
    assert model["Classifier.__call__"]().result() == "called"
    assert model["Classifier.inherited"]().result() == "Classifier"
    assert model["Classifier.kept"](4).result() == 4


def test_static_and_class_methods_need_no_instance(executor, offering):
    model = executor.script(offering)
    assert model["Classifier.plain"](2).result() == 2
    assert model["Classifier.name"]().result() == "Classifier"
    assert model["NeedsArguments.of"]().result() == "of"
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        model["NeedsArguments.get"]().result()


def test_callable_objects(executor, offering):
    model = executor.script(offering)
    assert model.add().result() == 3
    assert model.root(np.arange(3.0)).result()[1] == 1
    assert model.borrowed().result() == "borrowed"


def test_a_function_that_the_script_replaces(make_executor, write):
    model = make_executor(1).script(
        write("def f():\n    global f\n    f = lambda: 'new'\n    return 'old'")
    )
    assert [model.f().result(), model.f().result()] == ["old", "new"]


def test_a_write_to_a_shared_argument_names_the_parameter(make_executor, write):
    model = make_executor(1).script(write("def f(table):\n    table[0] = 1"))
    with pytest.raises(ValueError, match="read-only") as caught:
        model.f(shmexec.share(np.zeros(100_000))).result()
    assert "table (argument 0, float64 (100000,))" in caught.value.__notes__[0]


@pytest.mark.parametrize("error", [AttributeError, KeyError, shmexec.UnknownFunction])
def test_an_unknown_name_says_what_there_is(executor, offering, error):
    model = executor.script(offering)
    with pytest.raises(error, match=r"'plian'.*'plain'.*many_later") as caught:
        _ = model.plian
    assert caught.value.closest == "plain"
    assert "did you mean 'plain'? It has" in str(caught.value)
    with pytest.raises(error, match=r"'Classifier\.predict'") as caught:
        model["Clasifier.predict"]
    with pytest.raises(error, match=r"did you mean 'Classifier\.predict'\? It has"):
        _ = model.predit
    assert "root" in caught.value.names
    assert not hasattr(model, "_repr_html_")
    assert {"plain", "functions", "reload"} <= set(dir(model))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2), {}), ((1,), {"scal": 2}), ((1,), {"x": 2})],
)
def test_wrong_arguments_are_not_sent(executor, offering, args, kwargs):
    model = executor.script(offering)
    before = executor.stats().submitted
    with pytest.raises(TypeError, match=r"plain\(x: int, \*, scale") as caught:
        model.plain(*args, **kwargs)
    assert isinstance(caught.value, shmexec.WrongArguments)
    assert executor.stats().submitted == before


def test_a_type_error_of_its_own_comes_through_the_future(executor, write):
    model = executor.script(write("def f(x): return len(x)"))
    future = model.f(5)
    with pytest.raises(TypeError, match="has no len") as caught:
        future.result()
    assert not isinstance(caught.value, shmexec.WrongArguments)


def test_any_names_of_arguments(executor, write):
    model = executor.script(write("def f(self, name, fn): return self, name, fn"))
    assert model.f(self=1, name=2, fn=3).result() == (1, 2, 3)
    assert str(inspect.signature(model.f)) == "(self, name, fn)"


def test_names_that_the_handle_has_itself(executor, write):
    model = executor.script(write("def reload(): return 'theirs'"))
    assert model["reload"]().result() == "theirs"
    assert model.reload() is False


def test_options_for_some_calls(make_executor, write, gate):
    path = write(
        """
        import os, signal
        from pathlib import Path

        def stay(gate):
            gate.arrive()
            signal.pause()

        def once():
            mark = Path(__file__).with_name("mark")
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return "done"
        """
    )
    model = make_executor(1).script(path)
    with pytest.raises(shmexec.CallTimeout):
        model.options(timeout=0.2).stay(gate).result()
    assert model.options(retries=1).once().result() == "done"


def test_options_for_all_calls_of_one(make_executor, write):
    path = write(
        """
        import signal

        def stay():
            signal.pause()
        """
    )
    executor = make_executor(1)
    model = executor.options(timeout=0.2).script(path)
    with pytest.raises(shmexec.CallTimeout):
        model.stay().result()


# -- new versions ----------------------------------------------------------------------


def test_reload_notices_a_changed_file(make_executor, write):
    path = write(COUNTING)
    model = make_executor(2).script(path)
    assert model.count().result() == 1
    assert model.reload() is False
    os.utime(path)
    assert model.reload() is False
    count = model.count
    write("def count(): return 'new'\ndef more(): return 1")
    assert count().result() != "new"
    assert model.reload() is True
    assert {count().result() for _ in range(5)} == {"new"}
    assert model.more().result() == 1
    with pytest.raises(shmexec.UnknownFunction):
        _ = model.pid


def test_a_broken_version_leaves_the_one_before_in_use(make_executor, write):
    path = write(COUNTING)
    model = make_executor(1).script(path)
    assert model.count().result() == 1
    write("def count(: pass")
    for _ in range(2):
        with pytest.raises(SyntaxError):
            model.reload()
    with pytest.raises(TypeError, match="call 2") as caught:
        model.count(fails=True).result()
    assert 'raise TypeError(f"call {n}")' in str(caught.value.__cause__)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        model.reload()
    assert model.count().result() == 3
    write("def count(): return 'mended'")
    assert model.reload() is True
    assert model.count().result() == "mended"


def test_calls_keep_the_version_they_were_submitted_with(make_executor, write, gate):
    path = write(COUNTING)
    model = make_executor(1).script(path)
    first = model.through(gate, 1)
    gate.arrived()
    second = model.count()
    write("def count(): return 'new'")
    changed = []
    thread = threading.Thread(target=lambda: changed.append(model.reload()))
    thread.start()
    gate.open()
    thread.join()
    assert changed == [True]
    assert [first.result(), second.result()] == [1, 1]
    assert model.count().result() == "new"


def test_a_new_version_has_new_neighbours(make_executor, write):
    write("x = 1", "helper_to_change.py")
    text = "import helper_to_change\nfrom .helper_to_change import x as y\n"
    model = make_executor(1).script(
        write(text + "def f(): return helper_to_change.x, y")
    )
    assert model.f().result() == (1, 1)
    write("x = 10", "helper_to_change.py")
    write(text + "def f(): return helper_to_change.x, y, 'new'")
    assert model.reload()
    assert model.f().result() == (10, 10, "new")


def test_a_broken_version_leaves_the_neighbours_in_use(make_executor, write):
    write("x = 1\ndef more(): return x", "helper_that_stays.py")
    text = "import helper_that_stays\nfrom . import helper_that_stays as relative\n"
    model = make_executor(1).script(
        write(
            text
            + "def f():\n    import helper_that_stays as now\n"
            + "    from . import helper_that_stays as near\n"
            + "    return now is helper_that_stays, near is relative"
        )
    )
    write(text + "raise ValueError('broken')")
    with pytest.raises(ValueError, match="broken"):
        model.reload()
    assert model.f().result() == (True, True)


def test_autoreload(make_executor, write):
    path = write(COUNTING)
    model = make_executor(2).script(path, autoreload=True)
    assert model.count().result() == 1
    write("def count(): return 'new'\ndef more(): return 1")
    assert model.more().result() == 1
    assert {model.count().result() for _ in range(5)} == {"new"}
    write("def count(): return 1 / 0\n1 / 0")
    with pytest.raises(ZeroDivisionError):
        model.count()
    assert model.count().result() == "new"  # told once
    write("def count(): return 2\nopen('/no/such/weights')")
    with pytest.raises(FileNotFoundError, match="weights"):
        model.count()
    assert model.count().result() == "new"
    path.unlink()
    assert model.count().result() == "new"
    write("def count(): return 'mended'")
    assert model.count().result() == "mended"


def test_without_autoreload_nothing_changes(make_executor, write, gate):
    path = write(COUNTING)
    model = make_executor(2).script(path)
    write("def through(gate, value=None): return 'new'")
    futures = [model.through(gate, i) for i in range(2)]
    gate.arrived(2)  # also in the worker that loads it only now
    gate.open()
    assert [f.result() for f in futures] == [0, 1]


# -- pools of its own ------------------------------------------------------------------


def test_load_has_a_pool_of_its_own(write, monkeypatch):
    monkeypatch.delenv("SHMEXEC_WORKERS", raising=False)
    with shmexec.load(write(COUNTING)) as model:
        assert model.count().result() == 1
        assert model.stats().max_workers == 1
        assert model.options(timeout=9).count().result() == 2
    with pytest.raises(shmexec.PoolClosed):
        model.count()
    model.close()


def test_load_takes_workers_and_settings(write, monkeypatch):
    path = write(COUNTING)
    monkeypatch.setenv("SHMEXEC_WORKERS", "3")
    with shmexec.load(path) as model:
        assert model.stats().max_workers == 3
    with shmexec.load(path, workers=2, name="models") as model:
        assert model.stats().max_workers == 2
        assert model.stats().name == "models"
    with pytest.raises(ValueError, match="workers must"):
        shmexec.load(path, workers=0)
    with pytest.raises(TypeError, match="no_such_setting"):
        shmexec.load(path, no_such_setting=1)


def test_load_of_a_broken_script_leaves_nothing_behind(write):
    with pytest.raises(ZeroDivisionError):
        shmexec.load(write("1 / 0"))


def test_in_this_process(write):
    path = write(COUNTING)
    before = [*sys.path]
    modules = {*sys.modules}
    try:
        with shmexec.load(path, in_process=True) as model:
            assert [model.count().result() for _ in range(3)] == [1, 2, 3]
            assert model.pid().result() == os.getpid()
            with pytest.raises(TypeError, match="call 4"):
                model.count(fails=True).result()
    finally:
        sys.path[:] = before
        for name in {*sys.modules} - modules:
            if name.startswith("shmexec_scripts_"):
                del sys.modules[name]


def test_an_executor_that_only_its_script_holds_lives_on(write):
    model = shmexec.Executor(1).script(write(COUNTING))
    assert model.count().result() == 1
    os.kill(model.pid().result(), signal.SIGKILL)
    assert model.count().result() in {1, 2}
    model._file._owner.shutdown()


# -- results that are kept -------------------------------------------------------------

KEEPING = """
    import numpy as np
    from pathlib import Path

    def ran(what="f"):
        with Path(__file__).with_name("ran").open("a") as file:
            print(what, file=file)

    def f(x, y=0, *more, scale=1, **others):
        ran()
        return x * scale

    def fails():
        ran("fails")
        raise ValueError("no")

    class Model:
        def half(self, x):
            ran("half")
            return x / 2
    """


@pytest.fixture
def ran(tmp_path):
    """How often a function of the script has run."""

    def ran(what: str = "f") -> int:
        path = tmp_path / "ran"
        return path.read_text().split().count(what) if path.exists() else 0

    return ran


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_results_are_kept(executor, write, ran, tmp_path, where):
    cache = "1MB" if where == "memory" else tmp_path / "kept"
    model = executor.script(write(KEEPING), cache=cache)
    x = np.arange(10_000.0)
    first = model.f(x)
    expected = x.copy()
    assert not first.cached
    result = first.result()
    result[:] = -1  # the caller's own
    for _ in range(2):
        again = model.f(x)
        assert again.cached
        assert again.done()
        result = again.result()
        assert np.array_equal(result, expected)
        result[:] = -1
    assert ran() == 1
    x[0] = 5
    assert model.f(x).result()[0] == 5
    assert model["Model.half"](4).result() == 2
    assert model["Model.half"](4).cached
    assert ran("half") == 1


def test_ways_to_pass_the_same_arguments(executor, write, ran):
    model = executor.script(write(KEEPING), cache="1MB")
    assert model.f(3, scale=2, y=0).result() == 6
    same = [
        model.f(3, 0, scale=2),
        model.f(scale=2, x=3, y=0),
        model.options(priority=1).f(x=3, y=0, scale=2),
    ]
    assert all(future.cached for future in same)
    other = [model.f(3.0, 0, scale=2), model.f(3, 0, 1, scale=2), model.f(3, 0, z=2)]
    assert [future.result() for future in other] == [6.0, 6, 3]
    assert not any(future.cached for future in other)


def test_errors_and_uncommon_arguments_are_not_kept(make_executor, write, ran):
    model = make_executor(1).script(write(KEEPING), cache="1MB")
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            model.fails().result()
    assert ran("fails") == 2
    board = shmexec.zeros(2)  # what is in it may change at any time
    for _ in range(2):
        assert model.f(board).result().sum() == 0
    assert ran() == 2
    with pytest.raises(shmexec.SerializationError):
        model.f(i for i in ()).result()


def test_a_result_that_is_too_large_is_not_kept(executor, write):
    model = executor.script(write(KEEPING), cache="1KB")
    for _ in range(2):
        future = model.f(np.ones(1000))
        assert not future.cached
        future.result()


def test_results_belong_to_a_version(make_executor, write, tmp_path):
    cache = tmp_path / "kept"
    text = "import helper_of_kept\ndef f(): return helper_of_kept.x"
    write("x = 1", "helper_of_kept.py")
    path = write(text)
    model = make_executor(1).script(path, cache=cache)
    assert model.f().result() == 1
    assert model.f().cached
    write(text + "  # changed")
    assert model.reload()
    future = model.f()
    assert (future.result(), future.cached) == (1, False)
    write(text)
    assert model.reload()
    assert model.f().cached
    write("x = 20", "helper_of_kept.py")
    other = make_executor(1).script(path, cache=cache)
    assert other.f().result() == 20  # its neighbour has changed
    assert other.f().cached


def test_kept_results_need_an_open_pool(write):
    with shmexec.load(write(KEEPING), cache="1MB") as model:
        assert model.f(1).result() == 1
        assert model.f(1).cached
    with pytest.raises(shmexec.PoolClosed):
        model.f(1)


def test_no_future_has_a_kept_result_by_itself(executor, write):
    assert executor.submit(abs, 1).cached is False
    assert executor.script(write(COUNTING)).pid().cached is False


def test_kept_results_in_this_process(write):
    before = [*sys.path]
    try:
        with shmexec.load(write(KEEPING), in_process=True, cache="1MB") as model:
            model.f(np.ones(5)).result()[:] = 0
            assert model.f(np.ones(5)).cached
            assert model.f(np.ones(5)).result().sum() == 5
    finally:
        sys.path[:] = before


# -- generators and coroutines ---------------------------------------------------------

FLOWING = """
    import asyncio
    import numpy as np
    from pathlib import Path

    base = 10
    loops = set()

    def count(n, path=None):
        try:
            for i in range(n):
                yield base + i
        finally:
            if path:
                Path(path).touch()

    async def count_later(n):
        for i in range(n):
            await asyncio.sleep(0)
            yield base + i

    async def double(x):
        await asyncio.sleep(0)
        loops.add(asyncio.get_running_loop())
        return 2 * x, len(loops)

    class Model:
        def __init__(self):
            self.bias = 5
        def tokens(self, n):
            yield from range(self.bias, self.bias + n)
        async def double(self, x):
            return 2 * x + self.bias

    def breaks():
        yield 1
        raise KeyError("broken")
    """


def test_generators_stream(executor, write):
    model = executor.script(write(FLOWING), cache="1MB")
    for _ in range(2):  # streams are not kept
        assert [*model.count(3)] == [10, 11, 12]
    assert [*model.count_later(3)] == [10, 11, 12]
    assert [*model["Model.tokens"](2)] == [5, 6]
    with pytest.raises(shmexec.WrongArguments):
        model.count()
    stream = model.breaks()
    assert next(stream) == 1
    with pytest.raises(KeyError, match="broken"):
        next(stream)


def test_leaving_a_stream_closes_the_generator(make_executor, write, tmp_path):
    model = make_executor(1).script(write(FLOWING)).options(buffersize=2)
    mark = tmp_path / "closed"
    for item in model.count(10**9, str(mark)):
        if item == 15:
            break
    assert model.double(1).result()[0] == 2  # the worker is free
    assert wait_until(mark.exists)
    with pytest.raises(ValueError, match="buffersize"):
        model.options(buffersize=0)


def test_streams_from_asyncio(executor, write):
    model = executor.script(write(FLOWING))

    async def main():
        items = [item async for item in model.count_later(3)]
        value, _ = await asyncio.wrap_future(model.double(4))
        return items, value

    assert asyncio.run(main()) == ([10, 11, 12], 8)


def test_coroutines_share_one_loop_and_are_kept(make_executor, write):
    model = make_executor(1).script(write(FLOWING), cache="1MB")
    assert [model.double(i).result() for i in range(3)] == [(0, 1), (2, 1), (4, 1)]
    assert model.double(1).cached
    assert model["Model.double"](1).result() == 7


def test_generators_in_this_process(write):
    before = [*sys.path]
    try:
        with shmexec.load(write(FLOWING), in_process=True) as model:
            assert [*model.count(3)] == [10, 11, 12]
            assert model.double(1).result()[0] == 2
    finally:
        sys.path[:] = before


# -- in a pool of its own --------------------------------------------------------------


def test_a_worker_of_load_is_ready_when_it_is_idle(start_method, write):
    path = write(COUNTING)
    with shmexec.load(path, mp_context=start_method) as model:
        pid = model.pid().result()
        with pytest.raises(shmexec.WorkerDied):
            model.count(end=True).result()
        # A call of something else: the replacement has loaded the script all the same,
        # so that no time-out of the script's next call includes it.
        other = model._executor.submit(os.getpid).result()
        assert loads(path) == {str(pid): 1, str(other): 1}


def test_load_keeps_an_initializer(start_method, write):
    path = write(
        "import os\nseen = os.environ.get('SET_FIRST')\ndef get(): return seen"
    )
    settings = {
        "initializer": lambda value: os.environ.update(SET_FIRST=value),
        "initargs": ("yes",),
        "mp_context": start_method,
    }
    with shmexec.load(path, **settings) as model:
        assert model.get().result() == "yes"
    with pytest.raises(TypeError, match="initializer must be callable"):
        shmexec.load(path, initializer=3)


def test_load_tells_what_the_script_raised_having_run_it_once(start_method, write):
    path = write(COUNTING + "\n    raise LookupError('not found')\n")
    with pytest.raises(LookupError, match="not found"):
        shmexec.load(path, mp_context=start_method)
    assert set(loads(path).values()) == {1}
