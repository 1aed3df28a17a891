r"""JSON-RPC 2.0, one message a line: bytes in, requests out, and replies back into bytes.

Pure: no files, processes, threads or clocks, so that property tests can feed it any
bytes. What an array or a result looks like in JSON is in :mod:`shmexec.cli.serving.values`;
who reads, calls and writes is in :mod:`shmexec.cli.serving.session`.

Why not a package: those for Python dispatch to functions of their own process and return
one text per request, when it is done. Here replies come in any order, a stream's items
between them, lines have a limit, and the strictness is the point (``json`` itself takes
``NaN``, ``1e999`` and lone surrogates, and turns keys into texts); what would be left to
such a package is this table of codes and the check of five fields.

The specification: https://www.jsonrpc.org/specification.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

__all__ = [
    "CALL_CANCELLED",
    "CALL_FAILED",
    "CALL_TIMEOUT",
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
    "NO_MEMORY",
    "PARSE_ERROR",
    "POOL_BROKEN",
    "POOL_CLOSED",
    "RESULT_IS_NO_JSON",
    "WORKER_DIED",
    "Id",
    "LineTooLong",
    "Lines",
    "Message",
    "Refused",
    "Request",
    "RpcError",
    "batch",
    "failure",
    "notification",
    "parse",
    "success",
    "to_json",
]

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
CALL_FAILED: Final = -32000
WORKER_DIED: Final = -32001
CALL_TIMEOUT: Final = -32002
CALL_CANCELLED: Final = -32003
RESULT_IS_NO_JSON: Final = -32004
NO_MEMORY: Final = -32005
POOL_BROKEN: Final = -32006
POOL_CLOSED: Final = -32007

Id = str | int | float | None
"""What ties a reply to its request."""

_SPLITS_LINES = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Line ends to some readers (Node's ``readline``, ``str.splitlines``), not to JSON."""


class RpcError(Exception):
    """A reply that is an error.

    Attributes:
        code: One of the numbers above.
        message: One or more sentences.
        data: What else is known: of an exception its type, message and traceback.
    """

    def __init__(
        self, code: int, message: str, data: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request, or a notification, which gets no reply."""

    id: Id
    method: str
    params: dict[str, Any] | list[Any]
    is_notification: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that is no request: ``error`` is the reply to it."""

    id: Id
    error: RpcError


Message = Request | Refused


# ---- lines


class LineTooLong:
    """Stands for a line that was over the limit, and was skipped."""


class Lines:
    r"""Cuts what is read into lines, and never keeps more than the limit.

    Args:
        limit: Bytes that a line may have, its end not counted.

    Example:
        >>> lines = Lines(limit=4)
        >>> list(lines.feed(b"on")), list(lines.feed(b"e\ntwo\n")), lines.end()
        ([], [b'one', b'two'], b'')
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | LineTooLong]:
        """The lines that end in ``data``; a line over the limit as soon as it is."""
        *ended, rest = data.split(b"\n")
        for part in ended:
            yield from self._add(part)
            if not self._skipping:
                yield bytes(self._rest)
            self._rest.clear()
            self._skipping = False
        yield from self._add(rest)

    def _add(self, part: bytes) -> Iterator[LineTooLong]:
        if self._skipping:
            return
        if len(self._rest) + len(part) > self._limit:
            self._rest.clear()
            self._skipping = True
            yield LineTooLong()
        else:
            self._rest += part

    def end(self) -> bytes:
        """What came after the last end of a line."""
        rest, self._rest = bytes(self._rest), bytearray()
        return rest


# ---- from bytes to requests


def parse(line: bytes) -> Message | list[Message] | None:
    """What a line asks for.

    Args:
        line: Without its end.

    Returns:
        A request, or the refusal of one; a list of these for a batch; None for a line
        of white space, which is skipped.
    """
    if not line or line.isspace():
        return None
    try:
        value = _from_json(line)
    except RpcError as error:
        return Refused(None, error)
    if not isinstance(value, list):
        return _request(value)
    if not value:
        return Refused(None, RpcError(INVALID_REQUEST, "an empty batch asks nothing"))
    return [_request(item) for item in value]


def _from_json(line: bytes) -> Any:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        msg = f"not UTF-8: {error.reason} at byte {error.start}"
        raise RpcError(PARSE_ERROR, msg) from None
    try:
        return json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite_float
        )
    except RecursionError:
        msg = "nested too deeply"
        raise RpcError(PARSE_ERROR, f"not JSON that can be read: {msg}") from None
    except ValueError as error:  # JSONDecodeError, and integers of too many digits
        raise RpcError(PARSE_ERROR, f"not JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is no JSON number"
    raise ValueError(msg)


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        msg = f"{text[:40]} is out of the range of a 64-bit float"
        raise ValueError(msg)
    return value


def _request(value: Any) -> Message:
    identity = None
    try:
        if not isinstance(value, dict):
            msg = f"a request is an object, not {_kind(value)}"
            raise RpcError(INVALID_REQUEST, msg)
        identity = _identity(value)
        method, params = _body(value)
    except RpcError as error:
        return Refused(identity, error)
    return Request(identity, method, params, "id" not in value)


def _identity(value: dict[str, Any]) -> Id:
    identity: Any = value.get("id")
    if isinstance(identity, bool) or not isinstance(identity, Id):
        msg = f"id must be a text, a number or null, not {_kind(identity)}"
        raise RpcError(INVALID_REQUEST, msg)
    if isinstance(identity, str) and not _is_unicode(identity):
        msg = "id holds a lone surrogate, which is no Unicode text"
        raise RpcError(INVALID_REQUEST, msg)
    return identity


def _body(value: dict[str, Any]) -> tuple[str, dict[str, Any] | list[Any]]:
    if value.get("jsonrpc") != "2.0":
        msg = 'jsonrpc must be "2.0"'
        raise RpcError(INVALID_REQUEST, msg)
    method: Any = value.get("method")
    if not isinstance(method, str):
        msg = f"method must be a text, not {_kind(method)}"
        raise RpcError(INVALID_REQUEST, msg)
    params: Any = value.get("params", {})
    if not isinstance(params, dict | list):
        msg = f"params must be an object or an array, not {_kind(params)}"
        raise RpcError(INVALID_REQUEST, msg)
    return method, params


def _kind(value: Any) -> str:
    """How JSON calls it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list):
        return "an array"
    return "an object" if isinstance(value, dict) else "a number"


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= mark <= "\udfff" for mark in text)


# ---- from replies to bytes


def to_json(value: Any) -> bytes:
    """A value in JSON, as UTF-8 and in one line for whatever reads it.

    Raises:
        TypeError, ValueError: It has no JSON. Keys that are no texts must have been
            found before: ``json`` turns some into texts.
        RecursionError: It is nested too deeply.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if not text.isascii():
        text = text.translate(_SPLITS_LINES)
    return text.encode("utf-8")


def success(identity: Id, result: bytes) -> bytes:
    """The reply with a result that is JSON already."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (to_json(identity), result)


def failure(identity: Id, error: RpcError) -> bytes:
    """The reply that is an error; texts lose their lone surrogates."""
    body: dict[str, Any] = {"code": error.code, "message": _clean(error.message)}
    if error.data is not None:
        body["data"] = {
            key: _clean(value) if isinstance(value, str) else value
            for key, value in error.data.items()
        }
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (to_json(identity), to_json(body))


def notification(method: str, params: bytes) -> bytes:
    """A message to the client that asks for no reply."""
    return b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (to_json(method), params)


def batch(replies: list[bytes]) -> bytes:
    """The replies to a batch, in one array."""
    return b"[%b]" % b",".join(replies)


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
