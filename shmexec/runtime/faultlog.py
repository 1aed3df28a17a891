"""The parent's end of a worker's fault log; :mod:`shmexec.worker.stacks` has the layout.

Both have one open file, and so one position in it, at which ``faulthandler`` writes.
"""

from __future__ import annotations

import os
import tempfile

from shmexec import limits
from shmexec.wire.messages import MalformedMessage, PackedResult, decode_result
from shmexec.worker.stacks import (
    MARK_BYTES,
    PACK_LOG_AT,
    PACK_LOG_AT_MOST,
    SHOWS_AT,
    TEXT_AT,
)

TEXT_AT_MOST = 16384
"""Bytes of a text that becomes part of an error."""

_REWIND_FROM = 1 << 18
"""Bytes of text after which the next one that was asked for takes its place."""

_FATAL = b"Fatal Python error"


class FaultLog:
    """A file that has no name. Guarded by the pool's lock, but for what says otherwise.

    Attributes:
        descriptor: Of the file.
    """

    def __init__(self) -> None:
        self.descriptor = _scratch_file()
        self._last = (
            TEXT_AT  # where the text of the worker's end begins, if there is any
        )
        self._ending = False  # it was asked for already
        os.lseek(self.descriptor, TEXT_AT, os.SEEK_SET)

    # -- what the worker notes ---------------------------------------------------------

    def begun(self) -> int:
        """The call that the worker has begun last, 0 if none."""
        try:
            mark = os.pread(self.descriptor, MARK_BYTES, 0)
        except OSError:
            return 0
        return int.from_bytes(mark, "little")

    def shows(self) -> bytes:
        """What the worker shows if it is asked to; see :mod:`shmexec.worker.stacks`."""
        return os.pread(self.descriptor, 1, SHOWS_AT)

    def results(self, wanted: set[int]) -> list[PackedResult]:
        """Results of these calls of a pack, as far as they were noted."""
        data = os.pread(self.descriptor, PACK_LOG_AT_MOST, PACK_LOG_AT)
        found: list[PackedResult] = []
        at = 0
        while wanted:
            try:
                result, at = decode_result(data, at)
            except MalformedMessage:
                break
            if result.request not in wanted:
                break  # left over from another pack: the others came by themselves
            wanted.remove(result.request)
            found.append(result)
        return found

    # -- text --------------------------------------------------------------------------

    def begin_text(self) -> int:
        """A text is asked for that tells nothing of the worker's end; where it begins.

        Texts before it may be written over, unless the worker is about to end.
        """
        end = text_end(self.descriptor)
        if end - TEXT_AT > _REWIND_FROM and not self._ending:
            os.ftruncate(self.descriptor, TEXT_AT)
            end = self._last = os.lseek(self.descriptor, TEXT_AT, os.SEEK_SET)
        return end

    def end_text(self, start: int, text: bytes) -> bytes:
        """Such a text came; what is really of it, if the worker died meanwhile."""
        fatal = text.find(_FATAL)
        if fatal >= 0:
            text = text[:fatal]
        if not self._ending:
            self._last = start + len(text)
        return text

    def begin_last_text(self) -> None:
        """The worker is asked for its stacks before it ends."""
        if not self._ending:
            self._ending = True
            self._last = text_end(self.descriptor)

    def last_text(self) -> str:
        """What the worker wrote before its end, or when it was to end."""
        try:
            data = os.pread(self.descriptor, TEXT_AT_MOST, self._last)
        except OSError:
            return ""
        return data.decode(errors="replace")

    def close(self) -> None:
        """Give the descriptor back."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def text_end(descriptor: int) -> int:
    """Where the text ends now."""
    return os.lseek(descriptor, 0, os.SEEK_CUR)


def _scratch_file() -> int:
    if not limits.memfd_refused():
        descriptor = os.memfd_create("shmexec-fault", os.MFD_CLOEXEC)
        os.fchmod(descriptor, 0o600)  # whoever finds it below /proc
        return descriptor
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
