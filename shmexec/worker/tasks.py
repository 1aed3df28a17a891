"""What the parent has workers do beside plain calls: chunks of a map, batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from shmexec.worker.loop import awaited
from shmexec.worker.notes import note_read_only


def run_chunk(fn: Callable[..., Any], items: Sequence[Any], star: bool) -> Any:
    """Call ``fn`` for each item, which is a tuple of arguments if ``star``.

    Returns:
        The results, or those before an error; that error or None; the seconds it took.
    """
    from shmexec.worker.failures import pickle_error

    results: list[Any] = []
    failed = None
    item: Any = ()
    started = perf_counter()
    try:
        # Not map(): a StopIteration of fn's would end it without a word.
        if star:
            for item in items:
                results.append(awaited(fn(*item)))  # noqa: PERF401  (an error leaves the rest)
        else:
            for item in items:
                results.append(awaited(fn(item)))
    except (Exception, SystemExit) as error:  # noqa: BLE001  (part of the answer)
        note_read_only(error, fn, item if star else (item,), {})
        failed = bytes(pickle_error(error, skip=1).payload)
    return results, failed, perf_counter() - started


class Blank(NamedTuple):
    """An array that the worker makes, to be filled and sent back."""

    shape: tuple[int, ...]
    dtype: np.dtype


def run_batch(
    fn: Callable[..., Any],
    parts: tuple[Any, ...],
    rows: int,
    target: np.ndarray | Blank | None,
    passes_out: bool = False,
) -> Any:
    """Call ``fn`` on one batch; its result goes into ``target`` or, if none, back.

    Args:
        fn: The user's function.
        parts: Its rows of each input.
        rows: How many.
        target: Where the result goes; None while that is not known.
        passes_out: Call it with ``out=target``, if there is one.

    Raises:
        ValueError: If the result does not have one row per row of the batch, or not the
            shape and dtype of the target.
    """
    place = np.empty(*target) if isinstance(target, Blank) else target
    given = {"out": place} if passes_out and place is not None else {}
    try:
        result = awaited(fn(*parts, **given))
    except ValueError as error:
        note_read_only(error, fn, parts, given)
        raise
    if result is None and given:
        msg = "the function was called with out= and returned None: return out"
        raise ValueError(msg)
    if result is not place:
        result = np.asanyarray(result)
        _check_rows(result, rows)
    if place is None or isinstance(target, Blank):
        return result
    if result is not place:
        check_like(result, place)
        place[...] = result
    if isinstance(place, np.memmap):
        place.flush()
    return None


def _check_rows(result: np.ndarray, rows: int) -> None:
    got = result.shape[0] if result.ndim else None
    if got != rows:
        what = "a scalar" if got is None else f"{got} rows"
        msg = f"the function returned {what} for a batch of {rows} rows"
        raise ValueError(msg)


def check_like(result: np.ndarray, place: np.ndarray) -> None:
    """Raise ValueError if a result is not what its place is made for."""
    if result.shape != place.shape or result.dtype != place.dtype:
        msg = (
            f"the function returned {result.dtype} of shape {result.shape}, but the "
            f"output is {place.dtype} of shape (rows, *{place.shape[1:]})"
        )
        raise ValueError(msg)
