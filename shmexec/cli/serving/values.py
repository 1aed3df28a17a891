"""Arguments and results in JSON: strict both ways, with arrays.

An array is ``{"__ndarray__": DATA, "dtype": "<f4", "shape": [2, 3]}``; DATA is its bytes
in C order as base64, or the path of a ``.npy`` file (then dtype and shape may be left
out, and must agree if they are not). Results are base64, or go to a folder that the
request names.

What JSON has no way to write is an error that tells where it is, never a text: sets,
dates, NaN, keys that are no texts. Tuples become arrays, and NumPy's scalars numbers
or texts: that loses nothing.

Files are opened through what the caller gives; nothing else here does I/O.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from shmexec.cli.serving.jsonrpc import (
    INVALID_PARAMS,
    RESULT_IS_NO_JSON,
    RpcError,
    to_json,
)

__all__ = ["MARK", "LoadArray", "SaveArray", "read_values", "write_value"]

MARK: Final = "__ndarray__"

LoadArray = Callable[[str], np.ndarray]
"""Opens a ``.npy`` file; raises OSError, ValueError or EOFError."""
SaveArray = Callable[[np.ndarray], str]
"""Writes a new ``.npy`` file and returns its path."""

_KINDS = "biufcmMSU"
_PLAIN = frozenset({str, int, float, bool, type(None)})
_SCALARS = (np.bool_, np.integer, np.floating, np.str_)


# ---- arguments


def read_values(value: Any, load: LoadArray, where: str = "params") -> Any:
    """A parsed value with arrays in place of what stands for them.

    Args:
        value: As ``json.loads`` returned it; its containers are changed in place.
        load: Opens ``.npy`` files.
        where: How errors call it.

    Raises:
        RpcError: Something stands for no array, or a text is no Unicode text.
    """
    try:
        return _read(value, load, where)
    except RecursionError:
        msg = f"{where} is nested too deeply"
        raise RpcError(INVALID_PARAMS, msg) from None


def _read(value: Any, load: LoadArray, where: str) -> Any:
    if isinstance(value, str):
        if not value.isascii():
            _check_text(value, where)
        return value
    if isinstance(value, list):
        if not set(map(type, value)) <= {int, float, bool, type(None)}:
            for index, item in enumerate(value):
                value[index] = _read(item, load, f"{where}[{index}]")
        return value
    if isinstance(value, dict):
        if MARK in value:
            return _read_array(value, load, where)
        for key, item in value.items():
            if not key.isascii():
                _check_text(key, f"a key of {where}")
            value[key] = _read(item, load, f"{where}.{key}")
    return value


def _check_text(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        mark = f"U+{ord(text[error.start]):04X}"
        msg = f"{where} holds a lone surrogate ({mark}), which is no Unicode text"
        raise _invalid(msg) from None


def _read_array(value: dict[str, Any], load: LoadArray, where: str) -> np.ndarray:
    unknown = value.keys() - {MARK, "dtype", "shape"}
    data = value[MARK]
    if unknown or not isinstance(data, str):
        msg = (
            f"{where} must be {{{MARK!r}: base64 or a path that ends in .npy, "
            "'dtype': ..., 'shape': [...]}"
        )
        raise _invalid(msg)
    dtype = _read_dtype(value["dtype"], where) if "dtype" in value else None
    shape = _read_shape(value["shape"], where) if "shape" in value else None
    if data.endswith(".npy"):  # base64 has no dot
        return _open_array(data, dtype, shape, load, where)
    if dtype is None or shape is None:
        msg = f"{where}: an array in base64 needs its dtype and its shape"
        raise _invalid(msg)
    try:
        content = binascii.a2b_base64(data, strict_mode=True)
    except ValueError as error:
        msg = f"{where} is not base64: {error}"
        raise _invalid(msg) from None
    needed = math.prod(shape) * dtype.itemsize
    if len(content) != needed:
        msg = (
            f"{where}: shape {shape} of {dtype} takes {needed:,} bytes, "
            f"and {len(content):,} were given"
        )
        raise _invalid(msg)
    try:
        return np.ndarray(shape, dtype, bytearray(content) if needed else None)
    except (ValueError, TypeError) as error:  # more dimensions than NumPy has
        msg = f"{where}: {error}"
        raise _invalid(msg) from None


def _read_dtype(text: Any, where: str) -> np.dtype[Any]:
    try:
        if not isinstance(text, str):
            raise TypeError
        dtype = np.dtype(text)
    except Exception:  # noqa: BLE001  (NumPy raises many kinds)
        msg = f"{where}: {text!r} is no dtype"
        raise _invalid(msg) from None
    if dtype.kind not in _KINDS or not dtype.itemsize:
        msg = f"{where}: arrays of dtype {text!r} cannot be passed"
        raise _invalid(msg)
    return dtype


def _read_shape(shape: Any, where: str) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(
        type(length) is int and length >= 0 for length in shape
    ):
        msg = f"{where}: shape must be an array of numbers from 0 up, not {shape!r}"
        raise _invalid(msg)
    return tuple(shape)


def _open_array(
    path: str,
    dtype: np.dtype[Any] | None,
    shape: tuple[int, ...] | None,
    load: LoadArray,
    where: str,
) -> np.ndarray:
    _check_text(path, where)
    try:
        array = load(path)
    except OSError as error:
        msg = f"{where}: cannot read {path}: {error.strerror or error}"
        raise _invalid(msg) from None
    except (ValueError, EOFError) as error:
        msg = f"{where}: cannot read {path}: {error}"
        raise _invalid(msg) from None
    if array.dtype.kind not in _KINDS:
        msg = f"{where}: {path} has dtype {array.dtype}, which cannot be passed"
        raise _invalid(msg)
    for name, said, found in (
        ("dtype", dtype, array.dtype),
        ("shape", shape, array.shape),
    ):
        if said is not None and said != found:
            msg = f"{where}: {path} has {name} {found}, not {said}"
            raise _invalid(msg)
    return array


def _invalid(message: str) -> RpcError:
    return RpcError(INVALID_PARAMS, message)


# ---- results


def write_value(
    value: Any, save: SaveArray | None = None, where: str = "result"
) -> bytes:
    """A result in JSON.

    Args:
        value: What the function returned.
        save: Where its arrays go. Default: into the text, as base64.
        where: How errors call it.

    Returns:
        One line without its end, UTF-8.

    Raises:
        RpcError: JSON has no way to write it, with the path to the culprit.

    Example:
        >>> write_value({"mean": np.float32(0.5), "of": ("a", "é")}).decode()
        '{"mean":0.5,"of":["a","é"]}'
    """
    try:
        return to_json(_write(value, save, where))
    except RecursionError:
        msg = f"{where} is nested too deeply, or contains itself"
        raise _no_json(msg) from None
    except UnicodeEncodeError:
        msg = f"{where} holds a lone surrogate, which is no Unicode text"
        raise _no_json(msg) from None
    except (TypeError, ValueError) as error:
        # NaN, or an integer of too many digits, in what was not walked through.
        msg = f"{where} is no JSON: {error}"
        raise _no_json(msg) from None


def _write(value: Any, save: SaveArray | None, where: str) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list or kind is tuple:
        # Long lists of numbers are left to json, which is as strict about them.
        if set(map(type, value)) <= _PLAIN:
            return value
        return [_write(x, save, f"{where}[{i}]") for i, x in enumerate(value)]
    if kind is dict:
        return _write_dict(value, save, where)
    if kind is np.ndarray or kind is np.memmap:
        return _write_array(value, save, where)
    if isinstance(value, _SCALARS):
        plain = value.item()
        if type(plain) in _PLAIN:  # not so that of a longdouble
            return plain
    msg = (
        f"{where} is of type {kind.__module__}.{kind.__qualname__}, which JSON has no "
        "way to write; return texts, numbers, lists, dicts or NumPy arrays"
    ).replace("builtins.", "")
    raise _no_json(msg)


def _write_dict(value: dict[Any, Any], save: SaveArray | None, where: str) -> Any:
    for key in value:
        if type(key) is not str:
            msg = f"a key of {where} is {key!r}; in JSON keys are texts"
            raise _no_json(msg)
    if MARK in value:
        msg = f"{where} has the key {MARK!r}, by which arrays are known"
        raise _no_json(msg)
    return {key: _write(item, save, f"{where}.{key}") for key, item in value.items()}


def _write_array(array: np.ndarray, save: SaveArray | None, where: str) -> Any:
    dtype = array.dtype
    if dtype.kind not in _KINDS or not dtype.itemsize:
        msg = f"{where} is an array of dtype {dtype}, which JSON has no way to write"
        raise _no_json(msg)
    data = (
        binascii.b2a_base64(array.tobytes(), newline=False).decode("ascii")
        if save is None
        else save(array)
    )
    return {MARK: data, "dtype": dtype.str, "shape": list(array.shape)}


def _no_json(message: str) -> RpcError:
    data = {"type": "NotJSON", "message": message, "traceback": ""}
    return RpcError(RESULT_IS_NO_JSON, message, data)
