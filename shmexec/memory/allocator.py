"""Where the blocks of one arena lie: pure bookkeeping over ``[0, size)``.

Here live the free extents, the live blocks and the record of which pages have memory
behind them. Not here: the mapping itself, the system calls that commit or punch pages,
and who reads a block (see :mod:`shmexec.memory.leases`). Only the arena's owner calls
this module, one call at a time; no byte of the arena is read or written.

Three ideas:

* **The top.** ``[top, limit)`` was never handed out, or was given back to the system. It
  lies in no bin and is taken only when no free extent below fits, so warm memory always
  comes before pages that would have to be faulted in.
* **Segregated bins**, four per power of two as in TLSF (Masmano et al., ECRTS 2004), with
  a bitmask of those that hold something. A bin is a dict used as an ordered set: its
  newest extent is found, and any extent is removed, in constant time.
* **The lower part is used at a split**, and a freed block merges with its neighbours at
  once. A size that is freed and asked for again gets the same offset.
"""

from __future__ import annotations

import mmap
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ALIGNMENT = 64
"""Offsets and sizes of blocks are multiples of this: a cache line, in bytes."""

CHUNK = max(4096, mmap.PAGESIZE)
"""Bytes per entry in the record of committed memory: a page, so that what a block's
neighbours left behind can be given back up to its ends."""

# Extents of the request's own bin may be too small. So many of the newest are looked at
# before a larger bin, which is sure to fit, is split.
_NEAR_FITS = 8


def _bin_of(nbytes: int) -> int:
    """Return the bin of an extent: four per power of two, exact below eight lines."""
    lines = nbytes // ALIGNMENT
    shift = lines.bit_length() - 3
    return (shift << 2) + (lines >> shift) if shift > 0 else lines


class BlockAllocator:
    """Hands out 64-byte aligned blocks of an arena and takes them back.

    Args:
        size: Length of the arena in bytes. A tail shorter than `ALIGNMENT` is not used.

    Raises:
        ValueError: If the arena has no room for a single block.

    Example:
        >>> blocks = BlockAllocator(1 << 20)
        >>> first, second = blocks.allocate(1000), blocks.allocate(5)
        >>> first, second, blocks.used
        (0, 1024, 1088)
        >>> blocks.free(first)
        1024
        >>> blocks.allocate(1000)
        0
    """

    def __init__(self, size: int) -> None:
        if size < ALIGNMENT:
            msg = f"an arena of {size} bytes is too small: {ALIGNMENT} is the least"
            raise ValueError(msg)
        self.size = size
        self._limit = size // ALIGNMENT * ALIGNMENT
        self._top = 0
        self._used = 0
        self._live: dict[int, int] = {}
        # The free extents below the top, by start and by end, and again in their bins.
        self._free: dict[int, int] = {}
        self._start_by_end: dict[int, int] = {}
        self._bins: list[dict[int, int]] = [{} for _ in range(_bin_of(size) + 1)]
        self._filled = 0
        # A byte for each page, as far up as blocks ever were: the arena may be far
        # longer than what is used of it.
        self._chunks = bytearray()
        self._all_chunks = -(-size // CHUNK)
        self._chunk_count = 0
        self.blocks_recycled = 0
        """Blocks handed out that lay on committed memory."""
        self.blocks_faulted = 0
        """Blocks handed out that needed new pages, in part at least."""

    @property
    def used(self) -> int:
        """Bytes in live blocks, rounding included."""
        return self._used

    @property
    def live_blocks(self) -> int:
        """How many blocks are handed out."""
        return len(self._live)

    @property
    def high_water(self) -> int:
        """End of the part that blocks use or used; what follows was never touched."""
        return self._top

    @property
    def committed(self) -> int:
        """Bytes of the arena that have memory behind them."""
        # The arena's last chunk may be a short one.
        nbytes = self._chunk_count * CHUNK
        if len(self._chunks) == self._all_chunks and self._chunks[-1]:
            nbytes -= self._all_chunks * CHUNK - self.size
        return nbytes

    @property
    def idle(self) -> int:
        """Committed bytes that no live block needs: what `idle_runs` would list."""
        return sum(length for _, length in self.idle_runs())

    def allocate(self, nbytes: int) -> int | None:
        """Hand out a block.

        Args:
            nbytes: Bytes wanted, rounded up to a multiple of `ALIGNMENT`.

        Returns:
            The block's offset, or ``None`` if no free extent is large enough.

        Raises:
            ValueError: If `nbytes` is not positive.
        """
        if nbytes <= 0:
            msg = f"cannot allocate {nbytes} bytes: a block holds at least one"
            raise ValueError(msg)
        need = (nbytes + ALIGNMENT - 1) & -ALIGNMENT
        offset = self._find(need)
        if offset is None:
            offset = self._take_top(need)
            if offset is None:
                return None
        else:
            length = self._remove(offset)
            if length > need:
                self._insert(offset + need, length - need)
        self._live[offset] = need
        self._used += need
        if self._chunks.find(0, offset // CHUNK, -(-(offset + need) // CHUNK)) < 0:
            self.blocks_recycled += 1
        else:
            self.blocks_faulted += 1
        return offset

    def free(self, offset: int) -> int:
        """Take a block back and merge it with its free neighbours.

        Returns:
            The block's size in bytes, rounding included.

        Raises:
            ValueError: If no live block starts at `offset`; nothing changes then.
        """
        nbytes = self._live.pop(offset, 0)
        if not nbytes:
            raise _unknown_block("free", offset)
        self._used -= nbytes
        start, end = offset, offset + nbytes
        before = self._start_by_end.get(start)
        if before is not None:
            self._remove(before)
            start = before
        if end in self._free:
            end += self._remove(end)
        self._insert(start, end - start)
        return nbytes

    def size_of(self, offset: int) -> int:
        """Return the size of a live block in bytes, rounding included.

        Raises:
            ValueError: If no live block starts at `offset`.
        """
        nbytes = self._live.get(offset)
        if nbytes is None:
            raise _unknown_block("measure", offset)
        return nbytes

    def fresh_runs(self, offset: int, nbytes: int) -> list[tuple[int, int]]:
        """Return what must be committed before a range may be written.

        Returns:
            ``(offset, length)`` runs in ascending order, made of whole chunks except at
            the arena's end, that are not yet committed and overlap the range.

        Raises:
            ValueError: If the range is empty or leaves the arena.
        """
        first, last = self._touched(offset, nbytes)
        if self._chunks.find(0, first, last) < 0:
            return []
        return list(self._runs_of(0, first, last))

    def mark_committed(self, offset: int, nbytes: int) -> None:
        """Note that every chunk which overlaps the range now has memory behind it.

        Raises:
            ValueError: If the range is empty or leaves the arena; nothing changes then.
        """
        first, last = self._touched(offset, nbytes)
        fresh = self._chunks.count(0, first, last)
        if fresh:
            self._chunks[first:last] = b"\x01" * (last - first)
            self._chunk_count += fresh

    def mark_punched(self, offset: int, nbytes: int) -> None:
        """Note that a range's memory went back to the system.

        Only chunks that lie wholly in the range count: of a chunk punched in part, the
        rest still has memory. The range should be one that `idle_runs` listed.

        Raises:
            ValueError: If the range is empty or leaves the arena; nothing changes then.
        """
        self._touched(offset, nbytes)
        first, last = self._whole(offset, offset + nbytes)
        gone = self._chunks.count(1, first, last)
        if gone:
            self._chunks[first:last] = bytes(last - first)
            self._chunk_count -= gone
        self._lower_top(offset, offset + nbytes)

    def idle_runs(self, keep: int = 0) -> list[tuple[int, int]]:
        """Return committed runs that could be punched: no live block shares a chunk.

        Args:
            keep: Idle bytes to leave out, so that the next calls find warm memory. They
                are kept where allocation looks first: in the smallest extents, and at
                the lower end of an extent that is kept in part.

        Returns:
            ``(offset, length)`` runs, those of the largest extents first, made of whole
            chunks except at the arena's end.
        """
        extents = list(self._free.items())
        if self._top not in self._start_by_end:
            extents.append((self._top, 0))
        extents.sort(key=lambda extent: extent[1])
        runs: list[tuple[int, int]] = []
        for start, length in extents:
            end = start + length
            # Nothing is live above the top, so a chunk that reaches across it is idle.
            first, last = self._whole(start, self.size if end == self._top else end)
            for offset, nbytes in self._runs_of(1, first, last):
                kept = min(-(-keep // CHUNK) * CHUNK, nbytes)
                keep = max(keep - kept, 0)
                if kept < nbytes:
                    runs.append((offset + kept, nbytes - kept))
        runs.reverse()
        return runs

    def validate(self) -> None:
        """Assert that all records agree. Takes time in proportion to their number."""
        extents = [(start, length, False) for start, length in self._live.items()]
        extents += [(start, length, True) for start, length in self._free.items()]
        position, after_free = 0, False
        for start, length, is_free in sorted(extents):
            assert start == position, f"gap or overlap at {position}..{start}"
            assert length > 0, f"empty extent at {start}"
            assert length % ALIGNMENT == 0, f"unaligned extent at {start}"
            assert not (is_free and after_free), f"free neighbours meet at {start}"
            position, after_free = start + length, is_free
        assert position == self._top <= self._limit, "extents do not end at the top"
        ends = {start + length: start for start, length in self._free.items()}
        assert ends == self._start_by_end, "the index by end disagrees"
        binned = {s: n for extents_ in self._bins for s, n in extents_.items()}
        assert binned == self._free, "the bins and the free extents disagree"
        for index, extents_ in enumerate(self._bins):
            assert all(_bin_of(n) == index for n in extents_.values()), "wrong bin"
            assert bool(extents_) == bool(self._filled >> index & 1), "wrong bitmask"
        assert self._used == sum(self._live.values()), "wrong count of used bytes"
        assert self._chunk_count == self._chunks.count(1), "wrong count of chunks"

    def _find(self, need: int) -> int | None:
        """Return the start of a free extent of at least `need` bytes, if one exists."""
        index = _bin_of(need)
        filled = self._filled >> index
        if not filled:
            return None
        own = self._bins[index]
        if filled & 1:
            for start, length in islice(reversed(own.items()), _NEAR_FITS):
                if length >= need:
                    return start
        larger = filled & ~1
        if larger:
            lowest = (larger & -larger).bit_length() - 1
            return next(reversed(self._bins[index + lowest]))
        # Nothing is left but the top, whose pages cost far more than this search.
        for start, length in reversed(own.items()):
            if length >= need:
                return start
        return None

    def _take_top(self, need: int) -> int | None:
        """Take never-touched space, together with the free extent just below it."""
        start = self._start_by_end.get(self._top, self._top)
        if start + need > self._limit:
            return None
        if start < self._top:
            self._remove(start)
        self._top = start + need
        self._cover(-(-self._top // CHUNK))
        return start

    def _lower_top(self, start: int, end: int) -> None:
        """Make a punched range that reaches the top part of the never-touched space."""
        start = -(-start // ALIGNMENT) * ALIGNMENT
        last = self._start_by_end.get(self._top)
        if last is None or not last <= start < self._top <= end:
            return
        self._remove(last)
        if last < start:
            self._insert(last, start - last)
        self._top = start

    def _insert(self, start: int, length: int) -> None:
        index = _bin_of(length)
        self._free[start] = length
        self._start_by_end[start + length] = start
        self._bins[index][start] = length
        self._filled |= 1 << index

    def _remove(self, start: int) -> int:
        length = self._free.pop(start)
        del self._start_by_end[start + length]
        index = _bin_of(length)
        extents = self._bins[index]
        del extents[start]
        if not extents:
            self._filled ^= 1 << index
        return length

    def _touched(self, offset: int, nbytes: int) -> tuple[int, int]:
        """Return the chunks, first and past the last, that overlap a range."""
        if offset < 0 or nbytes <= 0 or offset + nbytes > self.size:
            msg = (
                f"{nbytes} bytes at offset {offset} are no part of an arena of "
                f"{self.size} bytes: check the block the range was taken from"
            )
            raise ValueError(msg)
        last = -(-(offset + nbytes) // CHUNK)
        self._cover(last)
        return offset // CHUNK, last

    def _cover(self, last: int) -> None:
        """Have a record of all chunks before this one."""
        if last > len(self._chunks):
            self._chunks.extend(bytes(last - len(self._chunks)))

    def _whole(self, start: int, end: int) -> tuple[int, int]:
        """Return the chunks, first and past the last, that lie wholly in a range."""
        last = self._all_chunks if end >= self.size else end // CHUNK
        last = min(last, len(self._chunks))
        first = -(-start // CHUNK)
        return first, max(first, last)

    def _runs_of(self, value: int, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield byte ranges of consecutive chunks that hold `value`."""
        begin = self._chunks.find(value, first, last)
        while begin >= 0:
            end = self._chunks.find(1 - value, begin, last)
            end = last if end < 0 else end
            offset = begin * CHUNK
            yield offset, min(end * CHUNK, self.size) - offset
            begin = self._chunks.find(value, end, last)


def _unknown_block(action: str, offset: int) -> ValueError:
    return ValueError(
        f"cannot {action} the block at offset {offset}: no live block starts there; "
        "it was freed before or belongs to another arena"
    )
