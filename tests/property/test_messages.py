"""The codec: what goes in comes out, garbage is refused as such, however it is split."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from shmexec.wire import channel
from shmexec.wire.channel import Framer
from shmexec.wire.messages import (
    LARGEST,
    LEASES_AT_MOST,
    REFS_AT_MOST,
    Kind,
    MalformedMessage,
    Message,
    Mode,
    PackedResult,
    Ref,
    decode,
    decode_results,
    encode,
    encode_result,
    in_batches,
)
from tests.examples import examples

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
REFS = st.builds(Ref, U64, U32, U64, U64, st.sampled_from([int(m) for m in Mode]))
MESSAGES = st.builds(
    Message,
    kind=st.sampled_from(Kind),
    request=U64,
    generation=U32,
    number=st.integers(-(2**63), 2**63 - 1),
    seconds=st.floats(0, 1e9),
    refs=st.lists(REFS, max_size=5).map(tuple),
    leases=st.lists(U64, max_size=20).map(tuple),
    key=st.binary(max_size=40),
    payload=st.binary(max_size=200),
    spilled=st.booleans(),
    began=st.floats(0, 1e9),
).map(lambda message: message._replace(spilled=message.spilled and bool(message.refs)))

quick = settings(deadline=None, max_examples=examples(120))


def framed(*messages):
    return b"".join(map(channel.framed, messages))


@quick
@given(MESSAGES)
def test_round_trip(message):
    assert decode(encode(message)) == message


def test_the_largest_message_fits():
    message = Message(
        Kind.CALL,
        refs=(Ref(2**64 - 1, 2**32 - 1, 2**64 - 1, 2**64 - 1, 3),) * REFS_AT_MOST,
        leases=(2**64 - 1,) * LEASES_AT_MOST,
        key=b"k" * 1001,
        payload=b"p" * (32 * 1024 - 1),
        spilled=True,
    )
    assert decode(encode(message)) == message


def test_a_larger_one_is_not_sent():
    with pytest.raises(ValueError, match="larger"):
        encode(Message(Kind.CALL, payload=bytes(LARGEST)))


@quick
@given(st.binary(max_size=200))
def test_garbage_is_malformed_and_nothing_else(data):
    try:
        message = decode(data)
    except MalformedMessage:
        return
    assert encode(message) == data


@quick
@given(MESSAGES, st.data())
def test_damage_is_malformed_or_another_message(message, data):
    """No damage leads to another exception, nor to fields beyond the bytes."""
    whole = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(whole) - 1))
        whole[index] = data.draw(st.integers(0, 255))
    try:
        other = decode(bytes(whole))
    except MalformedMessage:
        return
    assert isinstance(other.kind, Kind)
    size = len(other.payload) + len(other.key) + 8 * len(other.leases)
    assert size <= len(whole)


@quick
@given(MESSAGES, st.data())
def test_a_truncated_or_longer_message_is_malformed(message, data):
    whole = encode(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (whole[:cut], whole + b"x"):
        with pytest.raises(MalformedMessage):
            decode(wrong)


@given(st.lists(st.integers(), max_size=3 * LEASES_AT_MOST))
@settings(deadline=None, max_examples=examples(20))
def test_in_batches_loses_nothing(numbers):
    batches = list(in_batches(numbers))
    assert [number for batch in batches for number in batch] == numbers
    assert all(0 < len(batch) <= LEASES_AT_MOST for batch in batches)


packed = st.builds(
    PackedResult,
    st.integers(0, 2**64 - 1),
    st.sampled_from([Kind.RESULT, Kind.ERROR]),
    st.floats(0, 1e9),
    st.binary(max_size=40),
    st.floats(0, 1e9),
)


@quick
@given(st.lists(packed, max_size=6))
def test_packed_results_come_back(results):
    data = b"".join([encode_result(*result) for result in results])
    assert decode_results(data) == results


@quick
@given(st.lists(packed, min_size=1, max_size=4), st.data())
def test_cut_packed_results_are_malformed(results, data):
    parts = [encode_result(*result) for result in results]
    cut = data.draw(st.integers(1, len(parts[-1]) - 1))
    with pytest.raises(MalformedMessage):
        decode_results(b"".join(parts)[:-cut])


@quick
@given(st.binary(max_size=80))
def test_what_is_no_packed_result_is_malformed(data):
    try:
        results = decode_results(data)
    except MalformedMessage:
        return
    assert b"".join([encode_result(*result) for result in results]) == data


# -- streams ---------------------------------------------------------------------------


def test_every_byte_split():
    messages = [
        encode(Message(Kind.READY, number=n, payload=b"x" * n)) for n in (0, 3, 9)
    ]
    stream = framed(*messages)
    for cut in range(len(stream) + 1):
        framer = Framer()
        assert [*framer.feed(stream[:cut]), *framer.feed(stream[cut:])] == messages


def test_byte_by_byte():
    messages = [b"", b"one", b"two"]
    framer = Framer()
    got = [m for byte in framed(*messages) for m in framer.feed(bytes([byte]))]
    assert got == messages


@quick
@given(st.lists(st.binary(max_size=50), max_size=8), st.data())
def test_any_split(messages, data):
    stream = framed(*messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    framer, got = Framer(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += framer.feed(stream[start:stop])
    assert got == messages


@quick
@given(st.lists(st.binary(max_size=30), max_size=5))
def test_a_framer_takes_anything(parts):
    framer = Framer()
    try:
        for part in parts:
            assert all(len(message) <= LARGEST for message in framer.feed(part))
    except MalformedMessage:
        pass


def test_an_announcement_of_too_much_is_malformed():
    with pytest.raises(MalformedMessage, match="larger than any"):
        list(Framer().feed(channel.framed(bytes(LARGEST + 1))[:8]))


@pytest.mark.parametrize("before", [b"", channel.framed(b"one")])
@pytest.mark.parametrize("data", [b"x", b"\xa5sh!", bytes(4), b"Traceback"])
def test_what_is_no_message_is_known_by_its_first_bytes(before, data):
    framer = Framer()
    found = []
    with pytest.raises(MalformedMessage, match="where a message is to start"):
        found.extend(framer.feed(before + data))
    assert found == [b"one"] * bool(before), "what came before it is not lost"


def test_a_message_that_broke_off_is_known_when_the_next_one_comes():
    framer, data = Framer(), channel.framed(b"x" * 60)
    with pytest.raises(MalformedMessage):
        list(framer.feed(data[:-20] + data))
