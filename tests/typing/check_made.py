"""Checked by mypy and pyright, not run: what executors make, and shared memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import shmexec


class Model:
    def __init__(self, size: int, *, name: str = "") -> None:
        self.size, self.name = size, name

    def process(self, x: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
        return x * scale * self.size

    async def ask(self, question: str) -> int:
        return len(question)

    def parts(self, number: int) -> Iterator[str]:
        yield from map(str, range(number))


class Larger(Model): ...


def check_actors(ex: shmexec.Executor, x: np.ndarray) -> None:
    node = ex.actor(Model, 3, name="a")
    assert_type(node, shmexec.Actor[Model])
    assert_type(ex.actor(Model, 3, replicas=2), shmexec.Actor[Model])
    assert_type(ex.actor(Model, 3, max_concurrency=2), shmexec.Actor[Model])
    assert_type(ex.actor(Model, 3, initialize_timeout=2.0), shmexec.Actor[Model])
    assert_type(ex.options(timeout=1).actor(list[int], [1]), shmexec.Actor[list[int]])
    assert_type(node.state, str)
    assert_type(node.stats(), tuple[shmexec.Stats, ...])
    ex.actor(Model)  # type: ignore[call-overload]
    ex.actor(Model, "3")  # type: ignore[call-overload]
    ex.actor(Model, 3, replicas="2")  # type: ignore[call-arg]

    # An attribute of the handle may be any method of any class: no type says which. What
    # the class has under the name does.
    node.process(x).result()
    assert_type(node.call(Model.process, x), shmexec.Future[np.ndarray])
    assert_type(node.call(Model.process, x, scale=2), shmexec.Future[np.ndarray])
    assert_type(node.call(Model.ask, "what?"), shmexec.Future[int])
    assert_type(node.call(Model.parts, 3), shmexec.Stream[str])
    assert_type(node.stream(Model.parts, 3), shmexec.Stream[str])
    assert_type(node.stream(Model.parts, 3, buffersize=2), shmexec.Stream[str])
    assert_type(ex.actor(Larger, 3).call(Model.ask, "what?"), shmexec.Future[int])
    node.call(Model.process)  # type: ignore[call-overload]
    node.call(Model.process, x, scale="2")  # type: ignore[arg-type]
    node.call(Model.ask, 3)  # type: ignore[call-overload]
    node.call(str.upper)  # type: ignore[call-overload]
    node.stream(Model.process, x, 3)  # type: ignore[call-overload]


async def check_awaited_actors(ex: shmexec.Executor, x: np.ndarray) -> None:
    async with ex.actor(Model, 3) as node:
        assert_type(node, shmexec.Actor[Model])
        assert_type(await node.acall(Model.process, x), np.ndarray)
        assert_type(await node.acall(Model.ask, "what?"), int)
        await node.acall(Model.ask, 3)  # type: ignore[call-overload]


def check_pipelines(ex: shmexec.Executor, x: np.ndarray) -> None:
    assert_type(ex.pipeline(np.sqrt, Model), shmexec.Pipeline[Any, Any])
    pipe: shmexec.Pipeline[str, int] = ex.pipeline(str.strip, len)
    assert_type(pipe.submit("a").result(), int)
    for number in pipe.map(["a", "b"]):
        assert_type(number, int)
    assert_type(pipe.flush(), list[int])
    assert_type(pipe.stats(), tuple[tuple[shmexec.Stats, ...], ...])
    pipe.submit(x)  # type: ignore[arg-type]
    pipe.map([1, 2])  # type: ignore[list-item]
    shmexec.Stage(np.sqrt, replicas="2")  # type: ignore[arg-type]


def check_scripts(ex: shmexec.Executor) -> None:
    script = ex.script("model.py", cache="1MB")
    assert_type(script, shmexec.Script)
    assert_type(script.options(timeout=3), shmexec.Script)
    assert_type(script.functions(), Mapping[str, shmexec.FunctionInfo])
    assert_type(script.reload(), bool)
    with shmexec.load("model.py", 2) as model:
        assert_type(model, shmexec.LoadedScript)
    shmexec.load("model.py", timeot=3)  # type: ignore[call-arg]
    shmexec.load("model.py", timeout="3")  # type: ignore[arg-type]
    ex.script(3)  # type: ignore[arg-type]


def check_share(array: np.ndarray, of_bytes: npt.NDArray[np.uint8]) -> None:
    assert_type(shmexec.share(array), np.ndarray)
    assert_type(shmexec.share(of_bytes, "r+"), npt.NDArray[np.uint8])
    handle = shmexec.share({"a": 1})
    assert_type(handle, shmexec.Shared[dict[str, int]])
    assert_type(handle.value, dict[str, int])
    shmexec.share(array, "w")  # type: ignore[call-overload]
    shmexec.share({"a": 1}, "r+")  # type: ignore[call-overload]


def check_made_arrays(array: npt.NDArray[np.int16]) -> None:
    assert_type(shmexec.empty(3), npt.NDArray[np.float64])
    assert_type(shmexec.empty((3, 4), np.int32), npt.NDArray[np.int32])
    assert_type(shmexec.zeros((3, 4), np.uint8, mode="c"), npt.NDArray[np.uint8])
    assert_type(shmexec.zeros([3, 4], "f4"), npt.NDArray[Any])
    assert_type(shmexec.full(3, 1, np.int8), npt.NDArray[np.int8])
    assert_type(shmexec.full(3, 1), npt.NDArray[Any])
    assert_type(shmexec.empty_like(array), npt.NDArray[np.int16])
    assert_type(shmexec.empty_like(array, np.float32), npt.NDArray[np.float32])
    assert_type(shmexec.asarray(array), npt.NDArray[np.int16])
    assert_type(shmexec.asarray([1, 2], np.int8), npt.NDArray[np.int8])
    assert_type(shmexec.stats(), shmexec.MemoryStats)
    shmexec.empty("3")  # type: ignore[arg-type]
    shmexec.zeros(3, order="A")  # type: ignore[call-overload]
    shmexec.full(3)  # type: ignore[call-overload]
