"""``shmexec run``: a script's function over a ``.npy`` file, batch by batch.

Nothing of the input or output passes through this process: workers map both files. What
is here is the care around it: bad arguments are found before any work starts, and the
output's name appears only when all of it is written.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from shmexec.cli.output import CommandError, one_line, print_error, progress_bar
from shmexec.cli.target import TargetError, call_target, check_target
from shmexec.errors import CallTimeout, RemoteError, WorkerDied
from shmexec.executor import Executor

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["run"]

_BATCH_BYTES = 32 * 2**20
_STOPPING = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@dataclass(frozen=True, slots=True)
class _Job:
    """Checked arguments."""

    script: str
    function: str
    rows: np.memmap
    output: Path
    options: argparse.Namespace


class _TerminatedError(BaseException):
    """A signal asked for the end; like KeyboardInterrupt, not to be caught by chance."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(options: argparse.Namespace) -> int:
    """Carry the command out.

    Args:
        options: Parsed arguments: target, input, output, batch_size, workers, timeout,
            progress, traceback.

    Returns:
        The exit code.
    """
    try:
        with _signals_as_exceptions():
            print(_infer(_check(options)))
        return 0
    except CommandError as error:
        if options.traceback and error.details:
            print(error.details.rstrip(), file=sys.stderr)
        print_error("run", str(error))
        return error.code
    except KeyboardInterrupt:
        print_error("run", "interrupted; no output was written")
        return 128 + signal.SIGINT
    except _TerminatedError as stop:
        name = signal.Signals(stop.number).name
        print_error("run", f"stopped by {name}; no output was written")
        return 128 + stop.number


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that clean-up happens."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise _TerminatedError(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    try:
        for number in _STOPPING:
            # Under nohup SIGHUP is ignored, and stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- checks, before any worker starts


def _check(options: argparse.Namespace) -> _Job:
    script, function = _parse_target(options.target)
    rows = _open_input(options.input)
    output = _check_output(options.output, options.input)
    return _Job(script, function, rows, output, options)


def _parse_target(text: str) -> tuple[str, str]:
    path, colon, name = text.rpartition(":")
    if not colon or not path or not all(map(str.isidentifier, name.split("."))):
        msg = f"target must look like script.py:function, not {text!r}"
        raise CommandError(msg)
    if not path.endswith(".py"):
        msg = f"the target's script must be a .py file, not {path!r}"
        raise CommandError(msg)
    if not os.path.isfile(path):
        what = "is not a file" if os.path.exists(path) else "does not exist"
        msg = f"script {path} {what}"
        raise CommandError(msg)
    return os.path.realpath(path), name


def _open_input(path: str) -> np.memmap:
    try:
        _check_npy(path)
        rows: np.memmap = np.load(path, mmap_mode="r")
    except OSError as error:
        msg = f"cannot read input {path}: {error.strerror or error}"
        raise CommandError(msg) from None
    except (ValueError, EOFError) as error:
        msg = f"cannot read input {path}: {error}"
        raise CommandError(msg) from None
    if rows.ndim == 0 or len(rows) == 0:
        msg = f"input {path} has no rows (its shape is {rows.shape})"
        raise CommandError(msg)
    return rows


def _check_npy(path: str) -> None:
    """Raise ValueError if the header is bad, or promises more than the file has."""
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            msg = "it is an .npz archive; save one array with np.save"
            raise ValueError(msg)
        file.seek(0)
        try:
            version = np.lib.format.read_magic(file)
        except ValueError:
            msg = "it is not a .npy file"
            raise ValueError(msg) from None
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            return  # version 3 differs in the names of fields; np.load checks it
        if dtype.hasobject:
            msg = f"its dtype {dtype} holds Python objects, which cannot be mapped"
            raise ValueError(msg)
        needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
        present = os.fstat(file.fileno()).st_size - file.tell()
        if present < needed:
            msg = (
                f"it is truncated: shape {shape} of {dtype} needs {needed:,} bytes, "
                f"and only {present:,} are there"
            )
            raise ValueError(msg)


def _check_output(text: str, source: str) -> Path:
    # A link is followed: what it points to is replaced, not the link.
    output = Path(os.path.realpath(text))
    if output.is_dir():
        msg = f"output {text} is a directory"
        raise CommandError(msg)
    if output.exists() and not output.is_file():
        msg = f"output {text} is not a regular file"
        raise CommandError(msg)
    if not output.parent.is_dir():
        msg = f"the output's folder {output.parent} does not exist"
        raise CommandError(msg)
    if output.exists() and os.path.samefile(output, source):
        msg = f"output {text} is the input file; choose another name"
        raise CommandError(msg)
    return output


# ---- the work


def _infer(job: _Job) -> str:
    """Write the output and return the summary."""
    started = time.perf_counter()
    with _temporary_beside(job.output) as temporary:
        result = _run_batches(job, temporary)
        result.flush()
        # Windows cannot replace a file that is mapped, so let go of it first.
        shape, dtype = result.shape, result.dtype
        del result
        try:
            os.replace(temporary, job.output)
        except OSError as error:
            msg = f"cannot write output {job.output}: {error.strerror}"
            raise CommandError(msg, code=1) from None
    seconds = time.perf_counter() - started
    rows = len(job.rows)
    return (
        f"{rows:,} rows in {seconds:.2f} s ({rows / seconds:,.0f} rows/s) -> "
        f"{job.options.output}, shape {shape}, {dtype}"
    )


@contextmanager
def _temporary_beside(output: Path) -> Iterator[Path]:
    """A new empty file in the output's folder, gone at the end whatever happens."""
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.partial")
    try:
        # Exclusive, and with the permissions any new file of this user gets.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
    except OSError as error:
        msg = f"cannot write to the output's folder {output.parent}: {error.strerror}"
        raise CommandError(msg) from None
    try:
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _run_batches(job: _Job, temporary: Path) -> np.memmap:
    options = job.options
    workers, size = _plan(job)
    finished = False
    pool = Executor(workers, name="shmexec-run")
    try:
        _load_script(pool, job)
        with progress_bar(len(job.rows), options.progress) as progress:
            result = pool.options(timeout=options.timeout).map_batches(
                partial(call_target, job.script, job.function),
                job.rows,
                batch_size=size,
                out=partial(_make_output, temporary),
                progress=progress or False,
            )
        finished = True
        return cast("np.memmap", result)  # it is what _make_output made
    except CommandError:
        raise
    except Exception as error:
        raise _failure(error) from error
    finally:
        if not finished:
            _stop(pool)
        pool.shutdown(wait=True, cancel_futures=True)


def _plan(job: _Job) -> tuple[int, int]:
    """How many workers, and rows per batch."""
    rows = len(job.rows)
    workers = job.options.workers
    size = job.options.batch_size
    if size is None:
        row_bytes = max(1, job.rows.nbytes // rows)
        # Some batches for each worker, so that they end together, and none so large
        # that a file larger than memory would not fit batch by batch.
        size = min(-(-rows // (4 * workers)), max(1, _BATCH_BYTES // row_bytes))
    return min(workers, -(-rows // size)), size


def _make_output(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.memmap:
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # A full disk shall be an error here, and not SIGBUS in a worker later.
        with open(path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                msg = f"no room for {size:,} bytes of output: {error.strerror}"
                raise CommandError(msg, code=1) from None
    return mapped


def _load_script(pool: Executor, job: _Job) -> None:
    """Have every worker load the script now, so that --timeout is for batches only."""
    try:
        pool.broadcast(check_target, job.script, job.function)
    except TargetError as error:
        raise CommandError(str(error), details=_details(error)) from None
    except Exception as error:  # noqa: BLE001  (whatever the pool says, in one line)
        msg = f"cannot load {os.path.basename(job.script)}: {_describe(error)}"
        raise CommandError(msg, details=_details(error)) from None


def _failure(error: Exception) -> CommandError:
    """The line for a failed batch; a note on the error says which one it was."""
    if isinstance(error, CommandError):
        return error
    notes = [one_line(note) for note in getattr(error, "__notes__", ())]
    where = next((note for note in notes if note.startswith("batch ")), "")
    text = _describe(error)
    if where and where not in text:
        text = f"{where}: {text}"
    return CommandError(text, code=1, details=_details(error))


def _details(error: Exception) -> str:
    """Where it happened: the worker's traceback, or its stacks at the end."""
    if isinstance(error, CallTimeout):
        return error.stack
    if isinstance(error, WorkerDied):
        return error.fault_text
    return str(error.__cause__ or "")


def _describe(error: BaseException) -> str:
    if isinstance(error, RemoteError):
        return str(error)  # it names the type that could not come here
    return f"{type(error).__name__}: {error}"


def _stop(pool: Executor) -> None:
    """End batches that still run: their rows would go to a file that is removed."""
    # Closed first, so that no worker is started in place of those that end here.
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in pool.stats().workers:
        if worker.pid is not None and worker.state != "idle":
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)
