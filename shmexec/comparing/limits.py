"""How fast could it be? What the machine itself takes, measured in the same run.

- ``ping-pong``: a few bytes to a forked child and back, by ``os.write`` and ``os.read``
  over a socket pair, on the CPUs that the system chooses, as for all that is compared.
  Where it chooses two, waking an idle one may take most of the time, so the same with
  both processes on one CPU is shown beside it: nothing that sleeps while it waits is
  faster than that.
- ``memcpy``: ``np.copyto`` between two warm buffers.

The limit of a case is one ping-pong, and one ``memcpy`` for each way that an array goes. A
system that copies each array once cannot be faster; one that copies nothing can, and so
can one that is asked for many calls before it is waited for.
"""

from __future__ import annotations

import os
import socket
from time import perf_counter

import numpy as np

from shmexec.comparing import work
from shmexec.comparing.quantities import MEMCPY, PING_PONG_ONE_CPU
from shmexec.comparing.sampling import Plan, Sample, check, sample

_MESSAGE = bytes(64)


def ping_pong(plan: Plan, *, one_cpu: bool = False) -> Sample:
    """Seconds of one round trip."""
    if one_cpu and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _answer(theirs.fileno())
    theirs.close()
    descriptor = ours.fileno()

    def once(_token: int) -> float:
        start = perf_counter()
        os.write(descriptor, _MESSAGE)
        reply = os.read(descriptor, len(_MESSAGE))
        seconds = perf_counter() - start
        check(reply == _MESSAGE, "ping-pong: the reply is not what was sent")
        return seconds

    try:
        return sample(once, plan)
    finally:
        ours.close()
        os.waitpid(child, 0)


def _answer(descriptor: int) -> None:
    """The child: ends when the parent closes its side, or is gone."""
    try:
        while data := os.read(descriptor, len(_MESSAGE)):
            os.write(descriptor, data)
    finally:
        os._exit(0)


def memcpy(nbytes: int, plan: Plan) -> Sample:
    """Seconds of one copy."""
    source, target = work.pattern(nbytes), work.pattern(nbytes)

    def once(token: int) -> float:
        source[-1] = token
        start = perf_counter()
        np.copyto(target, source)
        seconds = perf_counter() - start
        check(target[-1] == token, "memcpy: the copy is not the original")
        return seconds

    return sample(once, plan)


def measure(name: str, nbytes: int, plan: Plan) -> Sample:
    """Measure a limit by its name."""
    if name == MEMCPY:
        return memcpy(nbytes, plan)
    return ping_pong(plan, one_cpu=name == PING_PONG_ONE_CPU)
