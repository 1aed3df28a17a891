"""A session whose service does what the test says: what waits, and what does not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from shmexec.cli.serving import session
from shmexec.cli.serving.session import IN_FLIGHT, Session
from shmexec.cli.serving.transport import Client
from shmexec.errors import SharedMemoryFull
from tests.waiting import LONG, wait_until


class ToldFuture(Future[Any]):
    """As the pool's, whose ``cancel`` takes ``running``."""

    def cancel(self, *, running: bool = False) -> bool:
        return super().cancel()


class Service:
    """Takes calls, and keeps them for the test; waits before it does, if told so."""

    def __init__(self) -> None:
        self.room = threading.Event()
        self.room.set()
        self.entered = threading.Event()
        self.futures: list[ToldFuture] = []
        self.full = 0

    def call(self, function: str, *_: Any) -> Future[Any]:
        self.entered.set()
        assert self.room.wait(LONG)
        if self.full:
            self.full -= 1
            raise SharedMemoryFull("full", needed=2, used=1, budget=2)
        future = ToldFuture()
        self.futures.append(future)
        if function == "done":
            future.set_result(len(self.futures))
        return future

    def stream(self, *_: Any) -> Any:
        raise AssertionError

    def functions(self) -> list[dict[str, Any]]:
        return [{"deep": {1: "a key that is no text"}}]

    def health(self) -> dict[str, Any]:
        return {"status": "ok"}

    def stats(self) -> dict[str, Any]:
        raise ZeroDivisionError

    def shutdown(self) -> None:
        raise AssertionError


class Conversation:
    def __init__(self, **settings: Any) -> None:
        self.service = Service()
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(LONG)
        self.file = self.ours.makefile("rb")
        descriptor = theirs.detach()
        self.ended = threading.Event()
        self.session = Session(
            Client(descriptor, descriptor),
            self.service,
            max_line=10_000,
            grace=settings.get("grace", LONG),
            ended=lambda _: self.ended.set(),
        )
        self.session.start()

    def send(self, identity: Any, method: str, *params: Any) -> None:
        message = {"jsonrpc": "2.0", "id": identity, "method": method}
        self.ours.sendall(json.dumps(message | {"params": params}).encode() + b"\n")

    def receive(self) -> tuple[Any, Any]:
        """A reply's id, and its result or the code of its error."""
        reply = json.loads(self.file.readline())
        return reply["id"], reply["error"]["code"] if "error" in reply else reply[
            "result"
        ]

    def close(self) -> None:
        self.file.close()
        self.ours.close()
        self.service.room.set()
        assert self.ended.wait(LONG)


@pytest.fixture
def conversation() -> Iterator[Conversation]:
    talk = Conversation()
    yield talk
    talk.close()


def test_a_submit_that_waits_for_memory_holds_up_no_cancel(
    conversation: Conversation,
) -> None:
    conversation.service.room.clear()
    conversation.send(1, "call", "one")
    conversation.send(2, "call", "two")
    assert conversation.service.entered.wait(LONG)
    conversation.send(3, "health")
    assert conversation.receive() == (3, {"status": "ok"})
    for identity in (1, 2):
        conversation.send(4, "cancel", identity)
        assert conversation.receive() == (4, True)
    conversation.service.room.set()
    assert {conversation.receive(), conversation.receive()} == {
        (1, -32003),
        (2, -32003),
    }
    assert len(conversation.service.futures) == 1  # the second one never was submitted


def test_a_client_that_goes_while_a_submit_waits(conversation: Conversation) -> None:
    conversation.service.room.clear()
    conversation.send(1, "call", "one")
    assert conversation.service.entered.wait(LONG)
    conversation.close()
    assert conversation.service.futures[0].cancelled()


def test_results_that_the_client_has_not_read_may_fill_shared_memory(
    conversation: Conversation,
) -> None:
    service = conversation.service
    service.full = 1
    conversation.send(1, "call", "f")
    assert conversation.receive() == (1, -32005)  # nobody else could make room
    for identity in (2, 3):
        conversation.send(identity, "call", "f")
    assert wait_until(lambda: len(service.futures) == 2)
    for future in service.futures:
        future.set_result("x" * 2_000_000)  # more than a socket takes
    service.full = 1
    conversation.send(4, "call", "done")
    assert wait_until(lambda: not service.full)
    assert [conversation.receive()[0] for _ in range(2)] == [2, 3]
    assert conversation.receive() == (4, 3)


def test_what_is_in_flight_is_bounded(conversation: Conversation) -> None:
    service = conversation.service
    batch = [
        {"jsonrpc": "2.0", "id": n, "method": "call", "params": ["f"]} for n in range(5)
    ]
    for number in range(IN_FLIGHT - 3):
        conversation.send(f"x{number}", "call", "f")
    assert wait_until(lambda: len(service.futures) == IN_FLIGHT - 3)
    # A batch goes in as one, or waits as one.
    conversation.ours.sendall(json.dumps(batch).encode() + b"\n")
    service.futures[0].set_result(0)
    assert conversation.receive() == ("x0", 0)
    assert wait_until(lambda: conversation.session.in_flight() == IN_FLIGHT - 4)
    assert len(service.futures) == IN_FLIGHT - 3
    service.futures[1].set_result(1)
    assert conversation.receive() == ("x1", 1)
    assert wait_until(lambda: len(service.futures) == IN_FLIGHT + 2)
    assert wait_until(lambda: conversation.session.in_flight() == IN_FLIGHT)
    for future in service.futures[-5:]:
        future.set_result(None)
    assert len(json.loads(conversation.file.readline())) == 5


def test_a_batch_that_could_never_go_in_is_refused(conversation: Conversation) -> None:
    line = b"[" + b",".join([b"1"] * (IN_FLIGHT + 1)) + b"]\n"
    conversation.ours.sendall(line)
    assert conversation.receive() == (None, -32600)


def test_the_grace_after_the_end_of_input() -> None:
    talk = Conversation(grace=0.01)
    talk.send(1, "call", "f")
    talk.ours.shutdown(socket.SHUT_WR)
    assert talk.receive() == (1, -32003)
    assert talk.file.readline() == b""
    talk.close()


def test_a_client_that_never_reads_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "FLUSH", 0.05)
    talk = Conversation(grace=0.01)
    talk.send(1, "call", "f")
    assert wait_until(lambda: talk.service.futures)
    talk.service.futures[0].set_result("x" * 2_000_000)
    talk.ours.shutdown(socket.SHUT_WR)
    assert talk.ended.wait(LONG)
    talk.close()


@pytest.mark.stress
def test_a_client_that_reads_slowly_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FLUSH", 1.0)
    talk = Conversation(grace=0.01)
    talk.send(1, "call", "f")
    assert wait_until(lambda: talk.service.futures)
    talk.service.futures[0].set_result("x" * 4_000_000)
    talk.ours.shutdown(socket.SHUT_WR)
    found = b""
    while data := talk.ours.recv(200_000):
        found += data
        threading.Event().wait(0.1)
    assert len(found) > 4_000_000
    talk.close()


def test_a_service_that_fails_is_an_internal_error(conversation: Conversation) -> None:
    conversation.send(1, "stats")
    assert conversation.receive() == (1, -32603)
    conversation.send(2, "functions")
    assert conversation.receive() == (2, -32004)
    conversation.send(3, "call", "done")
    assert conversation.receive() == (3, 1)
