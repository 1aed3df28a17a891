"""What the scheduler commands that is no message: calls and workers are put an end to.

The caller holds the pool's lock, for all of it.
"""

from __future__ import annotations

from shmexec.runtime import reports
from shmexec.runtime.calls import Outcome
from shmexec.runtime.outputs import Outputs
from shmexec.runtime.standing import Standing
from shmexec.runtime.tables import Tables
from shmexec.scheduler import records as r


class Doing:
    """See the module.

    Args:
        tables: The pool's.
        outputs: What a worker printed is read before its call is told to have failed.
        stands: Knows why a pool is broken.
    """

    def __init__(self, tables: Tables, outputs: Outputs, stands: Standing) -> None:
        self._tables = tables
        self._outputs = outputs
        self._stands = stands

    def take_back(self, command: r.TakeBack) -> None:
        """A call waits again."""
        self._tables.calls[command.call].future.wait_again()

    def drop(self, command: r.Drop) -> None:
        """A call was cancelled before it began."""
        tables = self._tables
        call = tables.calls.get(command.call)
        if call is not None:
            tables.outcomes[call.number] = Outcome(call, None, cancelled=True)
            tables.forget(call.number)

    def fail(self, command: r.Fail) -> None:
        """A call has failed, and not by what it raised."""
        # The outcome is noted first: an interrupt in between loses nothing.
        tables = self._tables
        call = tables.calls.get(command.call)
        if call is None:
            return
        if command.why == "cancelled":
            tables.outcomes[call.number] = Outcome(call, None, cancelled=True)
            tables.forget(call.number)
            return
        handle = tables.workers.get(command.worker or 0)
        after = 0 if handle is None else self._outputs.drain(handle.output)
        error = reports.failure(
            command, call, handle, self._stands.error, tables.options.actor
        )
        tables.outcomes[call.number] = Outcome(call, None, error=error, after=after)
        tables.forget(call.number)

    def kill(self, command: r.Kill) -> None:
        """A worker is to be interrupted, or killed."""
        handle = self._tables.workers.get(command.worker)
        if handle is not None:
            if command.force:
                handle.kill()
            else:
                handle.interrupt()

    def broke(self, command: r.Broke) -> None:
        """Nothing to do: whoever submits next is told."""
