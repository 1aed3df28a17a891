"""The two block allocators, to run a test over both."""

from __future__ import annotations

import pytest

from shmexec.memory import native
from shmexec.memory.allocator import BlockAllocator

ALLOCATORS = [pytest.param(BlockAllocator, id="pure")]
if native.is_built():
    from shmexec.memory import _native

    ALLOCATORS.append(pytest.param(_native.BlockAllocator, id="native"))
