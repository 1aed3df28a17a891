"""Actors: an instance lives in a worker, its methods are called one after the other."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from concurrent.futures import CancelledError

import numpy as np
import pytest

import shmexec
from shmexec.scheduler import state
from shmexec.worker import loop
from tests.contract import calls
from tests.contract.models import AsyncNoting, Counter, Noting, make_counter
from tests.waiting import LONG, wait_until

pytestmark = pytest.mark.one_kind


@pytest.fixture
def executor(make_executor):
    return make_executor(1)


@pytest.fixture
def node(executor):
    with executor.actor(Counter) as node:
        yield node


def steps(path):
    """What an instance noted, without process ids."""
    return [line.split()[0] for line in path.read_text().splitlines()]


def is_gone(pid):
    return not os.path.exists(f"/proc/{pid}")


# -- calls -----------------------------------------------------------------------------


@pytest.mark.every_start
def test_state_lasts_from_call_to_call(executor):
    with executor.actor(Counter, 10, step=5) as node:
        assert [node.add().result() for _ in range(3)] == [15, 20, 25]


def test_calls_run_in_order(node):
    futures = [node.add(i) for i in range(100)]
    assert [future.result() for future in futures] == list(range(1, 101))
    assert node.what().result() == [(i,) for i in range(100)]


def test_calls_of_many_threads_each_run_once(node):
    def call():
        futures = [node.add() for _ in range(50)]
        results.extend([future.result() for future in futures])

    results = []
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(1, 201))


def test_arguments_go_as_they_are(node):
    node.add(1, "a", name="x", method=2).result()
    assert node.what().result() == [{"name": "x", "method": 2}]


def test_methods_are_called_by_what_the_class_has_too(executor):
    class Twice(Counter):
        def add(self, *args):
            return 2 * super().add(*args)

    with executor.actor(Twice) as node:
        assert node.call(Twice.add, 1).result() == 2
        assert (
            node.call(Counter.add, 1).result() == 4
        )  # the instance's own, as in Python
        assert node.call(Counter.later, 3).result()[0] == 3
        assert list(node.call(Counter.count, 3)) == list(node.stream("count", 3))
        assert list(node.stream(Counter.count, 3)) == list(node.count(3))
        assert asyncio.run(node.acall(Counter.add, 1)) == 6
        with pytest.raises(TypeError, match=r"by its name, .* not as 3"):
            node.call(3)
        with pytest.raises(TypeError, match="not as 3"):
            node.stream(3)


def test_it_lives_in_a_worker_of_its_own(executor, node):
    pid = node.pid().result()
    assert pid != os.getpid()
    assert pid not in executor.broadcast(os.getpid)
    assert {node.pid().result() for _ in range(5)} == {pid}


def test_arrays_pass_without_more_copies_than_in_submit(executor, node):
    array = np.arange(100_000.0)
    np.testing.assert_array_equal(node.times(array, 2).result(), array * 2)
    assert node.stats()[0].bytes_copied_in == array.nbytes
    shared = shmexec.share(array)
    np.testing.assert_array_equal(node.times(shared, 3).result(), array * 3)
    assert node.stats()[0].bytes_copied_in == array.nbytes
    assert node.stats()[0].bytes_by_reference == array.nbytes


def test_two_actors_do_not_see_each_other(executor):
    with executor.actor(Counter) as one, executor.actor(Counter, 100) as other:
        first = [one.add("one"), other.add("other"), one.add("one")]
        assert [future.result() for future in first] == [1, 101, 2]
        assert other.what().result() == [("other",)]
        assert one.what().result() == [("one",), ("one",)]


def test_an_exception_is_the_calls_own(node):
    with pytest.raises(KeyError) as caught:
        node.fail(KeyError("k")).result()
    assert "in fail" in str(caught.value.__cause__)
    assert node.add().result() == 1


def test_a_write_to_a_read_only_argument_names_it(node):
    with pytest.raises(ValueError, match="read-only") as caught:
        node.write(shmexec.share(np.zeros(10_000))).result()
    assert "array (argument 0" in caught.value.__notes__[0]


def test_names_of_the_handle_are_called_by_name(executor):
    with executor.actor(Counter) as node:
        assert node.call("close").result() == "its own"
        assert node.state == "ready"


def test_an_unknown_method_says_what_is_there(node):
    with pytest.raises(AttributeError, match=r"no method 'ad'; did you mean 'add'\?"):
        _ = node.ad
    with pytest.raises(AttributeError, match="There are: add, close, "):
        node.call("ad").result()
    with pytest.raises(AttributeError, match="double is no method"):
        _ = node.double
    with pytest.raises(AttributeError, match="size is no method"):
        node.call("size").result()
    with pytest.raises(AttributeError, match="_private"):
        _ = node._private
    assert "times" in dir(node)


def test_a_function_may_make_the_instance(executor):
    with executor.actor(make_counter, 7) as node:
        assert node.add().result() == 8
        with pytest.raises(AttributeError, match="make_counter has no method 'x'"):
            node.x().result()


def test_a_class_of_the_main_script_will_do(executor):
    class Local:
        def __init__(self, gain):
            self.gain = gain

        def times(self, x):
            return x * self.gain

    with executor.actor(Local, 3) as node:
        assert node.times(5).result() == 15
    with executor.actor(lambda: Local(4)) as node:
        assert node.times(5).result() == 20


def test_it_must_be_made_of_something(executor):
    with pytest.raises(TypeError, match="made of a class, not 5"):
        executor.actor(5)
    with pytest.raises(ValueError, match="replicas"):
        executor.actor(Counter, replicas=0)
    with pytest.raises(ValueError, match="initialize_timeout"):
        executor.actor(Counter, initialize_timeout=-1)


def test_a_class_that_cannot_be_pickled_names_the_attribute(executor, start_method):
    class Model:
        """Has a lock."""

        guard = threading.Lock()

        def use(self):
            return super().__repr__()

    if start_method == "fork":  # it need not be
        assert executor.actor(Model).use().result()
        return
    with pytest.raises(shmexec.SerializationError, match=r"actor Model: Model\.guard"):
        executor.actor(Model)


def test_an_argument_that_cannot_be_pickled_is_named(executor, start_method):
    if start_method != "fork":
        with pytest.raises(shmexec.SerializationError) as caught:
            executor.actor(Counter, [threading.Lock()])
        assert caught.value.path == "args[0][0]"
    with executor.actor(Counter) as node:
        with pytest.raises(shmexec.SerializationError) as caught:
            node.add(1, threading.Lock()).result()
        assert caught.value.path == "args[1]"


# -- coroutines and streams ------------------------------------------------------------


def test_async_methods_are_awaited_on_one_loop(node):
    first = node.later("a").result()
    assert first == ("a", node.later("b").result()[1])
    with pytest.raises(KeyError):
        node.fail_later(KeyError("k")).result()


def test_generator_methods_stream(node):
    assert list(node.count(3)) == [0, 1, 2]
    assert list(node.count_later(3)) == [0, 1, 2]
    assert list(node.call("count", 2)) == [0, 1]
    assert list(node.stream("what")) == []
    with node.stream("count", 10**6, buffersize=1) as items:
        assert next(items) == 0
    assert node.closed_at().result() <= 3


def test_a_stream_keeps_its_actor(executor):
    items = executor.actor(Counter).count(100)
    gc.collect()
    assert list(items) == list(range(100))


def test_calls_are_awaited(node, gate):
    async def main():
        assert await node.acall("add", 1) == 1
        waiting = asyncio.create_task(node.acall("stay", gate))
        await asyncio.to_thread(gate.arrived)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [item async for item in node.count(2)] == [0, 1]
        return await node.acall("add")

    assert asyncio.run(main()) == 1  # of another instance


def test_it_is_closed_by_async_with(executor):
    async def main():
        async with executor.actor(Counter) as node:
            assert await node.acall("add") == 1
        return node.state

    assert asyncio.run(main()) == "closed"


# -- replicas --------------------------------------------------------------------------


def test_each_call_goes_to_the_replica_with_the_fewest(executor, gate):
    with executor.actor(Counter, replicas=3) as node:
        waiting = [node.wait(gate) for _ in range(3)]
        pids = gate.arrived(3)
        assert len(set(pids)) == 3
        queued = [node.add() for _ in range(6)]
        assert [stats.pending + stats.running for stats in node.stats()] == [3, 3, 3]
        gate.open()
        for future in waiting + queued:
            future.result()
        assert [stats.done for stats in node.stats()] == [3, 3, 3]


def test_calls_go_round_a_busy_replica(executor, gate):
    with executor.actor(Counter, replicas=2) as node:
        waiting = node.wait(gate)
        (busy,) = gate.arrived()
        assert {node.pid().result() for _ in range(4)}.isdisjoint({busy})
        gate.open()
        waiting.result()


def test_its_workers_count_in_the_warning_of_memory(make_executor):
    executor = make_executor(6)
    with executor.actor(Counter, replicas=2):
        with pytest.warns(shmexec.MemoryWarning, match="9 workers"):
            executor.actor(Counter)


# -- states and the end ----------------------------------------------------------------


def test_its_states(executor, gate, tmp_path):
    node = executor.actor(Counter)
    assert wait_until(lambda: node.state == "ready")
    waiting = node.wait(gate)
    gate.arrived()
    assert node.state == "busy"
    node.close(wait=False)
    assert node.state == "closing"
    gate.open()
    assert waiting.result() is None
    node.close()
    assert node.state == "closed"
    assert "closed" in repr(node)
    with pytest.raises(shmexec.PoolClosed, match="is closed"):
        node.add()
    node.close()


def test_it_starts_before_the_first_call(executor, make_gate, tmp_path):
    gate = make_gate()
    node = executor.actor(Noting, tmp_path / "log", {"init": "hang"}, gate)
    gate.arrived()
    assert node.state == "starting"
    node.close(wait=False, cancel_futures=True)
    os.kill(node.stats()[0].workers[0].pid, 9)
    with pytest.warns(RuntimeWarning, match="after it was asked to end"):
        node.close()


@pytest.mark.parametrize("cls", [Noting, AsyncNoting])
def test_it_is_initialised_once_and_cleaned_up(executor, tmp_path, cls):
    log = tmp_path / "log"
    with executor.actor(cls, log) as node:
        assert [node.work(i).result() for i in range(2)] == [0, 1]
    assert steps(log) == ["init", "initialize", "work", "work", "cleanup"]
    assert is_gone(log.read_text().split()[-1])


def test_calls_made_before_its_end_still_run(executor, gate, tmp_path):
    node = executor.actor(Noting, tmp_path / "log")
    futures = [node.work(i) for i in range(20)]
    node.close()
    assert [future.result() for future in futures] == list(range(20))
    assert steps(tmp_path / "log")[-2:] == ["work", "cleanup"]


def test_or_are_cancelled(executor, gate):
    node = executor.actor(Counter)
    running = node.wait(gate, 1)
    gate.arrived()
    waiting = node.add()
    node.close(wait=False, cancel_futures=True)
    gate.open()
    assert running.result() == 1
    with pytest.raises(CancelledError):
        waiting.result()
    node.close()


def test_it_ends_with_its_executor(make_executor, tmp_path):
    executor = make_executor(1)
    node = executor.actor(Noting, tmp_path / "log")
    future = node.work(5)
    executor.shutdown()
    assert future.done()
    assert future.result() == 5
    assert node.state == "closed"
    assert steps(tmp_path / "log")[-1] == "cleanup"
    with pytest.raises(shmexec.PoolClosed):
        node.work()
    with pytest.raises(shmexec.PoolClosed):
        executor.actor(Counter)


def test_it_ends_when_nobody_holds_it(executor, tmp_path):
    node = executor.actor(Noting, tmp_path / "log")
    future = node.work(5)
    gone = weakref.ref(node)
    del node
    gc.collect()
    assert gone() is None
    assert future.result() == 5
    assert wait_until(lambda: steps(tmp_path / "log")[-1] == "cleanup")


def test_it_keeps_its_executor():
    node = shmexec.Executor(1).actor(Counter)
    gc.collect()
    assert node.add().result() == 1
    gone = weakref.ref(node)
    del node
    gc.collect()
    assert gone() is None


def test_at_the_end_of_the_program_it_is_cleaned_up(run_script, tmp_path):
    log = tmp_path / "log"
    done = run_script(
        "import pathlib, sys, shmexec\n"
        "from tests.contract.models import Noting\n"
        "node = shmexec.Executor(1)\n"
        "kept = node.actor(Noting, pathlib.Path(sys.argv[1]))\n"
        "kept.work()\n",
        str(log),
    )
    assert done.returncode == 0, done.stderr
    assert steps(log) == ["init", "initialize", "work", "cleanup"]


def test_a_cleanup_that_fails_is_told(executor, tmp_path):
    node = executor.actor(Noting, tmp_path / "log", {"cleanup": "raise"})
    node.work().result()
    with pytest.warns(RuntimeWarning, match=r"(?s)actor Noting.*cannot cleanup"):
        node.close()


def test_a_cleanup_that_hangs_is_killed_and_told(
    executor, tmp_path, monkeypatch, make_gate
):
    gate = make_gate()
    monkeypatch.setattr(state, "EXIT_WITHIN", 0.2)
    node = executor.actor(Noting, tmp_path / "log", {"cleanup": "hang"}, gate)
    node.work().result()
    with pytest.warns(RuntimeWarning, match="SIGKILL.*after it was asked to end"):
        node.close()
    assert node.state == "closed"
    assert is_gone(*gate.arrived())


def test_a_cleanup_that_kills_its_worker_is_told(executor, tmp_path):
    node = executor.actor(Noting, tmp_path / "log", {"cleanup": "kill"})
    node.work().result()
    with pytest.warns(RuntimeWarning, match="SIGKILL.*after it was asked to end"):
        node.close()
    assert node.state == "closed"


def test_a_failed_method_is_not_run_again(node):
    for name in ("fail_later", "fail"):
        with pytest.raises(ValueError, match="once"):
            node.call(name, ValueError("once")).result()
    assert node.get_failures().result() == 2


def test_a_handle_cannot_be_sent(executor, node):
    with pytest.raises(shmexec.SerializationError, match="an Actor cannot be pickled"):
        executor.submit(calls.same, node).result()


# -- failures --------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["init", "initialize"])
def test_if_it_cannot_be_built_calls_fail_at_once(executor, tmp_path, step):
    node = executor.actor(Noting, tmp_path / "log", {step: "raise"})
    with pytest.raises(shmexec.PoolBroken, match=f"cannot {step}"):
        node.work().result()
    assert node.state == "failed"
    with pytest.raises(
        shmexec.PoolBroken, match=rf"(?s)in {step}|__{step}__"
    ) as caught:
        node.work()
    assert "make a new actor" in str(caught.value)
    node.close()
    assert steps(tmp_path / "log")[-1] == step  # neither again, nor cleaned up
    assert steps(tmp_path / "log").count("init") == 1


@pytest.mark.parametrize("step", ["init", "initialize"])
def test_if_building_it_takes_too_long_it_has_failed(executor, tmp_path, step):
    log = tmp_path / "log"
    log.touch()
    node = executor.actor(Noting, log, {step: "hang"}, initialize_timeout=0.2)
    with pytest.raises(shmexec.PoolBroken, match=r"time limit of 0\.2 s"):
        node.work().result()
    assert node.state == "failed"
    node.close()
    assert "cleanup" not in steps(log)


def test_time_to_build_is_no_time_to_run(executor, gate):
    with executor.actor(Counter, initialize_timeout=10) as node:
        waiting = node.wait(gate, 1)
        gate.arrived()
        assert node._replicas[0].pool._machine.next_tick() is None
        gate.open()
        assert waiting.result() == 1


@pytest.mark.parametrize("step", ["init", "initialize"])
def test_if_building_it_kills_the_worker_it_has_failed(make_executor, tmp_path, step):
    executor = make_executor(1, max_restarts=1)
    node = executor.actor(Noting, tmp_path / "log", {step: "kill"})
    with pytest.raises(shmexec.PoolBroken, match="SIGKILL"):
        node.work().result()
    assert node.state == "failed"
    assert steps(tmp_path / "log").count("init") == 2
    node.close()


def test_if_its_worker_dies_it_is_built_again(executor, gate):
    with executor.actor(Counter, 5) as node:
        assert node.add().result() == 6
        staying = node.stay(gate)
        (pid,) = gate.arrived()
        queued = [node.add(), node.add()]
        os.kill(pid, 9)
        with pytest.raises(shmexec.WorkerDied) as caught:
            staying.result()
        assert "Counter.stay" in str(caught.value)
        assert "rebuilt from its arguments: its state starts afresh" in str(
            caught.value
        )
        assert [future.result() for future in queued] == [6, 7]
        assert node.pid().result() != pid


def test_a_crash_is_not_cleaned_up_after(executor, tmp_path):
    log = tmp_path / "log"
    with executor.actor(Noting, log, {"work": "kill"}) as node:
        with pytest.raises(shmexec.WorkerDied):
            node.work().result()
        assert wait_until(lambda: node.state == "starting" or node.state == "ready")
    assert steps(log)[:3] == ["init", "initialize", "work"]
    assert "cleanup" not in steps(log)[:4]


def test_retries_are_not_for_actors(make_executor, tmp_path):
    executor = make_executor(1, retries=3)
    with executor.actor(Noting, tmp_path / "log", {"work": "kill"}) as node:
        with pytest.raises(shmexec.WorkerDied):
            node.work().result()
    assert steps(tmp_path / "log").count("work") == 1


def test_after_a_time_out_it_is_cleaned_up_and_built_again(
    executor, tmp_path, monkeypatch
):
    monkeypatch.setattr(state, "KILL_AFTER", LONG)  # it does come back
    log = tmp_path / "log"
    quick = executor.options(timeout=0.3)
    with quick.actor(Noting, log, {"work": "hang"}) as node:
        with pytest.raises(shmexec.CallTimeout, match="state starts afresh") as caught:
            node.work().result()
        assert "models.py" in caught.value.stack
        with pytest.raises(shmexec.CallTimeout):
            node.work().result()
    # One is gone, and has cleaned up, before the next one is there.
    assert steps(log) == ["init", "initialize", "work", "cleanup"] * 2


def test_a_call_can_be_cancelled(executor, gate):
    with executor.actor(Counter) as node:
        staying = node.stay(gate)
        gate.arrived()
        waiting = node.add()
        assert waiting.cancel()
        assert staying.cancel(running=True)
        with pytest.raises(CancelledError):
            staying.result()
        assert node.add().result() == 1


def test_the_pool_goes_on_beside_it(executor, gate):
    with executor.actor(Counter) as node:
        staying = node.stay(gate)
        (pid,) = gate.arrived()
        os.kill(pid, 9)
        assert executor.submit(calls.same, 1).result() == 1
        with pytest.raises(shmexec.WorkerDied):
            staying.result()


# -- in this process ---------------------------------------------------------------------


def test_in_process(tmp_path):
    with shmexec.Executor(1, in_process=True) as executor:
        node = executor.actor(Counter, 3)
        other = executor.actor(Noting, tmp_path / "log")
        assert [node.add().result() for _ in range(2)] == [4, 5]
        assert node.pid().result() == os.getpid()
        assert other.work(1).result() == 1
        assert node.state == "ready"
        assert node.later(1).result()[0] == 1
        assert list(node.count(3)) == list(node.count_later(3)) == [0, 1, 2]
        with pytest.raises(ZeroDivisionError):
            node.fail(ZeroDivisionError()).result()
    assert node.state == "closed"
    assert steps(tmp_path / "log") == ["init", "initialize", "work", "cleanup"]
    with pytest.raises(shmexec.PoolClosed):
        node.add()
    loop.close()


def test_in_process_it_may_fail_too(tmp_path):
    with shmexec.Executor(1, in_process=True) as executor:
        node = executor.actor(Noting, tmp_path / "log", {"init": "raise"})
        assert node.state == "failed"
        with pytest.raises(shmexec.PoolBroken, match="cannot init") as caught:
            node.work()
        assert isinstance(caught.value.__cause__, ValueError)
        node = executor.actor(Noting, tmp_path / "log", {"cleanup": "raise"})
        with pytest.warns(RuntimeWarning, match="cannot cleanup"):
            node.close()
