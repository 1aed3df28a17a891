"""What is installed, and how it is set: versions, the native part, libraries, extras."""

from __future__ import annotations

import contextlib
import multiprocessing
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from shmexec import __version__, options
from shmexec.cli.examining.findings import Finding, Level

_NOT_FOR_USERS = {"bench", "browser", "dev", "test"}
_REQUIREMENT = re.compile(r"""([\w.-]+).*\bextra\s*==\s*["']([\w.-]+)["']""")


def software() -> Iterator[Finding]:
    """All of it."""
    yield from _versions()
    yield from _settings()
    yield from _native()
    yield from _starting()
    yield from _blas()
    yield from _watching()
    yield from _extras()


def _versions() -> Iterator[Finding]:
    import numpy as np

    python = platform.python_version()
    yield Finding(
        "versions",
        "shmexec",
        f"{__version__}, Python {python}, NumPy {np.__version__}",
        data={"shmexec": __version__, "python": python, "numpy": np.__version__},
    )
    linux = sys.platform == "linux"
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield Finding(
        "versions",
        "system",
        system,
        "ok" if linux else "note",
        ""
        if linux
        else "shmexec is tested on Linux; elsewhere it is slower, and "
        "cleans up after kill -9 as well as it can",
        {"system": platform.system(), "release": platform.release()},
    )


def _settings() -> Iterator[Finding]:
    """The environment's, which each pool would refuse if they make no sense."""
    checks: dict[str, Callable[[], object]] = {
        "SHMEXEC_WORKERS": options.default_workers,
        "SHMEXEC_SEGMENT": options.segment_kind,
        "SHMEXEC_NATIVE": options.native_wanted,
        "SHMEXEC_VISIBLE": options.visible,
    }
    for name, check in checks.items():
        try:
            check()
        except ValueError as error:
            advice = f"unset {name}, or correct it"
            yield Finding("settings", name, str(error), "bad", advice)


def _native() -> Iterator[Finding]:
    from shmexec.memory import native

    built, wanted = native.is_built(), True
    with contextlib.suppress(ValueError):
        wanted = options.native_wanted()
    data = {"built": built, "used": built and wanted}
    advice = ""
    if not built:
        value = "not built: each result is copied once"
        advice = (
            "install a C compiler (apt install gcc python3-dev), then reinstall "
            "shmexec without a wheel from the cache (pip install --no-cache-dir "
            "--force-reinstall --no-deps)"
        )
    elif not wanted:
        value = "built, and switched off by SHMEXEC_NATIVE=0: results are copied once"
        advice = "unset SHMEXEC_NATIVE"
    else:
        value = "built and used: results come without a copy"
    yield Finding(
        "native part", "native part", value, "note" if advice else "ok", advice, data
    )


def _starting() -> Iterator[Finding]:
    methods = multiprocessing.get_all_start_methods()
    default = options.start_method(None)
    yield Finding(
        "processes",
        "start methods",
        f"{default} by default; there are {', '.join(sorted(methods))}",
        data={"default": default, "available": sorted(methods)},
    )
    try:
        with tempfile.TemporaryFile():
            folder = tempfile.gettempdir()
        yield Finding("processes", "temporary folder", folder, data={"folder": folder})
    except OSError as error:
        yield Finding(
            "processes",
            "temporary folder",
            f"none can be written to: {error.strerror or error}",
            "note",
            "workers are spawned, which is slow, since the fork server needs a folder "
            "for its socket: set TMPDIR to one that can be written to",
            {"folder": None},
        )


def _blas() -> Iterator[Finding]:
    import numpy as np
    import threadpoolctl

    np.dot(np.ones(2), np.ones(2))  # now its library is loaded
    pools = threadpoolctl.threadpool_info()
    found = [
        {
            "library": pool["internal_api"],
            "version": pool.get("version"),
            "threads": pool["num_threads"],
        }
        for pool in pools
    ]
    each = ", ".join(
        f"{pool['library']} {pool['version'] or ''}".strip()
        + f" with {pool['threads']} threads here"
        for pool in found
    )
    value = f"{each}; workers share the CPUs" if found else "none that can be limited"
    advice = (
        ""
        if found
        else "if this NumPy computes with threads of its own, several workers take more "
        "than the CPUs: set its environment variable by worker_env="
    )
    level: Level = "note" if advice else "ok"
    yield Finding("BLAS", "BLAS threads", value, level, advice, {"libraries": found})


def _watching() -> Iterator[Finding]:
    if sys.platform != "linux":
        return
    try:
        Path("/proc/net/unix").read_bytes()
        with contextlib.suppress(FileNotFoundError):
            Path("/proc/self/oom_score_adj").read_text()
    except OSError as error:
        yield Finding(
            "watching",
            "/proc",
            f"cannot be read: {error}",
            "note",
            "shmexec top sees nothing without /proc",
            {"readable": False},
        )
    else:
        yield Finding("watching", "shmexec top", "sees pools", data={"readable": True})


def _extras() -> Iterator[Finding]:
    """Of each extra, whether all that it needs is there."""
    try:
        distribution = metadata.distribution("shmexec")
    except metadata.PackageNotFoundError:  # run from a folder
        return
    missing: dict[str, list[str]] = {
        extra: []
        for extra in distribution.metadata.get_all("Provides-Extra") or ()
        if extra not in _NOT_FOR_USERS
    }
    for requirement in distribution.requires or ():
        match = _REQUIREMENT.match(requirement)
        if match is not None and match[2] in missing and not _is_installed(match[1]):
            missing[match[2]].append(match[1])
    here = sorted(extra for extra, packages in missing.items() if not packages)
    lacking = sorted(extra for extra, packages in missing.items() if packages)
    value = f"installed: {', '.join(here) or 'none'}"
    if lacking:
        value += f"; not: {', '.join(lacking)} (pip install 'shmexec[{lacking[0]}]')"
    yield Finding(
        "extras", "extras", value, data={"installed": here, "missing": missing}
    )


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
