"""Programs of their own, each in a session of its own: whatever they start is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import LONG, shm_names, wait_until

ROOT = Path(__file__).parents[2]


def start(tmp_path, source, *args, kind="memfd"):
    """Start a script."""
    script = tmp_path / "script.py"
    script.write_text(source)
    env = {**os.environ, "SHMEXEC_SEGMENT": kind, "PYTHONPATH": str(ROOT)}
    # Any warning, such as the resource tracker's of leaks, would be on stderr.
    env.pop("PYTHONWARNINGS", None)
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, args)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def session(pid):
    """Processes of a session, by their kernel records: none can hide by forking."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getsid(process.pid) == pid:
                found.append(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def run(tmp_path, source, *args, kind="memfd", code=0, within=5.0):
    """Run a script to its end; nothing of it may be left. Returns its output."""
    process = start(tmp_path, source, *args, kind=kind)
    return end(process, code, within)


def end(process, code, within):
    """Wait for a program's end with that exit code; its output.

    Args:
        process: From :func:`start`.
        code: That it must end with.
        within: Seconds after which nothing of it may be left.
    """
    names = shm_names()
    try:
        out, err = process.communicate(timeout=2 * LONG)
    except subprocess.TimeoutExpired:
        for each in session(process.pid):
            each.kill()
        out, err = process.communicate()
        pytest.fail(f"hangs\n{out}\n{err}", pytrace=False)
    assert process.returncode == code, err
    try:
        assert wait_until(lambda: not session(process.pid), within), session(
            process.pid
        )
    finally:
        for each in session(process.pid):
            each.kill()
    assert wait_until(lambda: shm_names() <= names)
    assert "resource_tracker" not in err
    return out, err
