"""Futures and interrupts of the thread that settles them."""

from __future__ import annotations

import threading

import pytest

from shmexec.runtime.calls import Outcome, PackedCall, resolve


def test_an_interrupt_in_a_callback_keeps_no_other_from_being_called():
    call = PackedCall(None, "call")
    outcome = Outcome(call, None, error=KeyError("its own"))
    called = []

    def interrupted(future):
        called.append("first")
        raise KeyboardInterrupt

    call.future.add_done_callback(interrupted)
    call.future.add_done_callback(lambda _: called.append("second"))
    with pytest.raises(KeyboardInterrupt):
        resolve(outcome)
    assert called == ["first"]
    for _ in range(2):  # whoever resolves what is left
        resolve(outcome)
    assert called == ["first", "second"]


def test_an_interrupt_before_they_are_told_leaves_nobody_waiting(monkeypatch):
    call = PackedCall(None, "call")
    future = call.future
    outcome = Outcome(call, None, error=KeyError("its own"))
    woken = threading.Event()
    waiting = threading.Event()

    def wait():
        with future._condition:
            waiting.set()
            future._condition.wait()
        woken.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert waiting.wait(20)

    def interrupted():
        raise KeyboardInterrupt

    with future._condition:  # the thread waits
        monkeypatch.setattr(future.make_condition(), "notify_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resolve(outcome)
    monkeypatch.undo()
    assert not woken.is_set()
    resolve(outcome)
    assert woken.wait(20)
    thread.join()
