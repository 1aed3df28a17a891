"""The server's protocol: any bytes get a well-formed answer; values survive, or are refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from shmexec.cli.serving import jsonrpc
from shmexec.cli.serving.jsonrpc import Lines, LineTooLong, Refused, Request, RpcError
from shmexec.cli.serving.methods import METHODS, check_params
from shmexec.cli.serving.values import MARK, read_values, write_value

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = (
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
)
PLAIN = st.recursive(
    st.none() | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS.filter(lambda key: key != MARK), inner, max_size=4)
    ),
    max_leaves=8,
)
ARRAYS = hnp.arrays(
    dtype=st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="?"),
        hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
        hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
        hnp.datetime64_dtypes(endianness="?"),
        hnp.unicode_string_dtypes(endianness="?", max_len=4),
        hnp.byte_string_dtypes(max_len=4),
    ),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
NO_JSON = (
    st.just({1})
    | st.just(b"x")
    | st.just(1j)
    | st.just(float("nan"))
    | st.just(float("inf"))
    | st.just("\ud800")
    | st.just({1: "one"})
    | st.just({None: 1})
    | st.just({MARK: "x"})
    | st.just(np.array([None]))
    | st.just(np.ma.masked_array([1], [True]))
    | st.just(np.longdouble(1))
    | st.just(object())
)


def no_file(_path: str) -> np.ndarray:
    raise FileNotFoundError(2, "No such file or directory")


def one_line(reply: bytes) -> Any:
    """A reply as a client reads it, however its reader splits lines."""
    text = reply.decode("utf-8")
    assert text.splitlines() == [text]
    value = json.loads(text, parse_constant=pytest.fail)
    assert value["jsonrpc"] == "2.0"
    return value


def what_is_wrong_with(request: Request) -> RpcError | None:
    try:
        params = check_params(request.method, request.params)
        assert params.keys() == METHODS[request.method].keys()
        read_values(params, no_file)
    except RpcError as error:
        return error
    return None


MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | PLAIN,
        "id": PLAIN,
        "method": st.sampled_from([*METHODS]) | PLAIN,
        "params": PLAIN,
    },
)
LINES = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda value: json.dumps(value).encode(), MESSAGES | PLAIN),
    st.builds(lambda many: json.dumps(many).encode(), st.lists(MESSAGES, max_size=3)),
    st.text('[]{}:,"\\uD8nul0123eE+-. \x00\ufeffNaI', max_size=30).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    ),
)


@given(LINES)
@settings(max_examples=100)
def test_any_line_gets_well_formed_answers_or_none(line: bytes) -> None:
    parsed = jsonrpc.parse(line)
    if parsed is None:
        assert not line.strip()
        return
    assert parsed != []
    for message in parsed if isinstance(parsed, list) else [parsed]:
        if isinstance(message, Refused):
            reply = one_line(jsonrpc.failure(message.id, message.error))
            assert reply["error"]["code"] in {-32700, -32600}
        else:
            assert isinstance(message, Request)
            reply = one_line(jsonrpc.success(message.id, b"null"))
            assert not message.is_notification or message.id is None
            refused = what_is_wrong_with(message)
            if refused is not None:
                assert refused.code in {-32601, -32602}
                one_line(jsonrpc.failure(message.id, refused))
        assert type(reply["id"]) is not bool
        assert reply["id"] == message.id


@given(
    st.lists(st.binary(max_size=12), max_size=6),
    st.integers(1, 10),
    st.data(),
)
@settings(max_examples=60)
def test_lines_are_the_same_however_they_are_split(
    lines: list[bytes], limit: int, data: st.DataObject
) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    stream = b"".join(line + b"\n" for line in lines)
    found: list[bytes | None] = []
    reader = Lines(limit)
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        for line in reader.feed(stream[:size]):
            found.append(None if isinstance(line, LineTooLong) else line)
        assert len(reader._rest) <= limit
        stream = stream[size:]
    assert found == [line if len(line) <= limit else None for line in lines]
    assert reader.end() == b""


@given(PLAIN)
@settings(max_examples=60)
def test_values_come_back_equal(value: Any) -> None:
    written = write_value(value)
    assert written.decode("utf-8").splitlines() == [written.decode("utf-8")]
    parsed = json.loads(written)
    assert repr(read_values(parsed, no_file)) == repr(value)


@given(ARRAYS)
@settings(max_examples=60)
def test_arrays_come_back_equal(array: np.ndarray) -> None:
    parsed = json.loads(write_value({"deep": [array, 1, (array.T,)]}))
    read = read_values(parsed, no_file)["deep"]
    for found, wanted in ((read[0], array), (read[2][0], array.T)):
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert found.tobytes() == wanted.tobytes()
        assert found.flags.writeable


@given(NO_JSON, st.lists(st.integers(0, 2), max_size=4))
def test_what_json_cannot_write_is_refused_at_any_depth(
    value: Any, wraps: list[int]
) -> None:
    for wrap in wraps:
        value = [[value], {"key": value, "other": 1}, ("é", value)][wrap]
    with pytest.raises(RpcError) as caught:
        write_value(value)
    assert caught.value.code == -32004
    assert caught.value.data is not None
    assert caught.value.data.keys() == {"type", "message", "traceback"}
    one_line(jsonrpc.failure(1, caught.value))


JUNK = st.fixed_dictionaries(
    {MARK: st.text("AQ=", max_size=9) | st.just("x.npy") | PLAIN},
    optional={
        "dtype": st.sampled_from(["<f8", "O", "i4,i4", "V3", "S0", "U", "x", "<f2", ""])
        | PLAIN,
        "shape": st.lists(st.integers(-1, 2**65) | st.booleans(), max_size=70) | PLAIN,
        "more": PLAIN,
    },
)


@given(JUNK)
@settings(max_examples=80)
def test_what_stands_for_no_array_is_refused(value: dict[str, Any]) -> None:
    data, shape = value[MARK], value.get("shape")
    try:
        array = read_values({"x": value}, no_file)["x"]
    except RpcError as error:
        said = error.code, error.message[:8]
    else:
        said = None
        assert isinstance(shape, list)
        assert array.nbytes == math.prod(shape) * array.itemsize
        assert isinstance(data, str)
    assert said in {None, (-32602, "params.x")}
