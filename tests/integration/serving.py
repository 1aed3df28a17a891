"""Tests talk to ``shmexec serve`` through this, as a program in any language would."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.waiting import LONG, wait_until

MODEL = """
import os
import subprocess
import sys
import time

import numpy as np

class OwnError(Exception):
    pass


class Net:
    def __init__(self):
        self.calls = 0

    def predict(self, x, scale=1):
        self.calls += 1
        return [value * scale for value in x]


def echo(*args, **kwargs):
    "What it got."
    return [args, kwargs]


async def later(x):
    return x


def touch(path):
    open(path, "x").close()


def fail(text):
    raise OwnError(text)


def misuse():
    return len(5)


def leave():
    sys.exit("enough")


def die():
    os._exit(3)


def give(kind):
    return {"set": {1}, "nan": float("nan"), "key": {1: 2}, "bytes": b"x"}[kind]


def double(array):
    array *= 2
    return array


def look(array):
    return [array.tolist(), array.flags.writeable, array.dtype.str]


def large(n):
    return "x" * n


def pid():
    return os.getpid()


def hold(folder):
    # Tells the test that it is here, and goes on when the test says so.
    with open(folder + "/here", "w") as here:
        here.write(str(os.getpid()))
    with open(folder + "/go") as go:
        go.read()
    return "held"


def noise():
    print("no line end", end="")
    sys.stderr.write("an error")
    os.write(1, b"to descriptor 1")
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    print('{"jsonrpc":"2.0","id":1,"result":"forged"}')
    return "noise"


def shout(n):
    os.write(2, b"x" * n)


def grandchild():
    code = "import signal; signal.pause()"
    child = subprocess.Popen([sys.executable, "-c", code], close_fds=False)
    return child.pid


def count_up(n, fail_at=None):
    for i in range(n):
        if i == fail_at:
            raise OwnError("at " + str(i))
        yield i


async def count_async(n):
    for i in range(n):
        yield {"i": i}


def arrays(n):
    for i in range(n):
        yield np.full(3, i, "i4")


def endless(folder):
    try:
        i = 0
        while True:
            yield i
            i += 1
    finally:
        with open(folder + "/closed", "w") as closed:
            closed.write(str(i))


def odd_items():
    yield 1
    yield {2}
    yield 3
"""


class Talk:
    """One client's side of a conversation, on two descriptors."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self._read = b""
        self._next = 0

    def send(self, *messages: Any) -> None:
        for message in messages:
            self.send_raw(json.dumps(message).encode() + b"\n")

    def send_raw(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.sink, data) :]

    def request(self, method: str, **params: Any) -> int:
        """Send one; its id."""
        self._next += 1
        message = {"jsonrpc": "2.0", "id": self._next, "method": method}
        self.send(message | {"params": params} if params else message)
        return self._next

    def receive(self) -> Any:
        """The next message; None at the end."""
        while b"\n" not in self._read:
            ready, _, _ = select.select([self.source], [], [], LONG)
            assert ready, "the server says nothing"
            data = os.read(self.source, 1 << 16)
            if not data:
                assert not self._read, f"half a line: {self._read[:100]!r}"
                return None
            self._read += data
        line, self._read = self._read.split(b"\n", 1)
        message = json.loads(line.decode("utf-8"))
        for each in message if isinstance(message, list) else [message]:
            assert each["jsonrpc"] == "2.0"
        return message

    def ask(self, method: str, **params: Any) -> Any:
        """A request's result, or its error; the reply must be the next message."""
        identity = self.request(method, **params)
        reply = self.receive()
        assert reply is not None, "the server has ended"
        assert reply["id"] == identity
        return reply.get("result", reply.get("error"))

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        return self.ask("call", function=function, args=args, kwargs=kwargs)

    def stream(self, function: str, *args: Any) -> tuple[list[Any], Any]:
        """The items that come before the reply, and the reply."""
        identity = self.request("stream", function=function, args=args)
        items = []
        while "method" in (message := self.receive()):
            assert message["method"] == "stream.item"
            assert message["params"]["id"] == identity
            items.append(message["params"]["item"])
        assert message["id"] == identity
        return items, message

    def replies(self, number: int) -> dict[Any, Any]:
        """So many replies, by id."""
        found = {}
        for _ in range(number):
            reply = self.receive()
            assert reply is not None, f"the server ended after {len(found)} replies"
            assert reply["id"] not in found
            found[reply["id"]] = reply
        return found


class Server(Talk):
    """A server as a child process, which speaks on stdin and stdout."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        model: str = MODEL,
        stderr: int | None = None,
    ) -> None:
        self.folder = folder
        (folder / "model.py").write_text(model)
        for name in ("here", "go"):
            if not (folder / name).exists():
                os.mkfifo(folder / name)
        self.errors = folder / "stderr.txt"
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shmexec", "serve", "model.py", *arguments],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors if stderr is None else stderr,
                bufsize=0,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        super().__init__(self.process.stdout.fileno(), self.process.stdin.fileno())

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        workers = self.descendants()
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        wait_until(lambda: not any(worker.is_running() for worker in workers))

    def hold(self) -> int:
        """Begin a call that waits for :meth:`go`; returns when it runs, with its id."""
        identity = self.request("call", function="hold", args=[str(self.folder)])
        self.holder = self.held_pid()
        return identity

    def held_pid(self) -> int:
        with open(self.folder / "here") as here:
            return int(here.read())

    def go(self) -> None:
        with open(self.folder / "go", "w") as go:
            go.write("go")

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait(self) -> int:
        """Its exit code; nothing of it is left."""
        workers = self.descendants()
        code = self.process.wait(LONG)
        assert wait_until(lambda: not any(worker.is_running() for worker in workers))
        return code

    def end(self) -> int:
        """End the input; nothing more must come. The exit code."""
        self.end_input()
        assert self.receive() is None
        return self.wait()

    def descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def stderr(self) -> str:
        return self.errors.read_text()


class SocketTalk(Talk):
    """A client of a server's Unix socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        super().__init__(self.socket.fileno(), self.socket.fileno())

    def __enter__(self) -> SocketTalk:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
