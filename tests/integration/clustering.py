"""A program that tries an executor on a cluster, for ``test_cluster``.

In a process of its own, since Dask leaves threads and connections behind. Each function
named ``check_`` is a test; how it went is a line of JSON on stdout.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, CancelledError, as_completed, wait
from pathlib import Path

import numpy as np
import pandas as pd
from distributed import Client, LocalCluster

import shmexec
from shmexec.cluster import DaskExecutor

LONG = 30.0
ROWS = 160_000


def raises(kind, fn, *args, **kwargs):
    """The exception that a call raises."""
    try:
        fn(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def failure(fn, *args):
    """The exception that a call raises, None if it does not."""
    try:
        fn(*args)
    except Exception as error:
        return error
    return None


def until(condition):
    """Wait for something that another process does."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def add_one(x):
    return x + 1


# -- single calls --------------------------------------------------------------------------


def check_calls_of_lambdas_and_closures(ex):
    factor = 3
    assert ex.submit(lambda x: factor * x, 14).result(LONG) == 42
    assert ex.submit(divmod, 7, 2).result() == (3, 1)

    async def later(x):
        await asyncio.sleep(0)
        return -x

    assert ex.submit(later, 4).result() == -4


def check_arrays_behave_as_if_they_were_copied(ex):
    x = np.zeros(100_000)

    def spoil(a):
        a += 1
        return a, a.sum()

    future = ex.submit(spoil, x)
    x[:] = 7
    y, total = future.result()
    assert total == 100_000
    assert (y == 1).all()
    y[:] = 5  # results are mine
    assert (x == 7).all()


def check_an_input_is_sent_once_by_its_content(ex):
    x = np.arange(200_000.0)
    before = ex.stats()
    futures = [ex.submit(np.sum, x.copy()) for _ in range(4)]
    assert {float(f.result()) for f in futures} == {float(x.sum())}
    after = ex.stats()
    assert after.inputs_sent - before.inputs_sent == 1
    assert after.inputs_reused - before.inputs_reused == 3
    assert after.bytes_sent - before.bytes_sent == x.nbytes
    x[0] = 1
    assert ex.submit(np.sum, x).result() == x.sum()
    assert ex.stats().inputs_sent - before.inputs_sent == 2


def check_what_a_node_has_is_not_copied_for_calls(ex):
    x = shmexec.share(np.ones(1_000_000))
    before = ex.stats()
    assert sum(ex.map(lambda i, a: a[i], range(8), [x] * 8)) == 8
    after = ex.stats()
    for old, new in zip(before.nodes, after.nodes, strict=True):
        copied = new.pool.bytes_copied_in - (
            old.pool.bytes_copied_in if old.pool else 0
        )
        assert copied < x.nbytes / 2
    assert after.bytes_sent - before.bytes_sent == x.nbytes

    def write(a):
        a[0] = 2

    error = raises(ValueError, ex.submit(write, x).result)
    assert "read-only" in str(error)
    assert "a.copy()" in error.__notes__[0]


def check_shared_objects_are_rebuilt_once_in_each_worker(ex):
    model = shmexec.share({"weights": np.ones(100_000), "seen": []})

    def use(m, i):
        m["seen"].append(i)
        return os.getpid(), len(m["seen"]), float(m["weights"][i])

    seen = list(ex.map(use, [model] * 6, range(6)))
    for pid in {pid for pid, *_ in seen}:
        counts = sorted(count for each, count, _ in seen if each == pid)
        assert counts == list(range(1, len(counts) + 1))


def check_results_stay_until_they_are_asked_for(ex):
    before = ex.stats()
    big = ex.submit(np.ones, 500_000)
    nested = ex.submit(lambda d: d["x"][0].sum(), {"x": [big]})
    frame = ex.submit(lambda a: pd.DataFrame({"a": a, "b": a}), big)
    total = ex.submit(lambda f: float(f.to_numpy().sum()), frame)
    wait([big, nested, frame, total], LONG)
    assert nested.result() == 500_000
    assert total.result() == 1_000_000
    assert ex.stats().bytes_fetched - before.bytes_fetched < 10_000
    y = big.result()
    assert y.flags.writeable
    assert (y == 1).all()
    assert frame.result().shape == (500_000, 2)
    assert ex.stats().bytes_fetched - before.bytes_fetched >= 12_000_000


def check_large_pickles_are_sent_as_inputs(ex):
    rows = [str(i) for i in range(100_000)]
    before = ex.stats()
    assert ex.submit(len, rows).result() == 100_000
    assert ex.submit(len, rows).result() == 100_000
    assert ex.stats().inputs_sent - before.inputs_sent == 1


# -- failures ------------------------------------------------------------------------------


class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def check_errors_are_the_calls_own(ex):
    def fail():
        raise KeyError("gone")

    future = ex.submit(fail)
    error = raises(KeyError, future.result)
    assert "in fail" in str(error.__cause__)
    assert "shmexec" not in str(error.__cause__)
    assert isinstance(future.exception(), KeyError)
    # What is given such a future fails likewise.
    raises(KeyError, ex.submit(len, [future]).result)
    unsent = ex.submit(len, threading.Lock())
    raises(shmexec.SerializationError, ex.submit(len, [unsent]).result)
    busy = [ex.submit(time.sleep, 0.1) for _ in range(4)]
    unwanted = ex.submit(abs, -1)
    assert unwanted.cancel()
    raises(CancelledError, ex.submit(len, [unwanted]).result)
    wait(busy)

    def odd():
        raise Odd(1, 2)

    assert "1 and 2" in str(raises(shmexec.RemoteError, ex.submit(odd).result))
    error = raises(
        shmexec.SerializationError, ex.submit(len, [threading.Lock()]).result
    )
    assert error.path == "args[0][0]"


def check_a_dead_worker_fails_its_call_alone(ex):
    dead, alive = ex.submit(os._exit, 3), ex.submit(abs, -1)
    assert raises(shmexec.WorkerDied, dead.result).exitcode == 3
    assert alive.result() == 1
    with tempfile.TemporaryDirectory() as folder:
        flag = Path(folder, "flag")

        def once():
            if not flag.exists():
                flag.touch()
                os._exit(3)
            return "survived"

        assert ex.options(retries=1).submit(once).result() == "survived"


def check_timeouts(ex):
    future = ex.options(timeout=0.2).submit(time.sleep, LONG)
    error = raises(shmexec.CallTimeout, future.result)
    assert error.seconds == 0.2
    raises(TimeoutError, ex.submit(time.sleep, 0.2).result, 0.01)


def check_running_calls_can_be_stopped(ex):
    with tempfile.TemporaryDirectory() as folder:

        def hang(name):
            Path(folder, name).touch()
            time.sleep(LONG)

        futures = [ex.submit(hang, str(i)) for i in range(2)]
        until(lambda: len(os.listdir(folder)) == 2)
        for future in futures:
            assert future.cancel(running=True)
            assert future.cancelled()
            raises(CancelledError, future.result)
        assert not wait(futures, 0).not_done
        # All workers are free again.
        assert sorted(ex.map(abs, range(-4, 0))) == [1, 2, 3, 4]


def check_an_interrupt_stops_what_was_waited_for(ex):
    with tempfile.TemporaryDirectory() as folder:
        flag = Path(folder, "flag")

        def hang():
            flag.touch()
            time.sleep(LONG)

        def press():
            until(flag.exists)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        future = ex.submit(hang)
        thread = threading.Thread(target=press)
        thread.start()
        raises(KeyboardInterrupt, future.result)
        thread.join()
        assert future.cancelled()
        assert sorted(ex.map(abs, range(-4, 0))) == [1, 2, 3, 4]


def check_what_waits_can_be_cancelled(ex):
    with tempfile.TemporaryDirectory() as folder:
        busy = [ex.submit(time.sleep, 0.1) for _ in range(8)]
        waiting = [ex.submit(Path(folder, "ran").touch) for _ in range(2)]
        assert [each.cancel() for each in waiting] == [True, True]
        wait(busy, LONG)
        assert not os.listdir(folder)


# -- many calls ------------------------------------------------------------------------------


def check_map(ex):
    assert list(ex.map(pow, range(5), [2] * 5)) == [0, 1, 4, 9, 16]
    assert sorted(ex.map(abs, range(-3, 0), ordered=False)) == [1, 2, 3]
    assert list(ex.map(abs, range(600), chunksize=50)) == list(range(600))
    assert next(ex.map(add_one, iter(range(10**9)), buffersize=4)) == 1

    def fail_at_two(i):
        return 1 // (2 - i)

    raises(ZeroDivisionError, list, ex.map(fail_at_two, range(4)))


def check_map_batches(ex):
    x = np.random.default_rng(0).random((20_000, 8))
    seen = []
    y = ex.map_batches(np.sqrt, x, batch_size=6_000, progress=seen.append)
    assert np.array_equal(y, np.sqrt(x))
    assert sum(seen) == 20_000
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "x.npy"), x)
        mapped = np.load(Path(folder, "x.npy"), mmap_mode="r")
        out = np.memmap(Path(folder, "out"), mode="w+", shape=20_000)
        out = out.astype(float) if out.dtype != float else out
        z = ex.map_batches(lambda a, b: (a * b).sum(axis=1), mapped, x, out=out)
        assert z is out
        assert np.array_equal(z, (x * x).sum(axis=1))
    error = raises(ValueError, ex.map_batches, lambda b: b[:1], x)
    assert "batch" in error.__notes__[-1]
    before = ex.stats()
    ex.map_batches(np.sqrt, x, batch_size=6_000)
    assert ex.stats().inputs_sent == before.inputs_sent


def check_waiting_as_the_standard_library_does(ex):
    futures = [ex.submit(time.sleep, 0.01 * i) for i in range(4)]
    assert len(list(as_completed(futures, LONG))) == 4
    slow, quick = ex.submit(time.sleep, 0.4), ex.submit(abs, -1)
    assert quick in wait([slow, quick], LONG, FIRST_COMPLETED).done
    told = threading.Event()
    values = []

    def then(future):
        values.append(ex.submit(abs, -future.result()).result())  # it may wait
        told.set()

    ex.submit(abs, -5).add_done_callback(then)
    assert told.wait(LONG)
    assert values == [5]


def check_a_late_callback_waits_for_the_value_elsewhere(ex):
    future = ex.submit(np.ones, 100_000)
    wait([future], LONG)
    seen = []

    def look(done):
        seen.append((threading.current_thread(), done.fetched, done.result().sum()))

    future.add_done_callback(look)
    until(lambda: seen)
    ((thread, fetched, total),) = seen
    assert thread is not threading.current_thread()
    assert fetched
    assert total == 100_000
    future.add_done_callback(look)  # at once
    assert seen[1][0] is threading.current_thread()


def check_asyncio(ex):
    async def main():
        loop = asyncio.get_running_loop()
        one = await loop.run_in_executor(ex, abs, -1)
        two = await ex.asubmit(abs, -2)
        return [one, two, *[y async for y in ex.amap(abs, [-3, -4])]]

    assert asyncio.run(main()) == [1, 2, 3, 4]


# -- with a state ----------------------------------------------------------------------------


def check_streams(ex):
    def count(n):
        for i in range(n):
            yield np.full(1000, i)

    assert [int(each[0]) for each in ex.stream(count, 20, buffersize=2)] == [*range(20)]

    async def items():
        return [each[0] async for each in ex.stream(count, 3)]

    assert asyncio.run(items()) == [0, 1, 2]

    def fails():
        yield 1
        raise KeyError("later")

    came = []
    error = raises(KeyError, came.extend, ex.stream(fails))
    assert came == [1]
    assert "in fails" in str(error.__cause__)
    with tempfile.TemporaryDirectory() as folder:

        def closes():
            try:
                while True:
                    yield 1
            finally:
                Path(folder, "closed").touch()

        with ex.stream(closes) as stream:
            assert next(stream) == 1
        until(Path(folder, "closed").exists)


class Counter:
    def __init__(self, start):
        self.value = float(np.sum(start))

    def initialize(self):
        self.ready = True

    def add(self, x):
        self.value += float(np.sum(x))
        return self.ready, self.value

    def upto(self, n):
        yield from range(n)

    def fail(self):
        raise KeyError("mine")


class Slow:
    def wait(self):
        time.sleep(LONG)


def check_actors(ex):
    with ex.actor(Counter, np.ones(100_000)) as counter:
        last = [counter.add(1) for _ in range(20)][-1]
        assert last.result() == (True, 100_020)
        assert counter.add(np.ones(100_000)).result()[1] == 200_020
        assert counter.add(ex.submit(abs, -1)).result()[1] == 200_021
        assert list(counter.upto(3)) == [0, 1, 2]
        raises(KeyError, counter.fail().result)
        assert "no method" in str(raises(AttributeError, getattr, counter, "sub"))
        assert counter.state == "ready"
    assert counter.state == "closed"
    raises(shmexec.PoolClosed, counter.add, 1)
    broken = ex.actor(Counter, "no number")
    raises(shmexec.PoolBroken, broken.add(1).result)


def check_concurrent_actors(ex):
    class Gate:
        def __init__(self):
            self.event = asyncio.Event()

        async def wait(self):
            await self.event.wait()
            return "open"

        async def open(self):
            self.event.set()

        async def numbers(self):
            yield 1
            yield 2

    with ex.actor(Gate, max_concurrency=4, replicas=1) as gate:
        waiting = gate.wait()
        gate.open().result()
        assert waiting.result() == "open"
        assert list(gate.numbers()) == [1, 2]


def check_scripts(ex):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.py")
        path.write_text(
            "calls = 0\n"
            "def predict(x, scale=1):\n"
            "    global calls\n"
            "    calls += 1\n"
            "    return x * scale\n"
            "def tokens(n):\n"
            "    yield from range(n)\n"
        )
        model = ex.script(path)
        assert (model.predict(np.ones(3), scale=2).result() == 2).all()
        assert list(model.tokens(3)) == [0, 1, 2]
        raises(shmexec.WrongArguments, model.predict)
        path.write_text("def predict(x): return -x\n")
        assert model.reload()
        assert model.predict(4).result() == -4


def check_broadcast(ex):
    pids = ex.broadcast(os.getpid)
    workers = [each.pid for node in ex.stats().nodes for each in node.pool.workers]
    assert sorted(pids) == sorted(workers)
    raises(ZeroDivisionError, ex.broadcast, lambda: 1 // 0)


# -- of other executors ------------------------------------------------------------------


def check_initializers_and_clients(ex):
    def prepare(value):
        os.environ["PREPARED"] = value

    with DaskExecutor(ex.client, initializer=prepare, initargs=("yes",)) as other:
        kept = other.submit(lambda: os.environ.get("PREPARED"))
        assert kept.result() == "yes"
        late = other.submit(abs, -3)
        error = raises(ValueError, ex.submit, abs, late)
        assert "another executor" in str(error)
    raises(shmexec.PoolClosed, other.submit, abs, 1)
    assert late.result() == 3  # also after the end
    assert ex.submit(lambda: os.environ.get("PREPARED")).result() is None
    assert ex.client.status == "running"


def check_pools_end_with_their_program(ex):
    """Its client goes without a word, as it does when a program is killed."""
    client = Client(ex.client.scheduler.address, set_as_default=False)
    lost = DaskExecutor(client)
    pids = lost.broadcast(os.getpid)
    assert not set(pids) & set(ex.broadcast(os.getpid))
    client.close()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    error = raises(shmexec.ClusterError, DaskExecutor, client)
    assert "closed" in str(error)


def check_a_client_is_closed_before_its_executor(ex):
    """Whoever waits is told, and nobody waits for ever."""
    client = Client(ex.client.scheduler.address, set_as_default=False)
    other = DaskExecutor(client)
    counter = other.actor(Counter, 1)
    counter.add(1).result()
    stream = other.stream(itertools.count, buffersize=2)
    assert next(stream) == 0
    waiting = other.actor(Slow).wait()
    client.close()
    raises((shmexec.ClusterError, shmexec.WorkerDied), list, stream)
    assert isinstance(
        waiting.exception(LONG), (shmexec.ClusterError, shmexec.WorkerDied)
    )
    raises(shmexec.ClusterError, counter.add, 1)
    raises(shmexec.ClusterError, counter.upto, 3)
    assert counter.state == "failed"
    stream.close()
    counter.close()
    other.shutdown()


def check_callbacks_may_shut_it_down(ex):
    for submit in (
        lambda other: other.submit(abs, -1),
        lambda other: other.actor(Counter, 1).add(1),
    ):
        other = DaskExecutor(ex.client.scheduler.address)
        errors = []
        submit(other).add_done_callback(
            lambda _, other=other, errors=errors: errors.append(failure(other.shutdown))
        )
        until(lambda errors=errors: errors)
        assert errors == [None]
        other.shutdown()
        assert "closed" in repr(other)


def unwelcome():
    raise KeyError("not here")


class Picky:
    """Can be pickled, and cannot be unpickled."""

    def __reduce__(self):
        return unwelcome, ()


def check_what_fails_at_the_start_leaves_nothing(ex):
    other = Client(ex.client.scheduler.address, set_as_default=False)
    before = plugins_of(other)
    error = raises(
        shmexec.ClusterError,
        DaskExecutor,
        other,
        initializer=print,
        initargs=(Picky(),),
    )
    assert "not here" in str(error)
    assert plugins_of(other) == before
    other.close()


def plugins_of(client):
    def names(dask_scheduler):
        return sorted(dask_scheduler.plugins), sorted(dask_scheduler.worker_plugins)

    return client.run_on_scheduler(names)


def check_no_scheduler():
    error = raises(
        shmexec.ClusterError, DaskExecutor, "tcp://127.0.0.1:9", connect_timeout=0.3
    )
    assert "tcp://127.0.0.1:9" in str(error)


def check_no_threads_as_nodes():
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        error = raises(shmexec.ClusterError, DaskExecutor, cluster)
    assert "processes=True" in str(error)


# -- nodes that are lost ---------------------------------------------------------------------


def kill_a_node(ex):
    """Kill a node as the out-of-memory killer would; its workers go with it."""
    node = max(ex.stats().nodes, key=lambda node: node.address)
    workers = [each.pid for each in node.pool.workers]
    os.kill(node.pid, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def check_y_a_node_is_killed_in_mid_job(ex):
    """The last but one: it leaves the cluster with one node less."""
    x = np.random.default_rng(1).random((ROWS, 16))
    kept = [ex.submit(np.full, 50_000, i) for i in range(6)]
    sums = [ex.submit(np.sum, each) for each in kept]
    inputs = [ex.submit(np.sum, np.full(50_000, i)) for i in range(6)]
    wait(kept + sums + inputs, LONG)
    states = [ex.actor(Counter, 1) for _ in range(2)]
    for each in states:
        each.add(1).result()
    streams = [ex.stream(itertools.count, buffersize=2) for _ in range(2)]
    assert [next(each) for each in streams] == [0, 0]
    done = []

    def report(rows):
        done.append(rows)
        if len(done) == 3:
            kill_a_node(ex)

    def work(batch):
        time.sleep(0.01)
        return np.sqrt(batch).sum(axis=1)

    y = ex.map_batches(work, x, batch_size=ROWS // 40, progress=report)
    assert np.array_equal(y, np.sqrt(x).sum(axis=1))
    assert sum(done) == ROWS
    # What was lost is made again, of inputs that are sent again where need be.
    assert [float(each.result()) for each in sums] == [50_000.0 * i for i in range(6)]
    assert [float(each.result()) for each in inputs] == [50_000.0 * i for i in range(6)]
    assert [int(each.result()[0]) for each in kept] == [*range(6)]
    assert len(ex.stats().nodes) == 1
    # An actor's state is lost with its node, and so is a stream.
    outcomes = [type(each.add(1).exception(LONG)) for each in states]
    assert set(outcomes) == {type(None), shmexec.WorkerDied}
    outcomes = [type(failure(sum, itertools.islice(s, 9))) for s in streams]
    assert set(outcomes) == {type(None), shmexec.WorkerDied}
    for each in streams:
        each.close()


def check_z_the_end(ex):
    """Nothing is left of the executor, but what it gave."""
    kept = ex.submit(np.ones, 100_000)
    pids = ex.broadcast(os.getpid)
    ex.shutdown()
    assert kept.result().sum() == 100_000
    raises(shmexec.PoolClosed, ex.submit, abs, 1)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert "closed" in repr(ex)


def main(address, *names):
    """Run checks, in their order.

    Args:
        address: Of a scheduler, or "local".
        *names: Of the checks; default: all.
    """
    local = address == "local"
    with DaskExecutor.local(2, 1) if local else DaskExecutor(address) as ex:
        ex.client.wait_for_workers(2, timeout=LONG)
        addresses = {node.address.rpartition(":")[0] for node in ex.stats().nodes}
        assert addresses == {"tcp://127.0.0.1", "tcp://127.0.0.2"}
        print(json.dumps({"name": "start", "error": ""}), flush=True)
        for name, check in sorted(globals().items()):
            if not name.startswith("check_") or (names and name not in names):
                continue
            error, began = "", time.monotonic()
            try:
                check(ex) if check.__code__.co_argcount else check()
            except BaseException:
                error = traceback.format_exc()
            seconds = round(time.monotonic() - began, 2)
            line = {"name": name, "error": error, "seconds": seconds}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
