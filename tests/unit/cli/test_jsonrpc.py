"""What the server says to each kind of wrong line, parameter and array."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmexec.cli.serving import jsonrpc
from shmexec.cli.serving.files import make_saver, open_array
from shmexec.cli.serving.jsonrpc import Refused, Request, RpcError
from shmexec.cli.serving.methods import check_params
from shmexec.cli.serving.values import MARK, read_values, write_value

SCRIPTS = "\U0001f600漢字مرحبا"  # noqa: RUF001  (Arabic is not Latin)


def refusal(line: bytes) -> tuple[Any, int, str]:
    parsed = jsonrpc.parse(line)
    assert isinstance(parsed, Refused)
    return parsed.id, parsed.error.code, parsed.error.message


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"jsonrpc": "2.0", "method": "foobar, "params": "bar"', "not JSON: "),
        (b"\xff\xfe", "not UTF-8: invalid start byte at byte 0"),
        (b'"\xed\xa0\x80"', "not UTF-8: "),  # a surrogate
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"NaN", "NaN is no JSON number"),
        (b"[-Infinity]", "-Infinity is no JSON number"),
        (b"1e999", "1e999 is out of the range"),
        (b"1" * 5000, "not JSON: "),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json(line: bytes, says: str) -> None:
    identity, code, message = refusal(line)
    assert (identity, code) == (None, -32700)
    assert says in message


@pytest.mark.parametrize(
    ("line", "identity", "says"),
    [
        (b"1", None, "a request is an object, not a number"),
        (b"[]", None, "an empty batch"),
        (b'{"jsonrpc": "2.0", "method": 1, "params": "bar"}', None, "method must be"),
        (b'{"jsonrpc": "2.0", "method": "f", "params": "bar"}', None, "params must be"),
        (b'{"jsonrpc": "2.0", "method": "f", "params": null, "id": 1}', 1, "not null"),
        (b'{"jsonrpc": 2.0, "method": "f", "id": "x"}', "x", 'jsonrpc must be "2.0"'),
        (b'{"method": "f", "id": 1.5}', 1.5, "jsonrpc must be"),
        (b'{"jsonrpc": "2.0", "method": "f", "id": true}', None, "id must be"),
        (b'{"jsonrpc": "2.0", "method": "f", "id": [1]}', None, "not an array"),
        (b'{"jsonrpc": "2.0", "method": "f", "id": "\\ud800"}', None, "lone surrogate"),
        (b'{"jsonrpc": "2.0", "result": 1, "id": 7}', 7, "method must be"),
    ],
)
def test_what_is_no_request(line: bytes, identity: Any, says: str) -> None:
    found, code, message = refusal(line)
    assert (found, code) == (identity, -32600)
    assert says in message


def test_requests_notifications_and_batches() -> None:
    line = b'{"jsonrpc": "2.0", "method": "f", "id": null, "more": 1}\r'
    assert jsonrpc.parse(line) == Request(None, "f", {})
    assert jsonrpc.parse(b'{"jsonrpc":"2.0","method":"f","params":[1]}') == Request(
        None, "f", [1], is_notification=True
    )
    batch = jsonrpc.parse(b'[1, {"jsonrpc": "2.0", "method": "f", "id": "\xc3\xa9"}]')
    assert isinstance(batch, list)
    assert isinstance(batch[0], Refused)
    assert batch[1] == Request("é", "f", {})
    assert jsonrpc.parse(b" \t\r") is None


def test_replies_stay_one_line_for_every_reader() -> None:
    text = "a\u2028b\u2029c\x85d\ne\x1cf " + SCRIPTS
    reply = jsonrpc.success(1, write_value(text)).decode()
    assert reply.splitlines() == [reply]
    assert json.loads(reply)["result"] == text
    assert SCRIPTS in reply  # as it is, not as escapes


def test_messages_of_errors_are_always_unicode() -> None:
    error = RpcError(-32000, "a\udcffb", {"message": "\ud800", "type": "X"})
    reply = json.loads(jsonrpc.failure(None, error))
    assert reply["id"] is None
    assert reply["error"]["message"] == "a\\udcffb"
    assert reply["error"]["data"]["message"] == "\\ud800"


@pytest.mark.parametrize(
    ("method", "params", "code", "says"),
    [
        ("run", {}, -32601, "no method 'run', but call, stream"),
        ("call", {}, -32602, "params.function is missing"),
        ("call", {"function": 1}, -32602, "params.function must be a text"),
        ("call", {"function": "f", "arg": []}, -32602, "not 'arg'"),
        ("call", ["f", {}], -32602, "params.args must be an array"),
        ("call", ["f", [], []], -32602, "params.kwargs must be an object"),
        ("call", ["f", [], {}, 0], -32602, "seconds greater than 0"),
        ("call", ["f", [], {}, True], -32602, "seconds greater than 0"),
        ("call", ["f", [], {}, "1"], -32602, "seconds greater than 0"),
        ("call", [1, 2, 3, 4, 5, 6], -32602, "at most 5 params, not 6"),
        ("stream", {"function": "f", "buffersize": 0}, -32602, "params.buffersize"),
        ("cancel", {}, -32602, "params.id is missing"),
        ("health", {"x": 1}, -32602, "takes no params"),
    ],
)
def test_wrong_params(method: str, params: Any, code: int, says: str) -> None:
    with pytest.raises(RpcError) as caught:
        check_params(method, params)
    assert caught.value.code == code
    assert says in caught.value.message


def test_params_that_are_left_out_or_null() -> None:
    by_name = check_params("call", {"function": "f", "timeout": None, "kwargs": None})
    assert by_name == check_params("call", ["f"])
    assert by_name == {
        "function": "f",
        "args": [],
        "kwargs": {},
        "timeout": None,
        "arrays": None,
    }


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("\ud83d", "params holds a lone surrogate (U+D83D)"),
        ([{"a": "\udc00"}], "params[0].a holds a lone surrogate"),
        ({"\ud800": 1}, "a key of params holds a lone surrogate"),
        ({MARK: "AAAA"}, "needs its dtype and its shape"),
        (
            {MARK: "AA==", "dtype": "u1", "shape": [2]},
            "takes 2 bytes, and 1 were given",
        ),
        ({MARK: "A", "dtype": "u1", "shape": [1]}, "is not base64"),
        ({MARK: "A A=A==", "dtype": "u1", "shape": [1]}, "is not base64"),
        ({MARK: "AA==", "dtype": "object", "shape": [1]}, "cannot be passed"),
        ({MARK: "AA==", "dtype": "u1,u1", "shape": [1]}, "cannot be passed"),
        ({MARK: "AA==", "dtype": "nope", "shape": [1]}, "'nope' is no dtype"),
        ({MARK: "AA==", "dtype": "u1", "shape": [True]}, "shape must be"),
        ({MARK: "AA==", "dtype": "u1", "shape": [-1]}, "shape must be"),
        ({MARK: "AA==", "dtype": "u1", "shape": [1] * 70}, "dimension"),
        ({MARK: 1, "dtype": "u1", "shape": [1]}, "must be {"),
        ({MARK: "AA==", "dtype": "u1", "shape": [1], "order": "F"}, "must be {"),
    ],
)
def test_wrong_arguments(value: Any, says: str) -> None:
    with pytest.raises(RpcError, match=r"^(a key of )?params") as caught:
        read_values(value, open_array)
    assert caught.value.code == -32602
    assert says in caught.value.message


def test_results_that_are_no_json_say_where() -> None:
    def refused(value: Any) -> str:
        with pytest.raises(RpcError) as caught:
            write_value(value)
        assert caught.value.code == -32004
        return caught.value.message

    assert refused({"a": [1, {2}]}).startswith("result.a[1] is of type set, which JSON")
    assert refused([{1: 2}]).startswith("a key of result[0] is 1")
    assert "Out of range float" in refused([1.0, float("nan")])
    assert "Out of range float" in refused(np.float32("inf"))
    assert "contains itself" in refused((loop := [], loop.append((loop,)))[0])
    assert "dtype object" in refused(np.array([{}]))
    assert "numpy.ma" in refused(np.ma.masked_array([1.0], [True]))
    assert "lone surrogate" in refused({"\ud800": 1})


def test_numpy_scalars_and_tuples() -> None:
    value = (np.float32(0.5), np.int64(-3), np.bool_(1), np.str_("é"), (None, True))
    assert json.loads(write_value(value)) == [0.5, -3, True, "é", [None, True]]


def test_arrays_in_files(tmp_path: Path) -> None:
    array = np.arange(6, dtype=">i2").reshape(2, 3).T
    save = make_saver({"npy": str(tmp_path)})
    parsed = json.loads(write_value([array], save))
    assert Path(parsed[0][MARK]).parent == tmp_path
    assert Path(parsed[0][MARK]).stat().st_mode & 0o777 == 0o600
    assert parsed[0]["shape"] == [3, 2]
    assert parsed[0]["dtype"] == ">i2"
    read = read_values(parsed, open_array)[0]
    assert isinstance(read, np.memmap)
    assert not read.flags.writeable
    assert np.array_equal(read, array)


def test_wrong_files_and_folders(tmp_path: Path) -> None:
    def refused(path: Path, **more: Any) -> str:
        with pytest.raises(RpcError) as caught:
            read_values({MARK: str(path), **more}, open_array)
        assert caught.value.code == -32602
        return caught.value.message

    good = tmp_path / "good.npy"
    np.save(good, np.zeros((2, 3), "f4"))
    assert "has shape (2, 3), not (6,)" in refused(good, shape=[6])
    assert "has dtype float32, not float64" in refused(good, dtype="f8")
    assert "No such file" in refused(tmp_path / "none.npy")
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([None]), allow_pickle=True)
    assert "cannot read" in refused(objects)
    structured = tmp_path / "structured.npy"
    np.save(structured, np.zeros(1, "i4,i4"))
    assert "cannot be passed" in refused(structured)
    nothing = tmp_path / "nothing.npy"
    np.save(nothing, np.zeros((0, 3)))
    assert read_values({MARK: str(nothing)}, open_array).shape == (0, 3)
    short = tmp_path / "short.npy"
    short.write_bytes(good.read_bytes()[:-1])
    assert "cannot read" in refused(short)
    empty = tmp_path / "empty.npy"
    empty.touch()
    assert "cannot read" in refused(empty)
    folder = tmp_path / "folder.npy"
    folder.mkdir()
    assert "it is not a file" in refused(folder)
    for arrays in ({}, {"npy": 1}, {"npy": "x", "y": 1}, {"npy": str(good)}):
        with pytest.raises(RpcError, match=r"params\.arrays"):
            make_saver(arrays)
