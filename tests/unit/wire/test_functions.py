"""How functions travel: by name, by digest, or with the call."""

from __future__ import annotations

import functools
import math
import operator
import types

import numpy as np
import pytest

from shmexec.wire.functions import IN_PAYLOAD, describe, find_by_name, is_digest

FACTOR = 3


def module_level(x):
    return FACTOR * x


class Class:
    @staticmethod
    def static():
        """By name, through its class."""

    @classmethod
    def bound(cls):
        """A bound method is no plain function."""


def fake_main(source):
    """A function as of a script: its module cannot be imported."""
    module = types.ModuleType("__main__")
    exec(source, module.__dict__)
    return module


@pytest.mark.parametrize("fn", [module_level, Class.static, Class, math.sqrt, len, int])
def test_by_name_if_importable(fn):
    ref = describe(fn)
    assert not is_digest(ref.key)
    assert not ref.pickled
    assert find_by_name(ref.key) is fn


def test_a_name_is_looked_up_each_time(monkeypatch):
    original = module_level
    by_name = describe(original)
    assert describe(original) is by_name
    with monkeypatch.context() as patch:
        # By now the name says another function: this one must go by value.
        patch.setitem(globals(), "module_level", math.sqrt)
        assert is_digest(describe(original).key)
    assert describe(original) == by_name


@pytest.mark.parametrize(
    "fn",
    [functools.partial(module_level, 1), Class.bound, operator.itemgetter(1), np.add],
    ids=lambda fn: type(fn).__name__,
)
def test_callable_objects_go_as_arguments_do(fn):
    assert describe(fn) == IN_PAYLOAD


def test_a_lambda_goes_once_by_digest():
    fn = lambda x: x + 1  # noqa: E731
    ref = describe(fn)
    assert is_digest(ref.key)
    assert ref.pickled
    assert describe(fn) is ref


def test_a_closure_over_immutables_goes_by_digest():
    n, text = 3, "a"
    assert is_digest(describe(lambda: (n, text)).key)


@pytest.mark.parametrize("captured", [[1], {}, np.ones(3), bytearray(2)])
def test_what_captures_something_mutable_goes_with_each_call(captured):
    assert describe(lambda: captured) == IN_PAYLOAD


def test_a_mutable_default_is_captured_too():
    assert describe(lambda x=[]: x) == IN_PAYLOAD


def test_a_redefined_function_is_noticed():
    one = fake_main("def f(): return 1").f
    two = fake_main("def f(): return 2").f
    assert describe(one).key != describe(two).key


def test_a_changed_global_is_noticed():
    module = fake_main("n = 1\ndef f(): return n")
    before = describe(module.f)
    assert is_digest(before.key)
    module.n = 2
    after = describe(module.f)
    assert after.key != before.key
    module.n = [2]
    assert describe(module.f) == IN_PAYLOAD


def test_a_changed_global_of_a_helper_is_noticed():
    module = fake_main("n = 1\ndef g(): return n\ndef f(): return g()")
    before = describe(module.f)
    module.n = 2
    assert describe(module.f).key != before.key


def test_a_changed_global_of_nested_code_is_noticed():
    module = fake_main("n = 1\ndef f(): return [n for _ in range(2)], (lambda: n)()")
    before = describe(module.f)
    module.n = 2
    assert describe(module.f).key != before.key


def test_a_changed_closure_is_noticed():
    n = 1

    def f():
        return n

    before = describe(f)
    n = 2
    assert describe(f).key != before.key


def test_replaced_code_is_noticed():
    module = fake_main("def f(): return 1\ndef g(): return 2")
    before = describe(module.f)
    module.f.__code__ = module.g.__code__
    assert describe(module.f).key != before.key


def test_a_shadowed_name_is_not_importable():
    def pretender(x):
        return x

    pretender.__module__, pretender.__qualname__ = __name__, "module_level"
    assert describe(pretender).key[:1] != b"n"


@pytest.mark.parametrize("key", [b"nno_such_module:f", b"nmath:no_such", b"nmath:"])
def test_what_is_not_there_is_an_import_error(key):
    with pytest.raises(ImportError):
        find_by_name(key)


def test_recursion_ends():
    module = fake_main("def f(n): return n and g(n - 1)\ndef g(n): return f(n)")
    assert is_digest(describe(module.f).key)
