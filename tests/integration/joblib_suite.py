"""joblib's own tests of `Parallel`, from the joblib that is installed, run on shmexec.

Their text is changed so that ``"loky"`` means this backend, in workers too, and is made
the default; nothing of it is kept here. Those listed below do not apply, each for the
reason that is given.

    python -m tests.integration.joblib_suite [pytest arguments]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import joblib.test

NAME = "joblib_test_parallel"

HEAD = """
import shmexec.integrations.joblib
from shmexec.integrations.joblib import ShmexecBackend
import joblib.parallel
joblib.parallel.register_parallel_backend("shmexec", ShmexecBackend, make_default=True)
joblib.parallel.DEFAULT_PROCESS_BACKEND = "shmexec"
joblib.parallel.BACKENDS.pop("loky", None)
"""

CHANGES = (
    # The backend itself.
    (r"joblib\._parallel_backends\.LokyBackend", "ShmexecBackend"),
    (r"(?m)^    LokyBackend,\n", ""),
    (r"(?m)^from joblib\._parallel_backends import LokyBackend$", ""),  # joblib 1.4
    (r"LokyBackend", "ShmexecBackend"),
    (r"""(["'])loky\1""", r"\1shmexec\1"),
    # Those that are joblib's alone.
    (r"""PROCESS_BACKENDS = \["multiprocessing", """, "PROCESS_BACKENDS = ["),
    (r"for backend_str in BACKENDS\]", 'for backend_str in ("shmexec",)]'),
    (r"ALL_VALID_BACKENDS\.append\(mp\.get_context\(.*", "pass"),
    # Programs that are run: they know no backend that they have not imported.
    (
        r"(?m)^from joblib import Parallel, delayed",
        r"import shmexec.integrations.joblib\n\g<0>",
    ),
    (r"""\s*stderr_regex=r"LokyProcess",""", ""),
    (r"\btimeout=1[05]\b", "timeout=100"),  # the machine may be busy
    # What is shared is read-only memory; there are no files.
    (r"if not isinstance\(a, np\.memmap\):", "if a.flags.writeable:"),
    (r"the task to send", "cannot pickle the call"),
    # A pool can be used below threads, others in its workers, and one call be aborted
    # beside others.
    (
        r"""\("shmexec", "multiprocessing", True\)""",
        '("shmexec", "multiprocessing", False)',
    ),
    (r"""\("threading", "shmexec", True\)""", '("threading", "shmexec", False)'),
    (r"""\("shmexec", True\)""", '("shmexec", False)'),
)
"""What is replaced in the text, and by what."""

LEFT_OUT = {
    "test_error_capture": "expects new workers after an error; ours live on",
    "test_memmapping_leaks": "looks at files in temp_folder; there are none",
    "test_loky_reuse_workers": "asks loky for its executor",
    "test_backend_no_multiprocessing": "of a Python without multiprocessing",
}
"""Tests that do not apply, and why."""

PART = """
import pytest

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items[:] = items[{0}::{1}]
"""


def changed(text: str) -> str:
    """The tests' module, with shmexec in the place of loky."""
    for pattern, replacement in CHANGES:
        text = re.sub(pattern, replacement, text)
    return HEAD + text


def run(
    folder: Path, *arguments: str, part: tuple[int, int] = (0, 1)
) -> subprocess.CompletedProcess[str]:
    """Run them, with more arguments for pytest; one of so many parts of them."""
    (folder / "conftest.py").write_text(PART.format(*part), encoding="utf-8")
    source = Path(joblib.test.__file__).with_name("test_parallel.py")
    path = folder / f"{NAME}.py"
    path.write_text(changed(source.read_text(encoding="utf-8")), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
    ]
    for name in LEFT_OUT:
        command += ["--deselect", f"{NAME}.py::{name}"]
    command += ["--rootdir", str(folder), str(path), *arguments]
    return subprocess.run(command, cwd=folder, check=False, text=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        sys.exit(run(Path(made), *sys.argv[1:]).returncode)
