"""Measurements in fresh processes, none of which can hang or outlive the run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from shmexec.comparing.sampling import Sample

_FOLDER = Path(__file__).resolve().parents[2]
"""Where the package is: it is imported from there, and nothing from where one happens to be."""

_ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ),
    "1",
)


class Failed(Exception):
    """A measurement gave no figures; the message is one line."""


def measure(
    system: str,
    case: str,
    *,
    nbytes: int,
    workers: int,
    quick: bool,
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> Sample:
    """Run :mod:`shmexec.comparing.child` in a new session.

    Raises:
        Failed: If it gave a wrong result, broke, or left a process behind, or if that
            took longer than ``timeout`` seconds; the whole session is killed then.
    """
    command = [sys.executable, "-m", "shmexec.comparing.child", system, case]
    command += ["--nbytes", str(nbytes), "--workers", str(workers)]
    command += ["--quick"] if quick else []
    output, error = run(command, timeout, environment)
    if error is not None:
        raise Failed(error)
    return _read(output)


def run(
    command: Sequence[str],
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> tuple[str, str | None]:
    """Run a command in a new session, none of which is left afterwards.

    Returns:
        What it wrote, and what went wrong, if anything did.
    """
    process = subprocess.Popen(
        command,
        cwd=_FOLDER,
        env={**_inherited(), **_ONE_THREAD, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        # Returns when the last process that has the pipes ends: also a stray worker.
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as expired:
        over = _has_ended(process)
        _end(process)
        why = "left a process behind" if over else "was stopped"
        # What came by then is bytes, whatever was asked for.
        came: bytes | str = expired.stdout or b""
        text = came if isinstance(came, str) else came.decode(errors="replace")
        return text, f"{why} after {timeout:g} s"
    except BaseException:
        _end(process)
        raise
    finally:
        _end_session(process.pid)
    if process.returncode != 0:
        return output, _last_words(errors) or f"exit status {process.returncode}"
    return output, None


def _inherited() -> dict[str, str]:
    """This environment, without what forbids to keep bytecode.

    Installed packages have theirs: nothing here shall be compiled in every process.
    """
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def _last_words(errors: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _has_ended(process: subprocess.Popen[str]) -> bool:
    """Whether it has; without reaping it, so that its number stays taken."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, how) is not None


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the whole group, unless its leader was reaped: it might be another one."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _end_session(leader: int) -> None:
    """Kill what is left of a session: some systems' servers leave the group."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (entry / "stat").read_text(encoding="utf-8")
            if int(stat.rpartition(")")[2].split()[3]) == leader:
                os.kill(int(entry.name), signal.SIGKILL)


def _read(output: str) -> Sample:
    try:
        return Sample(**json.loads(output.strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        msg = f"no figures in its output: {output[-200:]!r}"
        raise Failed(msg) from None
