"""What is imported with the package: each module costs a program's start."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {
    *(
        "asyncio",
        "cloudpickle",
        "psutil",
        "rich",
        "tqdm",
        "threadpoolctl",
        "matplotlib",
    ),
    *("subprocess", "inspect", "difflib", "tempfile", "argparse", "pickle", "queue"),
    *("multiprocessing.pool", "multiprocessing.managers", "multiprocessing.util"),
    *("multiprocessing.shared_memory", "multiprocessing.connection"),
    *("multiprocessing.forkserver", "multiprocessing.resource_tracker"),
    *("concurrent.futures.process", "shmexec.runtime.pool", "shmexec.memory.host"),
    *("shmexec.aio", "shmexec.batches", "shmexec.scripts", "shmexec.actors"),
    *("shmexec.pipelines", "shmexec.cli"),
}
"""What comes when it is used, and not with a look at the executor."""

PROGRAM = """
import json, sys, numpy
before = set(sys.modules)
import shmexec
after = set(sys.modules)
shmexec.Executor
print(json.dumps([[*after - before], [*set(sys.modules) - after]]))
"""


def test_what_comes_beside_numpy():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    package, executor = json.loads(done.stdout)
    assert package == ["shmexec"]
    assert "shmexec.executor" in executor
    assert not HEAVY & {*executor}
