"""How much memory does it take?

The proportional set size (PSS) of all processes of the system, from
``/proc/*/smaps_rollup``: a page that several of them map counts once. Pages of files
that nobody maps, and the kernel's pipe buffers, are not in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

from shmexec.comparing import work
from shmexec.comparing.arrays import there_and_back
from shmexec.comparing.caller import Caller
from shmexec.comparing.case import Case
from shmexec.comparing.sampling import MB, Plan, Sample, check

Opening = Callable[[], AbstractContextManager[Caller]]

_EVERY = 0.004
_IDLE_WORKERS = 8
_TRIES = 50


def tree(root: int) -> set[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8")
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, todo = set[int](), [root]
    while todo:
        process = todo.pop()
        found.add(process)
        todo += children.get(process, [])
    return found


def pss(processes: set[int]) -> int:
    """Bytes; processes that have ended count nothing."""
    total = 0
    for process in processes:
        with suppress(OSError):
            text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
            for line in text.splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


@contextmanager
def watched() -> Iterator[Callable[[], int]]:
    """A function that gives the most that this process and those below it took.

    In bytes, sampled since this was entered. It can be called once.
    """
    watch = subprocess.Popen(
        [sys.executable, "-m", "shmexec.comparing.memory", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert watch.stdout is not None
        watch.stdout.readline()  # it has looked once
        # End of file would not do: forked workers have the pipe, too. If all of this
        # dies, it comes, and suffices.
        yield lambda: int(watch.communicate(b"\n")[0])
    finally:
        watch.kill()
        watch.wait()


def peak(nbytes: int, opening: Opening, plan: Plan) -> Sample:
    """The most that an array there and back takes, sampled; the program's own included.

    What the program has before the system is opened (Python, NumPy) does not count.
    """
    few = Plan(calls=4, seconds=plan.seconds, least=2, warm_up=1)
    before = pss({os.getpid()})
    with watched() as most, opening() as caller:
        there_and_back(nbytes, caller, few)
        seen = most()
    return Sample(float(seen - before), None, few.calls)


def idle(opening: Opening, _plan: Plan) -> Sample:
    """All processes but the program's own, eight workers having run a NumPy function."""
    own = os.getpid()
    with opening() as caller:
        seen: set[int] = set()
        for _ in range(_TRIES):
            caller.gather(work.total, [(work.pattern(800),)] * _IDLE_WORKERS)
            seen |= {*caller.gather(work.who, [(0.05,)] * _IDLE_WORKERS)}
            if len(seen) >= _IDLE_WORKERS:
                break
        check(len(seen) == _IDLE_WORKERS, f"{len(seen)} workers, not {_IDLE_WORKERS}")
        time.sleep(0.3)  # what they still do after the last call
        return Sample(float(pss(tree(own) - {own})), None, 1)


def _watch(root: int) -> int:
    """Print the most that a tree took, when something comes on stdin, or its end."""
    import select

    most = pss(tree(root) - {os.getpid()})
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], _EVERY)[0]:
        most = max(most, pss(tree(root) - {os.getpid()}))
    print(most)
    return 0


CASES = (
    Case(
        "peak-512MB",
        "memory",
        "512 MB there and back, peak",
        partial(peak, 512 * MB),
        nbytes=512 * MB,
        opens=True,
        of_bytes=True,
        quick=False,
    ),
    Case(
        "idle-8",
        "memory",
        "8 idle workers",
        idle,
        opens=True,
        needs_workers=True,
        workers=_IDLE_WORKERS,
        of_bytes=True,
    ),
)

if __name__ == "__main__":
    sys.exit(_watch(int(sys.argv[1])))
