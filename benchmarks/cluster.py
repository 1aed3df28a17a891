"""A cluster, measured: ``map_batches`` over an array that goes to other processes.

    python -m benchmarks.cluster [--gigabytes 1] [--address tcp://scheduler:8786]

Three runs over equal arrays, each checked against the serial result: the first, one for
which the batches are on the nodes already, and one in which a node is killed, with
SIGKILL, after a third of its rows. Each is a line of JSON. Without an address a cluster of
two nodes is started on this machine, at 127.0.0.1 and 127.0.0.2.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time

import numpy as np

from shmexec.cluster import DaskExecutor

COLUMNS = 128
BATCHES = 64


def work(batch: np.ndarray) -> np.ndarray:
    """Some arithmetic on each number; a sum for each row."""
    root = np.sqrt(batch)
    root *= batch
    return np.sqrt(root, out=root).sum(axis=1)


def _measure(ex: DaskExecutor, what: str, x, expected, serial: float, report=None):
    before, began = ex.stats(), time.perf_counter()
    y = ex.map_batches(work, x, batch_size=-(-len(x) // BATCHES), progress=report)
    seconds = time.perf_counter() - began
    after = ex.stats()
    told = {
        "what": what,
        "equal": bool(np.array_equal(y, expected)),
        "seconds": round(seconds, 2),
        "serial_seconds": round(serial, 2),
        "nodes": len(after.nodes),
        "gigabytes": x.nbytes / 1e9,
        "gigabytes_sent": round((after.bytes_sent - before.bytes_sent) / 1e9, 3),
        "gigabytes_fetched": round(
            (after.bytes_fetched - before.bytes_fetched) / 1e9, 3
        ),
        "inputs_sent": after.inputs_sent - before.inputs_sent,
        "inputs_reused": after.inputs_reused - before.inputs_reused,
        "calls_sent_again": after.sent_again - before.sent_again,
    }
    print(json.dumps(told), flush=True)


def _killer(ex: DaskExecutor, rows: int):
    """Kills the last node once a third of the rows are done."""
    node = max(ex.stats().nodes, key=lambda each: each.address)
    done = [0]

    def report(count: int) -> None:
        before, done[0] = done[0], done[0] + count
        if before < rows / 3 <= done[0]:
            os.kill(node.pid, signal.SIGKILL)

    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--address", help="of a scheduler with two nodes, here")
    given = parser.parse_args()
    rows = int(given.gigabytes * 1e9 / 8 / COLUMNS)
    x = np.random.default_rng(0).random((rows, COLUMNS))
    began = time.perf_counter()
    expected = work(x)
    serial = time.perf_counter() - began
    keep = int(2 * x.nbytes)
    if given.address:
        made = DaskExecutor(given.address, keep_inputs=keep)
        made.client.wait_for_workers(2, timeout=60)
    else:
        made = DaskExecutor.local(2, 1, keep_inputs=keep)
    with made as ex:
        ex.broadcast(os.getpid)  # their pools are there
        _measure(ex, "first", x, expected, serial)
        _measure(ex, "again", x, expected, serial)
        report = _killer(ex, rows)
        _measure(ex, "a node killed", x, expected, serial, report)


if __name__ == "__main__":
    main()
