"""What nodes' pools are made with, checked before there is a cluster."""

from __future__ import annotations

import threading

import pytest

from shmexec.cluster import DaskExecutor
from shmexec.errors import SerializationError

NOWHERE = "tcp://127.0.0.1:9"


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"initializer": 1}, TypeError),
        ({"initargs": 1}, TypeError),
        ({"threads_per_worker": "2"}, TypeError),
        ({"threads_per_worker": 0}, ValueError),
        ({"worker_env": {"A": 1}}, TypeError),
        ({"max_shared_memory": "much"}, ValueError),
        ({"initializer": print, "initargs": (threading.Lock(),)}, SerializationError),
    ],
)
def test_settings_are_checked_here(setting, error):
    with pytest.raises(error, match=next(reversed(setting))):
        DaskExecutor(NOWHERE, connect_timeout=0.1, **setting)
