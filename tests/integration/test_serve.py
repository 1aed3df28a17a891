"""``shmexec serve`` as a program meets it that knows JSON-RPC and nothing else."""

from __future__ import annotations

import base64
import json
import os
import random
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from shmexec.cli import main
from shmexec.cli.serving.session import IN_FLIGHT
from tests.integration.serving import MODEL, Server, SocketTalk
from tests.waiting import LONG, wait_until

pytestmark = pytest.mark.slow

SCRIPTS = {
    "emoji": "\U0001f600\U0001f1e9\U0001f1ea",
    "漢字": "مرحبا",
    "e\u0301": "\u2028",
}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, _process_wide_things: None
) -> Iterator[Server]:
    """One that tests share; they leave it as it was."""
    with Server(tmp_path_factory.mktemp("serve"), "--workers", "2") as shared:
        assert shared.ask("health")["workers"] == 2
        yield shared
        assert shared.end() == 0


@pytest.fixture
def held(server: Server) -> Iterator[int]:
    """The id of a call that runs until the end of the test, which is answered then."""
    identity = server.hold()
    yield identity
    server.go()
    assert server.receive() == {"jsonrpc": "2.0", "id": identity, "result": "held"}


def array_of(value: dict[str, Any]) -> np.ndarray:
    data = base64.b64decode(value["__ndarray__"], validate=True)
    return np.frombuffer(data, value["dtype"]).reshape(value["shape"])


def json_of(array: np.ndarray) -> dict[str, Any]:
    return {
        "__ndarray__": base64.b64encode(array.tobytes()).decode(),
        "dtype": array.dtype.str,
        "shape": list(array.shape),
    }


# -- methods ---------------------------------------------------------------------------


def test_calls_of_every_kind(server: Server) -> None:
    assert server.call("echo", 1, [None, 2.5], a=SCRIPTS) == [
        [1, [None, 2.5]],
        {"a": SCRIPTS},
    ]
    assert server.call("later", 3) == 3
    assert server.call("Net.predict", [1, 2], scale=3) == [3, 6]
    assert server.ask("call", function="echo") == [[], {}]


def test_functions(server: Server) -> None:
    functions = {each["name"]: each for each in server.ask("functions")}
    assert functions["echo"] == {
        "name": "echo",
        "kind": "function",
        "signature": "(*args, **kwargs)",
        "doc": "What it got.",
    }
    assert functions["later"]["kind"] == "async"
    assert functions["count_up"]["kind"] == "generator"
    assert functions["Net.predict"]["signature"] == "(x, scale=1)"


def test_health_and_stats_while_all_workers_are_busy(server: Server, held: int) -> None:
    health = server.ask("health")
    assert health["status"] == "ok"
    assert health["pid"] == server.process.pid
    assert (health["workers"], health["max_workers"]) == (2, 2)
    assert health["running"] == 1
    stats = server.ask("stats")
    assert stats["pool"]["max_workers"] == 2
    assert stats["clients"] == 1
    # The one that is held, and this one; the last one counts until it was written.
    assert wait_until(lambda: server.ask("stats")["in_flight"] == 2)


def test_replies_come_as_they_are_done(server: Server, held: int) -> None:
    assert server.call("echo", "quick") == [["quick"], {}]


@pytest.mark.parametrize(
    ("function", "args", "code", "type_name", "says"),
    [
        ("ech", [], -32602, "UnknownFunction", "did you mean 'echo'"),
        ("later", [], -32602, "WrongArguments", "missing a required argument: 'x'"),
        ("count_up", [1], -32602, None, "its items come by the method 'stream'"),
        ("misuse", [], -32000, "TypeError", "object of type 'int' has no len()"),
        ("fail", ["漢字"], -32000, "OwnError", "漢字"),
        ("leave", [], -32000, "SystemExit", "enough"),
        ("give", ["set"], -32004, "NotJSON", "result is of type set"),
        ("give", ["key"], -32004, "NotJSON", "a key of result is 1"),
        ("give", ["nan"], -32004, "NotJSON", "Out of range float"),
        ("give", ["bytes"], -32004, "NotJSON", "result is of type bytes"),
        ("echo", ["\ud800"], -32602, None, "params.args[0] holds a lone surrogate"),
        ("echo", [{"\ud800": 1}], -32602, None, "a key of params.args[0] holds a lone"),
    ],
)
def test_errors(
    server: Server,
    function: str,
    args: list[Any],
    code: int,
    type_name: str | None,
    says: str,
) -> None:
    error = server.call(function, *args)
    assert error["code"] == code
    assert says in error["message"]
    if type_name is not None:
        assert error["data"]["type"] == type_name
        assert says in error["data"]["message"]
        traceback = error["data"]["traceback"]
        assert (f"in {function}" in traceback) == (code == -32000)


def test_lines_that_are_no_requests(server: Server) -> None:
    for line, code in (
        (b"\xff\xfe{}", -32700),
        (b"{", -32700),
        (b'{"jsonrpc": "2.0", "id": null, "method": "echo"}', -32601),
        (b'{"jsonrpc": "1.0"}', -32600),
        (b"[]", -32600),
    ):
        server.send_raw(line + b"\r\n\n")
        reply = server.receive()
        assert (reply["id"], reply["error"]["code"]) == (None, code)
    assert server.call("echo") == [[], {}]


def test_batches_and_notifications(server: Server, tmp_path: Path) -> None:
    call = {"jsonrpc": "2.0", "method": "call", "params": ["echo"]}
    touch = call | {"params": ["touch", [str(tmp_path / "touched")]]}
    server.send([call, touch], call | {"method": "nothing"}, call | {"params": [1]})
    server.send([call | {"id": "a"}, call, 5, call | {"id": "b", "params": ["fail"]}])
    replies = {reply["id"]: reply for reply in server.receive()}
    assert replies.keys() == {"a", "b", None}
    assert replies["a"]["result"] == [[], {}]
    assert replies["b"]["error"]["code"] == -32602
    assert replies[None]["error"]["code"] == -32600
    assert server.call("echo", 1) == [[1], {}]  # nothing came for the notifications
    assert wait_until((tmp_path / "touched").exists)  # but they ran


def test_an_id_in_use_is_refused(server: Server, held: int) -> None:
    message = {"jsonrpc": "2.0", "id": held, "method": "health"}
    server.send(message)
    reply = server.receive()
    assert (reply["id"], reply["error"]["code"]) == (held, -32600)
    assert "not answered yet" in reply["error"]["message"]


def test_what_is_printed_never_comes_between_replies(server: Server) -> None:
    numbers = [server.request("call", function="noise") for _ in range(4)]
    replies = server.replies(4)
    assert [replies[number]["result"] for number in numbers] == ["noise"] * 4
    told = wait_until(lambda: server.stderr().count("from a child") == 4)
    assert told
    for text in ("no line end", "an error", "to descriptor 1", "forged"):
        assert server.stderr().count(text) == 4


# -- arrays ----------------------------------------------------------------------------


def test_arrays_in_base64(server: Server) -> None:
    array = np.arange(12, dtype=">f4").reshape(3, 4)
    reply = server.call("double", json_of(array))
    assert reply["dtype"] == ">f4"
    np.testing.assert_array_equal(array_of(reply), array * 2)
    empty = np.zeros((0, 3), "u1")
    assert server.call("double", json_of(empty)) == json_of(empty)
    (deep,), _ = server.call("echo", {"x": [json_of(array[0])]})
    np.testing.assert_array_equal(array_of(deep["x"][0]), array[0])


def test_wrong_arguments_by_name(server: Server) -> None:
    for kwargs, says in (
        ({"\ud800": 1}, "a key of params.kwargs holds a lone surrogate"),
        ({"x": {"__ndarray__": "A"}}, "params.kwargs.x: an array in base64 needs"),
        (json_of(np.zeros(1)), "params.kwargs must have names"),
    ):
        error = server.ask("call", function="echo", kwargs=kwargs)
        assert error["code"] == -32602
        assert error["message"].startswith(says)


def test_arrays_in_files_are_mapped(server: Server, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.arange(100_000))
    before = server.ask("stats")["pool"]
    asked = server.ask(
        "call",
        function="echo",
        args=[{"__ndarray__": str(tmp_path / "in.npy")}],
        arrays={"npy": str(tmp_path)},
    )
    found = asked[0][0]
    assert (found["dtype"], found["shape"]) == ("<i8", [100_000])
    np.testing.assert_array_equal(np.load(found["__ndarray__"]), np.arange(100_000))
    assert Path(found["__ndarray__"]).parent == tmp_path
    after = server.ask("stats")["pool"]
    assert after["bytes_copied_in"] == before["bytes_copied_in"]
    head = {"__ndarray__": str(tmp_path / "small.npy"), "shape": [2]}
    np.save(tmp_path / "small.npy", np.array([1, 2]))
    assert server.call("look", head) == [[1, 2], False, "<i8"]
    error = server.call("look", head | {"shape": [3]})
    assert error["code"] == -32602
    assert "has shape (2,), not (3,)" in error["message"]


# -- streams and cancelling ------------------------------------------------------------


def test_streams(server: Server) -> None:
    items, reply = server.stream("count_up", 50)
    assert items == list(range(50))
    assert reply["result"] == {"items": 50}
    assert server.stream("count_async", 2)[0] == [{"i": 0}, {"i": 1}]
    items, _ = server.stream("arrays", 2)
    assert [array_of(item).tolist() for item in items] == [[0, 0, 0], [1, 1, 1]]


def test_a_stream_that_fails_does_so_after_its_items(server: Server) -> None:
    items, reply = server.stream("count_up", 5, 3)
    assert items == [0, 1, 2]
    assert reply["error"]["code"] == -32000
    assert reply["error"]["data"]["type"] == "OwnError"
    assert "in count_up" in reply["error"]["data"]["traceback"]
    items, reply = server.stream("echo")
    assert (items, reply["error"]["code"]) == ([], -32602)
    assert "no generator" in reply["error"]["message"]
    message = {"jsonrpc": "2.0", "id": "b", "method": "stream"}
    server.send(message | {"params": {"function": "arrays", "buffersize": 2**40}})
    error = server.receive()["error"]
    assert error["code"] == -32602
    assert error["message"].startswith("params.buffersize must be at most")
    items, reply = server.stream("count_up")
    assert (items, reply["error"]["code"]) == ([], -32602)
    items, reply = server.stream("odd_items")
    assert (items, reply["error"]["code"]) == ([1], -32004)
    assert reply["error"]["message"].startswith("item is of type set")
    silent = {"jsonrpc": "2.0", "method": "stream", "params": ["count_up", [3]]}
    server.send(silent)
    assert server.call("echo") == [[], {}]


def test_cancelling(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "1") as server:
        running = server.hold()
        waiting = server.request("call", function="echo")
        for identity in (waiting, running):
            message = {"jsonrpc": "2.0", "method": "cancel", "params": {"id": identity}}
            server.send(message)
            assert server.receive()["error"]["code"] == -32003
        assert server.ask("cancel", id=running) is False
        assert server.ask("cancel", id=None)["code"] == -32602
        assert server.ask("cancel", id=[1])["code"] == -32602
        assert server.call("pid") != server.holder
        held = server.hold()
        assert server.request("cancel", id=held) > held
        replies = server.replies(2)
        assert replies.pop(held)["error"]["data"]["type"] == "CallStopped"
        assert [reply["result"] for reply in replies.values()] == [True]

        endless = server.request("stream", function="endless", args=[str(tmp_path)])
        assert server.receive()["params"] == {"id": endless, "item": 0}
        cancel = server.request("cancel", id=endless)
        replies = {}
        while replies.keys() != {endless, cancel}:
            message = server.receive()
            if "method" not in message:
                replies[message["id"]] = message
        assert replies[endless]["error"]["code"] == -32003
        assert server.call("echo") == [[], {}]
        assert server.end() == 0


# -- failures --------------------------------------------------------------------------


def test_a_time_out_ends_that_call_only(tmp_path: Path) -> None:
    with Server(tmp_path, "--timeout", "0.2") as server:
        for _ in range(4):
            identity = server.hold()
            error = server.receive()["error"]
            assert error["code"] == -32002
            assert error["data"]["type"] == "CallTimeout"
            assert "in hold" in error["data"]["traceback"]
        identity = server.request(
            "call", function="hold", args=[str(tmp_path)], timeout=LONG
        )
        server.held_pid()
        server.go()
        assert server.receive() == {"jsonrpc": "2.0", "id": identity, "result": "held"}
        assert server.end() == 0


def test_a_death_fails_one_call_of_a_hundred(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        numbers = [
            server.request(
                "call", function="die" if i == 50 else "echo", args=[i] * (i != 50)
            )
            for i in range(100)
        ]
        replies = server.replies(100)
        failed = replies.pop(numbers.pop(50))
        assert failed["error"]["code"] == -32001
        assert failed["error"]["data"]["type"] == "WorkerDied"
        assert [replies[number]["result"][0] for number in numbers] == [
            [i] for i in range(100) if i != 50
        ]
        assert server.ask("stats")["pool"]["worker_deaths"] == 1
        assert server.end() == 0


def test_when_no_worker_can_be_started_calls_fail(tmp_path: Path) -> None:
    model = "import os\nif os.path.exists('broken'): os._exit(9)\n" + MODEL
    with Server(tmp_path, model=model) as server:
        running = server.hold()
        queued = [server.request("call", function="echo") for _ in range(3)]
        (tmp_path / "broken").touch()
        os.kill(server.holder, signal.SIGKILL)
        replies = server.replies(4)
        assert replies[running]["error"]["data"]["type"] == "WorkerDied"
        assert {replies[n]["error"]["code"] for n in queued} == {-32006}
        assert server.ask("health")["status"] == "broken"
        assert server.call("echo")["data"]["type"] == "PoolBroken"
        assert server.end() == 0


@pytest.mark.parametrize(
    ("model", "says", "traceback"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'", True),
        ("import sys; sys.exit(3)", "called sys.exit(3)", True),
        ("import os; os._exit(7)", "code 7", False),
    ],
)
def test_a_script_that_cannot_be_loaded(
    tmp_path: Path, model: str, says: str, traceback: bool
) -> None:
    with Server(tmp_path, model=model) as server:
        server.request("health")
        assert server.receive() is None
        assert server.wait() == 1
        *details, last = server.stderr().splitlines()
        assert last.startswith("shmexec serve: error: cannot load model.py: ")
        assert says in last
        assert ("model.py" in "\n".join(details)) == traceback


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model"], "must be a .py file"),
        (["nowhere.py"], "nowhere.py does not exist"),
        (["folder.py"], "folder.py is not a file"),
        (["model.py", "--max-line", "0"], "--max-line"),
        (["model.py", "--grace", "-1"], "--grace"),
        (["model.py", "--socket", "folder.py"], "it exists, and is no socket"),
        (["model.py", "--socket", "no/folder"], "No such file"),
        (["model.py", "--socket", "x" * 200], "path too long"),
    ],
)
def test_bad_arguments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "folder.py").mkdir()
    assert main(["serve", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


# -- the end ---------------------------------------------------------------------------


def test_calls_finish_after_the_end_of_input(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        held = server.hold()
        server.send_raw(
            b'{"jsonrpc": "2.0", "id": 2, "method": "call", "params": ["echo"]}'
        )  # its line has no end
        server.end_input()
        server.go()
        replies = server.replies(2)
        assert replies[held]["result"] == "held"
        assert replies[2]["result"] == [[], {}]
        assert server.receive() is None
        assert server.wait() == 0


def test_calls_that_do_not_finish_are_cancelled(tmp_path: Path) -> None:
    with Server(tmp_path, "--grace", "0.1") as server:
        held, queued = server.hold(), server.request("call", function="echo")
        server.end_input()
        replies = server.replies(2)
        assert replies[held]["error"]["data"]["type"] == "CallStopped"
        assert replies[queued]["error"]["code"] == -32003
        assert server.receive() is None
        assert server.wait() == 0


def test_sigterm_lets_calls_finish(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        held = server.hold()
        server.process.send_signal(signal.SIGTERM)
        server.go()
        assert server.receive()["id"] == held
        assert server.receive() is None
        assert server.wait() == 128 + signal.SIGTERM
        assert "stopped by SIGTERM" in server.stderr()


def test_a_second_signal_does_not(tmp_path: Path) -> None:
    with Server(tmp_path, "--grace", "1000") as server:
        held = server.hold()
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGINT)
        assert server.receive()["error"]["code"] == -32003
        assert held
        assert server.receive() is None
        assert server.wait() == 128 + signal.SIGTERM


def test_sigterm_while_the_script_is_loaded(tmp_path: Path) -> None:
    model = "with open('here', 'w') as f: f.write('1')\nopen('go').read()"
    with Server(tmp_path, model=model) as server:
        server.held_pid()
        server.process.send_signal(signal.SIGTERM)
        assert server.receive() is None
        assert server.wait() == 128 + signal.SIGTERM


def test_shutdown(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        held = server.hold()
        assert server.ask("shutdown") is None
        server.go()
        assert server.receive()["id"] == held
        assert server.receive() is None
        assert server.wait() == 0


def test_a_client_that_goes_takes_its_calls_along(tmp_path: Path) -> None:
    with Server(tmp_path, "--grace", "1000") as server:
        server.hold()
        assert server.process.stdout is not None
        server.process.stdout.close()
        assert server.wait() == 0
        assert not psutil.pid_exists(server.holder)


def test_replies_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "requests").write_text('{"jsonrpc":"2.0","id":1,"method":"health"}')
    command = [sys.executable, "-m", "shmexec", "serve", "model.py"]
    with open(tmp_path / "requests") as requests, open("/dev/full", "w") as full:
        done = subprocess.run(
            command, cwd=tmp_path, stdin=requests, stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    assert done.stderr.endswith(b"cannot write replies: No space left on device\n")


def test_prints_go_nowhere_if_stderr_is_closed(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    request = '{"jsonrpc":"2.0","id":1,"method":"call","params":["noise"]}'
    done = subprocess.run(
        f"'{sys.executable}' -m shmexec serve model.py 2>&-",
        shell=True,
        cwd=tmp_path,
        input=request.encode(),
        stdout=subprocess.PIPE,
    )
    assert json.loads(done.stdout) == {"jsonrpc": "2.0", "id": 1, "result": "noise"}
    assert done.returncode == 0


def test_a_grandchild_that_holds_all_pipes_holds_up_nobody(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        grandchild = psutil.Process(server.call("grandchild"))
        try:
            server.end_input()
            assert server.receive() is None
            assert server.process.wait(LONG) == 0
        finally:
            grandchild.kill()


# -- long lines and slow readers -------------------------------------------------------


def test_a_line_over_the_limit_is_skipped(tmp_path: Path) -> None:
    with Server(tmp_path, "--max-line", "10KB") as server:
        assert server.call("large", 100_000) == "x" * 100_000  # replies have no limit
        server.send_raw(b"[" + b"1," * 200_000)
        reply = server.receive()  # before the line has ended
        assert (reply["id"], reply["error"]["code"]) == (None, -32600)
        assert (
            "a line of more than 10,000 bytes was skipped" in reply["error"]["message"]
        )
        server.send_raw(b"1]\n")
        assert server.call("echo") == [[], {}]
        assert server.end() == 0


def test_a_client_that_does_not_read_stderr_loses_no_other_call(tmp_path: Path) -> None:
    reading, writing = os.pipe()  # nobody reads it
    try:
        arguments = ("--workers", "2", "--grace", "0.1")
        with Server(tmp_path, *arguments, stderr=writing) as server:
            stuck = server.request("call", function="shout", args=[10**6])
            poll = select.poll()
            poll.register(writing, select.POLLOUT)
            assert wait_until(lambda: not poll.poll(0))  # it is full
            for number in range(10):
                assert server.call("echo", number) == [[number], {}]
            server.process.send_signal(signal.SIGTERM)
            reply = server.receive()
            assert (reply["id"], reply["error"]["code"]) == (stuck, -32003)
            assert server.wait() == 128 + signal.SIGTERM
    finally:
        os.close(reading)
        os.close(writing)


# -- the socket ------------------------------------------------------------------------


@pytest.fixture
def at_socket(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, "--socket", "model.sock", "--workers", "2") as server:
        assert wait_until(lambda: "listens at model.sock" in server.stderr())
        yield server


def test_clients_at_a_socket(at_socket: Server, tmp_path: Path) -> None:
    path = tmp_path / "model.sock"
    found = path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    with SocketTalk(path) as one, SocketTalk(path) as two:
        held = one.request("call", function="hold", args=[str(tmp_path)])
        pid = at_socket.held_pid()
        assert two.call("echo", "漢字") == [["漢字"], {}]
        assert two.ask("cancel", id=held) is False  # it is the other client's
        assert two.ask("stats")["clients"] == 2
        # One goes, and its call with it; the other one notices nothing.
        one.socket.close()
        assert wait_until(lambda: not psutil.pid_exists(pid))
        assert two.call("echo", 1) == [[1], {}]
        # What was asked before the end of input is answered.
        two.request("call", function="echo", args=[2])
        two.socket.shutdown(socket.SHUT_WR)
        assert two.receive()["result"] == [[2], {}]
        assert two.receive() is None
    with SocketTalk(path) as three:
        assert three.ask("stats")["clients"] == 1
        assert three.ask("shutdown") is None
        assert three.receive() is None
    assert at_socket.wait() == 0
    assert not path.exists()


def test_a_client_that_does_not_read_is_not_listened_to(
    at_socket: Server, tmp_path: Path
) -> None:
    path = tmp_path / "model.sock"
    number = 2500
    with SocketTalk(path) as slow, SocketTalk(path) as other:

        def send() -> None:
            for _ in range(number):
                slow.request("call", function="large", args=[4000])

        def is_stuck() -> bool:
            stats = other.ask("stats")
            assert stats["in_flight"] <= IN_FLIGHT + 2
            pool = stats["pool"]
            busy = pool["pending"] or pool["running"]
            return stats["in_flight"] == IN_FLIGHT + 1 and not busy

        sender = threading.Thread(target=send)
        sender.start()
        assert wait_until(is_stuck)
        assert other.ask("stats")["pool"]["submitted"] < 2000
        replies = slow.replies(number)
        sender.join()
        assert {reply["result"] for reply in replies.values()} == {"x" * 4000}


def test_a_socket_in_use_is_refused_and_a_dead_one_replaced(
    at_socket: Server, tmp_path: Path
) -> None:
    path = tmp_path / "model.sock"
    folder = tmp_path / "second"
    folder.mkdir()
    with Server(folder, "--socket", str(path)) as second:
        assert second.wait() == 2
        assert "something listens there" in second.stderr()
    at_socket.process.kill()
    at_socket.wait()
    assert path.exists()
    with pytest.raises(ConnectionRefusedError):
        SocketTalk(path)
    with Server(folder, "--socket", str(path)) as second:
        assert wait_until(lambda: "listens at" in second.stderr())
        with SocketTalk(path) as talk:
            assert talk.call("echo") == [[], {}]
        second.process.send_signal(signal.SIGTERM)
        assert second.wait() == 128 + signal.SIGTERM
    assert not path.exists()


def test_sigterm_reaches_every_client(at_socket: Server, tmp_path: Path) -> None:
    path = tmp_path / "model.sock"
    with SocketTalk(path) as one, SocketTalk(path) as two:
        held = one.request("call", function="hold", args=[str(tmp_path)])
        at_socket.held_pid()
        at_socket.process.send_signal(signal.SIGTERM)
        assert two.receive() is None
        with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
            SocketTalk(path)
        at_socket.go()
        assert one.receive()["id"] == held
        assert one.receive() is None
    assert at_socket.wait() == 128 + signal.SIGTERM


class Nuisance:
    """A client that does anything that a client may do, and some things it may not."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)

    def __call__(self) -> None:
        with SocketTalk(self.path) as talk:
            with suppress(ConnectionError):
                for _ in range(self.random.randrange(1, 30)):
                    talk.send_raw(self.line())
                    if self.random.random() < 0.3:
                        with suppress(BlockingIOError):
                            size = 1 << self.random.randrange(1, 20)
                            talk.socket.recv(size, socket.MSG_DONTWAIT)
                if self.random.random() < 0.5:
                    talk.socket.shutdown(socket.SHUT_WR)
                    while talk.socket.recv(1 << 20):
                        pass

    def line(self) -> bytes:
        chance = self.random.random()
        if chance < 0.1:
            return self.random.randbytes(self.random.randrange(3000)) + b"\n"
        message: Any = self.request()
        if chance < 0.3:
            message = [self.request() for _ in range(self.random.randrange(4))]
        data = json.dumps(message).encode()
        if chance < 0.4:
            data = data[: self.random.randrange(len(data))]
        return data + b"\n"

    def request(self) -> dict[str, Any]:
        method, params = self.random.choice(
            [
                ("call", ["echo", ["x" * self.random.randrange(20_000)]]),
                ("call", ["large", [self.random.randrange(10**6)]]),
                ("call", ["misuse"]),
                ("call", ["die"]) if self.random.random() < 0.2 else ("health", []),
                ("call", ["echo", [1], {}, 0.001]),
                ("stream", ["count_up", [self.random.randrange(500)]]),
                ("stream", ["endless", [str(self.path.parent)]]),
                ("cancel", [self.random.randrange(10)]),
                ("stats", []),
            ]
        )
        request = {"jsonrpc": "2.0", "method": method, "params": params}
        if self.random.random() < 0.9:
            request["id"] = self.random.randrange(10)
        return request


@pytest.mark.stress
def test_clients_of_all_kinds(tmp_path: Path) -> None:
    with Server(
        tmp_path, "--socket", "s", "--workers", "2", "--grace", "0.2"
    ) as server:
        assert wait_until(lambda: "listens at" in server.stderr())
        path = tmp_path / "s"
        with ThreadPoolExecutor(6) as threads:
            futures = [threads.submit(Nuisance(path, seed)) for seed in range(100)]
            for future in futures:
                future.result()
        with SocketTalk(path) as talk:
            assert wait_until(lambda: talk.ask("stats")["clients"] == 1)
            assert talk.ask("health")["status"] == "ok"
            assert wait_until(lambda: talk.ask("health")["running"] == 0)
            assert talk.call("echo", 1) == [[1], {}]
            descriptors = psutil.Process(server.process.pid).num_fds()
            assert descriptors < 60, "some are left open"
            assert "Traceback" not in server.stderr()
            assert talk.ask("shutdown") is None
        assert server.wait() == 0
