"""The methods of the server and their parameters; pure."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

from shmexec.cli.serving.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, RpcError

__all__ = ["METHODS", "check_params"]

REQUIRED: Final = object()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method: its type, and what it is if it is left out."""

    kind: type
    default: Any = REQUIRED


_CALL = {
    "function": Parameter(str),
    "args": Parameter(list, []),
    "kwargs": Parameter(dict, {}),
    "timeout": Parameter(float, None),
    "arrays": Parameter(dict, None),
}

METHODS: Final[dict[str, dict[str, Parameter]]] = {
    "call": _CALL,
    "stream": _CALL | {"buffersize": Parameter(int, 16)},
    "cancel": {"id": Parameter(object)},
    "functions": {},
    "health": {},
    "stats": {},
    "shutdown": {},
}
"""In the order in which an array of params gives them."""

_NAMES = {
    str: "a text",
    list: "an array",
    dict: "an object",
    float: "a number of seconds greater than 0",
    int: "a whole number of at least 1",
}


def check_params(method: str, params: dict[str, Any] | list[Any]) -> dict[str, Any]:
    """The parameters of a request by name, those left out included.

    Args:
        method: As the request has it.
        params: An array gives them in order.

    Raises:
        RpcError: No such method, or a parameter that is missing, unknown or of the
            wrong kind. Null stands for one that is left out.
    """
    known = METHODS.get(method)
    if known is None:
        msg = f"there is no method {method!r}, but {', '.join(METHODS)}"
        raise RpcError(METHOD_NOT_FOUND, msg)
    if isinstance(params, list):
        if len(params) > len(known):
            msg = f"{method} takes at most {len(known)} params, not {len(params)}"
            raise RpcError(INVALID_PARAMS, msg)
        params = dict(zip(known, params, strict=False))
    unknown = params.keys() - known.keys()
    if unknown:
        takes = f"only {', '.join(known)}" if known else "no params"
        msg = f"{method} takes {takes}, not {', '.join(sorted(map(repr, unknown)))}"
        raise RpcError(INVALID_PARAMS, msg)
    return {name: _check(name, params, each) for name, each in known.items()}


def _check(name: str, params: dict[str, Any], parameter: Parameter) -> Any:
    value = params.get(name)
    if parameter.kind is object:
        if name in params:
            return value
    elif value is None and parameter.default is not REQUIRED:
        return copy(parameter.default)  # an argument may be changed
    if name not in params:
        msg = f"params.{name} is missing"
        raise RpcError(INVALID_PARAMS, msg)
    if not _fits(value, parameter.kind):
        msg = f"params.{name} must be {_NAMES[parameter.kind]}"
        raise RpcError(INVALID_PARAMS, msg)
    return value


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float) and value > 0 and math.isfinite(value)
    if kind is int:
        return type(value) is int and value >= 1
    return isinstance(value, kind)
