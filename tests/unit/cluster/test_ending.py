"""What becomes of a dropped executor."""

from __future__ import annotations

from unittest.mock import Mock, call

from shmexec.cluster.executor import _finish


def test_a_cluster_that_was_started_for_it_is_closed_last():
    seen = Mock()
    calls = seen.calls
    _finish(calls, [seen.cluster], own=True)
    assert [each[0] for each in seen.mock_calls] == [
        "calls.close",
        "calls.finish",
        "calls.client.unregister_scheduler_plugin",
        "calls.client.unregister_worker_plugin",
        "calls.client.close",
        "cluster.close",
    ]
    assert call.calls.finish(fetch=True) in seen.mock_calls
