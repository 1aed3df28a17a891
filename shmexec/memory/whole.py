"""Changes of state that an interrupt may leave half done, and that are mended then.

Ctrl-C raises ``KeyboardInterrupt`` at any bytecode of the main thread, also where a lock
is held and only half of what belongs together was changed. So whoever takes the lock
notes that the state is about to change, and that it has. Who finds the note of a change
that did not come to its end mends the state first, before anything is done with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Whole:
    """Stands behind a lock: ``with lock, whole: ...``.

    It is mended by a thread that no interrupt can strike. Until that is done, whoever
    takes the lock waits: an interrupt may well take the lock from the main thread while
    it waits for the mending, but not the mending from its thread.

    Args:
        mend: Makes the state whole; does not raise.
        tell: Called in the thread that was interrupted, as it leaves; takes no lock.
    """

    def __init__(
        self, mend: Callable[[], None], tell: Callable[[], None] | None = None
    ) -> None:
        self._mend = mend
        self._tell = tell
        self._mending = threading.Lock()
        self._times = 0
        self.changing = False
        """Whether the state changes just now, or was left half changed."""

    def __enter__(self) -> None:
        if self.changing:
            self._have_mended()
        self.changing = True

    def __exit__(
        self, _type: object, error: BaseException | None, _trace: object
    ) -> None:
        # An interrupt in here finds a state that is whole, to be mended for nothing.
        if error is None or isinstance(error, Exception):
            self.changing = False
        elif self._tell is not None:
            self._tell()

    def _have_mended(self) -> None:
        times = self._times
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=self._do, args=(times,))
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending
                self._do(times)
            else:
                thread.join()
        else:
            self._do(times)

    def _do(self, times: int) -> None:
        with self._mending:
            if self._times == times:  # else somebody else has
                self._mend()
                self._times += 1
                self.changing = False
