"""Every public name has a docstring with an example, and every example runs."""

from __future__ import annotations

import asyncio
import contextlib
import doctest
import importlib.util
import inspect
import io
import os
import pkgutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmexec

pytestmark = pytest.mark.slow

ALSO = (
    "shmexec.executor.OptionsView",
    "shmexec.pipelines.Results",
    "shmexec.scripts.ScriptFunction",
)
"""What public methods return, and no name of the package is."""

OPTIONAL = ("shmexec.cluster", "shmexec.integrations")
"""Packages of public modules that need others to be installed."""

NO_EXAMPLE = {
    "shmexec.__version__": "a text",
}

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public() -> Iterator[tuple[str, Any]]:
    """All names that users have to do with, and what they are."""
    named = [f"shmexec.{name}" for name in shmexec.__all__]
    for name in (*named, *ALSO, *optional()):
        module, _, own = name.rpartition(".")
        value = getattr(importlib.import_module(module), own)
        yield name, value
        if inspect.isclass(value):
            for member, function in members(value):
                yield f"{name}.{member}", function


def optional() -> Iterator[str]:
    """Names of the public modules whose packages are installed."""
    for package in OPTIONAL:
        if importlib.util.find_spec(package) is not None:
            found = importlib.import_module(package)
            modules = pkgutil.iter_modules(found.__path__, f"{package}.")
            inner = [] if hasattr(found, "__all__") else [each.name for each in modules]
            for name in (package, *inner):
                with contextlib.suppress(ImportError):
                    module = importlib.import_module(name)
                    names = getattr(module, "__all__", ())
                    assert all(hasattr(module, own) for own in names)
                    yield from (f"{name}.{own}" for own in names)


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that are defined in this package.

    But not those that a package whose class this is one of calls, as joblib its backends'.
    """
    for name in dir(cls):
        owners = [each for each in cls.__mro__ if name in vars(each)]
        owner = owners[0]
        if any(each.__module__.startswith("joblib.") for each in owners):
            continue
        if owner.__module__.partition(".")[0] == "shmexec" and (
            name[0] != "_" or name == "__call__"
        ):
            value = vars(owner)[name]
            value = getattr(value, "__func__", getattr(value, "fget", value))
            if inspect.isroutine(value):
                yield name, value


def is_told_elsewhere(doc: str) -> bool:
    """Whether it refers to another method, or says that users have no business with it."""
    first = doc.partition("\n")[0]
    return first.startswith("As :meth:") or first.endswith(
        ("or the pool only.", "or the executor only.")
    )


def test_every_public_name_has_a_docstring_with_an_example():
    lacking = []
    for name, value in public():
        doc = inspect.getdoc(value) or ""
        if name not in NO_EXAMPLE and not is_told_elsewhere(doc):
            if not doc:
                lacking.append(f"{name}: no docstring")
            elif ">>> " not in doc:
                lacking.append(f"{name}: no example")
    assert not lacking, "\n".join(lacking)


def run_examples(ex: Any, names: Iterable[tuple[str, Any]]) -> int:
    """Run those of the docstrings of these names; how many lines there were."""
    said = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    there = {
        "ex": ex,
        "Path": Path,
        "asyncio": asyncio,
        "np": np,
        "os": os,
        "shmexec": shmexec,
        "time": time,
    }
    done = set()
    for name, value in names:
        doc = inspect.getdoc(value) or ""
        if doc not in done:  # methods are inherited
            done.add(doc)
            example = doctest.DocTestParser().get_doctest(
                doc, dict(there), name, None, 0
            )
            runner.run(example, out=said.write)
    assert not runner.failures, said.getvalue()
    return runner.tries


def has_cluster() -> bool:
    found = importlib.util.find_spec
    return bool(found("shmexec.cluster") and found("distributed"))


def is_of_a_cluster(name: str) -> bool:
    return name.startswith("shmexec.cluster.")


def test_every_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with shmexec.Executor(2) as ex:
        names = [each for each in public() if not is_of_a_cluster(each[0])]
        assert run_examples(ex, names) > 100


def run_examples_of_a_cluster() -> None:
    """In a process of its own: Dask leaves threads behind."""
    from shmexec.cluster import DaskExecutor

    with DaskExecutor.local(nodes=1, threads=1) as ex:
        names = [each for each in public() if is_of_a_cluster(each[0])]
        assert run_examples(ex, names) > 10


@pytest.mark.stress
@pytest.mark.skipif(not has_cluster(), reason="needs Dask")
def test_every_example_of_a_cluster_runs(tmp_path):
    """A cluster takes seconds to start."""
    program = (
        "from tests.integration.test_examples import run_examples_of_a_cluster as run\n"
        "run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
