"""What ``shmexec run`` executes in a worker: a script's function, loaded once.

Its functions go to the workers by name, so a worker imports this module; keep it light.
"""

from __future__ import annotations

import sys
from functools import cache, reduce
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["TargetError", "call_target", "check_target"]


class TargetError(Exception):
    """The script cannot be loaded, or has no such function."""


def check_target(path: str, name: str) -> None:
    """Load the script in this worker, to learn early whether that works.

    Args:
        path: Absolute path of the script.
        name: The function's name, with dots for attributes.

    Raises:
        TargetError: With one line that tells what is wrong.
    """
    _load(path, name)


def call_target(path: str, name: str, batch: np.ndarray) -> np.ndarray:
    """Call the script's function with one batch.

    Args:
        path: Absolute path of the script.
        name: The function's name, with dots for attributes.
        batch: Shape ``(rows, ...)``, read-only.

    Returns:
        What the function returned, as an array.

    Raises:
        TypeError: That cannot be written to a ``.npy`` file.
    """
    result = np.asarray(_load(path, name)(batch))
    if result.dtype.hasobject:
        msg = (
            f"{name} returned values of dtype {result.dtype}, which a memory-mapped "
            ".npy file cannot hold; return an array of numbers"
        )
        raise TypeError(msg)
    return result


@cache
def _load(path: str, name: str) -> Callable[[np.ndarray], Any]:
    module = _load_module(path)
    script = Path(path).name
    try:
        function = reduce(getattr, name.split("."), module)
    except AttributeError:
        msg = f"{script} has no function {name!r}{_offer(module)}"
        raise TargetError(msg) from None
    if not callable(function):
        msg = f"{name!r} in {script} is a {type(function).__name__}, not a function"
        raise TargetError(msg)
    return function


@cache
def _load_module(path: str) -> ModuleType:
    file = Path(path)
    folder = str(file.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = _module_name(file.stem)
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        msg = f"{file.name} is not a Python script"
        raise TargetError(msg)
    module = module_from_spec(spec)
    # Dataclasses and pickle look their module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        msg = f"cannot load {file.name}: {type(error).__name__}: {error}"
        raise TargetError(msg) from error
    return module


def _module_name(stem: str) -> str:
    """The script's own name, as if it was imported, unless that is taken."""
    taken = stem in sys.modules or stem in sys.stdlib_module_names
    return f"shmexec_script_{stem}" if taken else stem


def _offer(module: ModuleType) -> str:
    names = [
        key
        for key, value in vars(module).items()
        if callable(value)
        and not key.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]
    return f"; it has {', '.join(sorted(names)[:8])}" if names else ""
