"""Which functions can be submitted, and what a worker knows of them.

Importable ones go by name; all others by value, and what they capture with them.
"""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest

from tests.contract import calls

pytestmark = pytest.mark.every_start

METHODS = ["fork", "forkserver", "spawn"]


def test_lambdas(executor):
    assert executor.submit(lambda x: x + 1, 1).result() == 2


def test_closures(executor):
    offset = 10

    def add(x):
        return x + offset

    assert list(executor.map(add, range(5))) == [10, 11, 12, 13, 14]


def test_recursive_local_functions(executor):
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    assert executor.submit(factorial, 5).result() == 120


def test_defaults_and_keyword_only_arguments(executor):
    def call(a, b=2, *, c=3):
        return a, b, c

    assert executor.submit(call, 1).result() == (1, 2, 3)
    assert executor.submit(call, 1, c=5).result() == (1, 2, 5)


@pytest.mark.parametrize("array", [np.ones(10), np.ones(100_000)], ids=["few", "many"])
def test_captured_arrays(executor, array):
    assert executor.submit(lambda: array * 2).result().sum() == 2 * array.sum()


@pytest.mark.parametrize(
    "fn",
    [abs, len, operator.neg, np.sum, np.exp, np.linalg.norm, sorted],
    ids=lambda fn: fn.__name__,
)
def test_builtins_and_ufuncs(executor, fn):
    argument = -3.0 if fn in (abs, operator.neg, np.exp) else [4.0, 3.0]
    assert executor.submit(fn, argument).result() == fn(argument)


def test_partials(executor):
    assert executor.submit(functools.partial(calls.add, b=5), 1).result() == 6
    assert executor.submit(functools.partial(lambda a, b: a - b, 9), 1).result() == 8


def test_bound_methods(executor):
    assert executor.submit(calls.Thing().method).result() == 42
    assert executor.submit("a,b".split, ",").result() == ["a", "b"]
    assert executor.submit(np.arange(5).sum).result() == 10


def test_class_methods_and_static_methods(executor):
    assert executor.submit(dict.fromkeys, "ab").result() == {"a": None, "b": None}
    assert executor.submit(str.maketrans, {"a": "b"}).result() == {97: "b"}


def test_callable_instances_and_classes(executor):
    assert executor.submit(calls.Thing(), 1).result() == 43
    assert executor.submit(complex, 1, 2).result() == 1 + 2j


def test_instances_of_local_classes(executor):
    class Local:
        def __init__(self, x):
            self.x = x

        def __call__(self, y):
            return Local(self.x + y)

    result = executor.submit(Local(1), 2).result()
    assert type(result) is Local
    assert result.x == 3


def test_decorated_functions(executor):
    @functools.wraps(calls.same)
    def wrapped(x):
        return ("wrapped", x)

    assert executor.submit(calls.cached, 4).result() == 8
    assert executor.submit(wrapped, 4).result() == ("wrapped", 4)


def test_functions_as_arguments_and_results(executor):
    assert executor.submit(lambda f, x: f(x), lambda x: x * 3, 5).result() == 15
    assert executor.submit(lambda n: lambda x: x + n, 7).result()(1) == 8


# -- what changes ----------------------------------------------------------------------


def test_a_redefinition_is_noticed(executor):
    for value in range(3):
        scope: dict = {"__name__": "nowhere"}
        exec(f"def fn(): return {value}", scope)
        assert executor.submit(scope["fn"]).result() == value


def test_a_changed_global_is_noticed(executor):
    scope: dict = {"__name__": "nowhere", "factor": 2}
    exec("def fn(x): return x * factor", scope)
    assert executor.submit(scope["fn"], 5).result() == 10
    scope["factor"] = 3
    assert executor.submit(scope["fn"], 5).result() == 15


def test_a_changed_global_of_an_inner_function_is_noticed(executor):
    scope: dict = {"__name__": "nowhere", "factor": 2}
    exec(
        "def inner(x): return x * factor\ndef outer(x): return [inner(i) for i in x]",
        scope,
    )
    assert executor.submit(scope["outer"], [5]).result() == [10]
    scope["factor"] = 3
    assert executor.submit(scope["outer"], [5]).result() == [15]


def test_a_changed_captured_value_is_noticed(executor):
    n = 1

    def get():
        return n

    assert executor.submit(get).result() == 1
    n = 2
    assert executor.submit(get).result() == 2


def test_changed_defaults_are_noticed(executor):
    def get(x=1):
        return x

    assert executor.submit(get).result() == 1
    get.__defaults__ = (2,)
    assert executor.submit(get).result() == 2


def test_changed_attributes_are_noticed(executor):
    def get():
        return get.value

    for value in (1, 2):
        get.value = value
        assert executor.submit(get).result() == value


def test_a_captured_mutable_is_rebuilt_for_each_call(make_executor):
    seen: list = []

    def remember(x):
        seen.append(x)
        return list(seen)

    executor = make_executor(1)
    assert [executor.submit(remember, i).result() for i in range(3)] == [[0], [1], [2]]
    seen.append("here")
    assert executor.submit(remember, 3).result() == ["here", 3]


def test_a_captured_array_is_rebuilt_for_each_call(make_executor):
    array = np.zeros(10)

    def count():
        array[0] += 1
        return array[0]

    executor = make_executor(1)
    assert [executor.submit(count).result() for _ in range(3)] == [1, 1, 1]
    assert array[0] == 0


def _counting():
    def count():
        import sys

        from tests.contract import calls

        kept = calls.STATE.setdefault("codes", [])
        kept.append(sys._getframe().f_code)
        return len(set(map(id, kept)))

    return count


def test_a_function_is_sent_to_a_worker_once(make_executor):
    executor = make_executor(1)
    count = _counting()
    assert [executor.submit(count).result() for _ in range(5)] == [1] * 5


def test_an_equal_function_is_not_sent_again(make_executor):
    executor = make_executor(1)
    assert [executor.submit(_counting()).result() for _ in range(5)] == [1] * 5


def test_each_worker_gets_it(make_executor):
    executor = make_executor(2)
    assert executor.broadcast(_counting()) == [1, 1]
    assert executor.submit(calls.kill_me).exception() is not None
    assert executor.broadcast(_counting()) == [1, 1]


def test_more_functions_than_a_worker_keeps(make_executor):
    executor = make_executor(1)
    functions = [lambda i=i: i for i in range(600)]
    for _ in range(2):
        results = [executor.submit(fn) for fn in functions]
        assert [result.result() for result in results] == list(range(600))


# -- what cannot be found --------------------------------------------------------------


def test_a_module_that_workers_cannot_import(executor, monkeypatch):
    import sys
    import types

    module = types.ModuleType("only_here")
    exec("def fn(): return 1", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    future = executor.submit(module.fn)
    error = future.exception()
    if error is None:
        assert future.result() == 1
    else:
        assert isinstance(error, ImportError)
        assert "only_here" in str(error)


def test_a_module_whose_import_fails_in_the_worker(make_executor, tmp_path):
    (tmp_path / "fragile.py").write_text(
        "import os\n"
        "if os.environ.get('SHMEXEC_TEST_WORKER'): raise RuntimeError('not here')\n"
        "def fn(): return 1\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        import fragile

        executor = make_executor(
            1, mp_context="spawn", worker_env={"SHMEXEC_TEST_WORKER": "1"}
        )
        error = executor.submit(fragile.fn).exception()
        assert isinstance(error, RuntimeError)
        assert "not here" in str(error)
        assert any("fragile" in note for note in error.__notes__)
        assert executor.submit(calls.same, 1).result() == 1


# -- __main__ --------------------------------------------------------------------------

MAIN = """
import sys, shmexec
print("main runs", flush=True)
factor = 2
class Point:
    def __init__(self, x):
        self.x = x
    def __eq__(self, other):
        return self.x == other.x
def work(x):
    return Point(x * factor)
executor = shmexec.Executor(2, sys.argv[1])
print(executor.submit(work, 4).result() == Point(8))
factor = 5
print(executor.submit(work, 4).result() == Point(20))
def work(x):
    return [work.__name__, x, __name__]
print(executor.submit(work, 4).result())
print(type(executor.submit(lambda: Point(1)).result()) is Point)
class Mine(Exception):
    pass
def fail():
    raise Mine("mine")
try:
    executor.submit(fail).result()
except Mine as error:
    print("caught", error)
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_script_needs_no_main_guard(run_script, method):
    ended = run_script(MAIN, method)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        "main runs",
        "True",
        "True",
        "['work', 4, '__main__']",
        "True",
        "caught mine",
    ]
