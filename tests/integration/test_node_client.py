"""A program in another language, with a JSON-RPC package that others wrote.

``SHMEXEC_TEST_NODE=1`` says that there is Node.js and a package registry: then this test
is not skipped but fails if it cannot run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from tests.waiting import LONG

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent / "node_client"


def cannot_run(reason: str) -> NoReturn:
    if os.environ.get("SHMEXEC_TEST_NODE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The program, with its package, in a folder of its own."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        cannot_run("Node.js is not installed")
    folder = tmp_path / "client"
    shutil.copytree(PROGRAM, folder, ignore=shutil.ignore_patterns("node_modules"))
    options = "--prefer-offline --no-audit --no-fund --no-update-notifier"
    command = [npm, "ci", *options.split(), "--fetch-retries=1", "--fetch-timeout=9000"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=2 * LONG
        )
    except subprocess.TimeoutExpired:
        cannot_run("npm ci takes too long")
    if done.returncode:
        cannot_run(f"npm ci failed: {done.stderr[-500:]}")
    return folder


def test_a_node_program_uses_all_of_it(installed: Path) -> None:
    server = [sys.executable, "-m", "shmexec", "serve", "model.py", "--workers", "2"]
    done = subprocess.run(
        ["node", "main.js", *server],
        cwd=installed,
        capture_output=True,
        text=True,
        timeout=2 * LONG,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all is well\n"
    assert "predicting" in done.stderr
