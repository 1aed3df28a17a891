"""The instance that a worker of an actor holds.

Built once, by the worker's initializer; a worker that replaces another builds it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import CoroutineType
from typing import Any

from shmexec.worker.notes import note_read_only


class Instance:
    """One instance of a class, and how its methods are called.

    Args:
        name: What the class is called in messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._object: Any = None
        self._built = False

    def build(
        self, cls: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Make the instance and initialise it.

        Returns:
            None, or a coroutine that does the rest and is to be awaited.
        """
        self._object = cls(*args, **kwargs)
        initialize = getattr(self._object, "initialize", None)
        made = initialize() if callable(initialize) else None
        if type(made) is CoroutineType:
            return self._finish(made)
        self._built = True
        return None

    async def _finish(self, initializing: CoroutineType[Any, Any, Any]) -> None:
        await initializing
        self._built = True

    def call(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call a method; returns what it does, which may be a coroutine or generator."""
        method = self._find(name)
        try:
            return method(*args, **kwargs)
        except ValueError as error:
            note_read_only(error, method, args, kwargs)
            raise

    def _find(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] | None = getattr(self._object, name, None)
        if callable(method):
            return method
        there = dir(self._object)
        if name in there:
            msg = f"{self.name}.{name} is no method: add one that returns it"
        else:
            found = (each for each in there if _is_method(self._object, each))
            msg = unknown_method(self.name, name, found)
        raise AttributeError(msg)

    def clean_up(self) -> Any:
        """Have it give back what it holds, if it was built and has not been asked yet.

        Returns:
            None, or a coroutine that is to be awaited.
        """
        cleanup = getattr(self._object, "cleanup", None)
        was_built, self._built = self._built, False
        if was_built and callable(cleanup):
            made = cleanup()
            return made if type(made) is CoroutineType else None
        return None


def _is_method(owner: object, name: str) -> bool:
    try:
        return callable(getattr(owner, name))
    except Exception:  # noqa: BLE001  (a property may raise what it likes)
        return False


def unknown_method(cls: str, name: str, there: Iterable[str]) -> str:
    """What to say of a method that is not there."""
    from difflib import get_close_matches

    names = sorted(each for each in there if not each.startswith("_"))
    close = get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    listed = f"There are: {', '.join(names)}" if names else "There is none"
    return f"{cls} has no method {name!r}{hint} {listed}"


_here: Instance | None = None


def build(
    name: str,
    cls: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Build this worker's instance; as :meth:`Instance.build`."""
    global _here
    _here = Instance(name)
    return _here.build(cls, args, kwargs)


def call_method(name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a method of this worker's instance; as :meth:`Instance.call`."""
    assert _here is not None
    return _here.call(name, args, kwargs)


def clean_up() -> Any:
    """Have this worker's instance clean up, if there is one."""
    return None if _here is None else _here.clean_up()
