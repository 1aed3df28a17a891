"""What notebooks and ``repr`` show: of pools in use, broken, closed, and held up."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

import shmexec
from shmexec.runtime import showing
from tests.contract import calls, models


def test_a_pool_in_use(make_executor, gate):
    executor = make_executor(name="<pool>")
    assert "starting, 0 of 2 workers" in repr(executor)
    result = executor.submit(np.ones, 1_000_000).result()
    waiting = [executor.submit(calls.through, gate) for _ in range(3)]
    gate.arrived(2)
    html = executor._repr_html_()
    pids = [str(worker.pid) for worker in executor.stats().workers]
    assert repr(executor).startswith("<shmexec.Executor '<pool>': busy, 2 of 2 workers")
    for part in ("&lt;pool&gt;", "1 done", "2 running", "1 pending", "8 MB", *pids):
        assert part in html
    gate.open()
    assert [future.result() for future in waiting] == [None] * 3
    assert result.sum() == 1_000_000


@pytest.mark.one_kind
def test_a_closed_and_a_broken_one(make_executor):
    executor = make_executor()
    executor.submit(calls.add, 1, 1).result()
    executor.shutdown()
    assert "closed, 0 of 2 workers" in repr(executor)
    assert "closed" in executor._repr_html_()
    executor = make_executor(initializer=calls.fail, initargs=(OSError("no <model>"),))
    assert isinstance(executor.submit(calls.add, 1, 1).exception(), shmexec.PoolBroken)
    assert "failed" in repr(executor)
    assert "no &lt;model&gt;" in executor._repr_html_()


@pytest.mark.one_kind
def test_a_worker_that_died_is_told_of(make_executor):
    executor = make_executor(1)
    assert executor.submit(calls.kill_me).exception()
    html = executor._repr_html_()
    assert "workers that died: 1" in html
    assert "SIGKILL" in html


@pytest.mark.one_kind
def test_it_waits_for_no_lock_for_long(make_executor, monkeypatch):
    executor = make_executor(1)
    executor.submit(calls.add, 1, 1).result()
    monkeypatch.setattr(showing, "_LOCKED_WITHIN", 0.01)
    with executor._pool._lock:
        assert "unknown" in repr(executor)
        assert "held its lock" in executor._repr_html_()
    assert "ready" in executor._repr_html_()


@pytest.mark.one_kind
def test_actors_pipelines_and_scripts(make_executor, tmp_path):
    executor = make_executor(1)
    with executor.actor(models.Counter, replicas=2) as node:
        assert "Actor of Counter" in node._repr_html_()
        assert "2 of 2" in node._repr_html_()
        assert "Actor of Counter" in executor._repr_html_()
    assert "closed" in node._repr_html_()
    with executor.pipeline(abs, abs) as pipe:
        pipe.submit(-1).result()
        assert "Stage 2: abs" in pipe._repr_html_()
    path = tmp_path / "script.py"
    path.write_text("def f(): return 1\n")
    with shmexec.load(path) as script:
        script.f().result()
        assert " done" in script._repr_html_()


def test_other_settings_and_processes_forked_for_each_call():
    with shmexec.Executor(2) as executor:
        shown = repr(executor.options(timeout=5, priority=1))
        assert shown.startswith(f"<{executor!r} with timeout=5")
        assert shown.endswith("retries=0, priority=1, worker=None>")
    with shmexec.ForkPerCallExecutor(3) as executor:
        assert repr(executor) == "<shmexec.ForkPerCallExecutor: 3 processes at most>"


def test_without_processes():
    with shmexec.Executor(in_process=True) as executor:
        executor.submit(os.getpid).result()
        assert "in this process" in executor._repr_html_()
        node = executor.actor(dict)
        assert "Actor of dict" in node._repr_html_()


@pytest.mark.one_kind
def test_calls_that_run_apart(make_executor):
    executor = make_executor(1, fallback="process-per-call")
    executor.submit(calls.add, 1, 1).result()
    assert "1 done" in executor._repr_html_()


@pytest.mark.one_kind
def test_progress_without_tqdm_names_the_extra(make_executor, monkeypatch):
    executor = make_executor(1)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"shmexec\[progress\]"):
        list(executor.map(abs, [-1], progress=True))
    with pytest.raises(ImportError, match=r"shmexec\[progress\]"):
        executor.map_batches(abs, np.ones(3), progress=True)
