"""``python tests/typing/complete.py``: has all that users see a type of its own?

Asks pyright, which takes all modules for public; what counts here are the names of
``shmexec.__all__``, and the attributes and methods of those that are classes, of them
and of their bases. Parameters of constructors that only the package calls may have types
of its inside.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import shmexec

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ("--outputjson", "--ignoreexternal", "--verifytypes", "shmexec")


def public_names() -> set[str]:
    """Where they are defined; of classes, those of their bases too."""
    names: set[str] = set()
    for name in shmexec.__all__:
        value = getattr(shmexec, name)
        of = value.__mro__ if inspect.isclass(value) else [value]
        names |= {
            f"{each.__module__}.{each.__qualname__}"
            for each in of
            if getattr(each, "__module__", "").startswith("shmexec.")
        }
    return names


def report() -> dict[str, Any]:
    """What pyright says; also of names that are not ours."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        [sys.executable, "-m", "pyright", *OPTIONS],
        # Elsewhere it would find the settings for this folder; the path is for an
        # editable install, which it does not follow, and the Python is that of PATH.
        cwd=os.sep,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": beside},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        said: dict[str, Any] = json.loads(done.stdout)["typeCompleteness"]
    except (ValueError, KeyError):
        sys.exit(f"pyright gave no report: {done.stdout[-500:]}{done.stderr[-500:]}")
    return said


def main() -> int:
    """Name those that have none."""
    wanted, seen, bad = public_names(), set(), []
    for symbol in report()["symbols"]:
        name = symbol["name"].replace("shmexec.breakage.", "shmexec.errors.")
        parent, _, own = name.rpartition(".")
        if name in wanted or (parent in wanted and own[:1] != "_"):
            seen.add(name)
            said = [each["message"].splitlines()[0] for each in symbol["diagnostics"]]
            # What is "partially unknown" takes or gives something of the inside.
            bad += [f"{name}: {one}" for one in said if "partially" not in one]
    bad += [f"{name}: pyright did not see it" for name in wanted - seen]
    print(*bad, f"{len(seen)} public names, {len(bad)} without a type", sep="\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
