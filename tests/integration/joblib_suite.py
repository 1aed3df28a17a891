"""joblib's own tests of `Parallel`, from the joblib that is installed, run on shmexec.

Their text is changed so that ``"loky"`` means this backend, in workers too, and is made
the default; nothing of it is kept here. Those listed below do not apply, each for the
reason that is given.

    python -m tests.integration.joblib_suite [pytest arguments]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import joblib.test
from joblib.parallel import BACKENDS

HEAD = """
import shmexec.integrations.joblib
from shmexec.integrations.joblib import ShmexecBackend
import joblib.parallel
joblib.parallel.register_parallel_backend("shmexec", ShmexecBackend, make_default=True)
joblib.parallel.DEFAULT_PROCESS_BACKEND = "shmexec"
joblib.parallel.BACKENDS.pop("loky", None)
"""

NAME = "joblib_test_parallel"


def changed(text: str) -> str:
    """The tests' module, with shmexec in the place of loky."""
    text = text.replace("joblib._parallel_backends.LokyBackend", "ShmexecBackend")
    text = re.sub(r"^    LokyBackend,\n", "", text, flags=re.MULTILINE)
    text = text.replace("LokyBackend", "ShmexecBackend")
    text = re.sub(r"""(["'])loky\1""", r"\1shmexec\1", text)
    return HEAD + text


def main(arguments: list[str], folder: Path) -> int:
    """Run them; what pytest returns."""
    source = Path(joblib.test.__file__).with_name("test_parallel.py")
    path = folder / f"{NAME}.py"
    path.write_text(changed(source.read_text(encoding="utf-8")), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += ["--rootdir", str(folder), str(path), *arguments]
    return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        sys.exit(main(sys.argv[1:], Path(made)))
