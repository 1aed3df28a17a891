"""What type checkers are told of settings is what there is."""

from __future__ import annotations

import inspect

import pytest

from shmexec import Executor, signatures


@pytest.mark.parametrize(
    ("settings", "function", "beside"),
    [
        (signatures.MapSettings, Executor.map, {"self", "fn", "iterables"}),
        (signatures.AsyncMapSettings, Executor.amap, {"self", "fn", "iterables"}),
        (signatures.ExecutorSettings, Executor.__init__, {"self", "max_workers"}),
    ],
)
def test_the_settings_are_those_of_the_function(settings, function, beside):
    there = {
        name: each.annotation
        for name, each in inspect.signature(function).parameters.items()
        if name not in beside
    }
    told = {
        name: each.__forward_arg__ for name, each in settings.__annotations__.items()
    }
    assert told == there
