"""What to change, by the figures of a profile. Pure: each rule is one function.

A rule says nothing unless what it is about took a good part of the time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shmexec.limits import amount
from shmexec.profiling.summary import Summary, seconds, worker_count
from shmexec.profiling.table import Table
from shmexec.runtime.tape import Outcome

MUCH = 16 << 20
"""Bytes that are worth a word."""

TINY = 200e-6
"""Seconds of a call that takes less than what sending it costs, more or less."""

WORTH = 1e-3
"""Seconds that a call should take, for that to be next to nothing."""

MANY = 100
"""Calls of a function that are worth a word for being short."""


def advise(table: Table, found: Summary) -> tuple[str, ...]:
    """What to change, if anything."""
    rules = (_failures, _threads, _again, _results, _tiny, _start, _workers, _tail)
    return tuple(text for rule in rules for text in rule(table, found))


def _failures(_: Table, found: Summary) -> Iterator[str]:
    died = found.outcomes.get(Outcome.WORKER_DIED.text, 0)
    if died:
        yield (
            f"{died:,} calls ended with their worker, which had to be replaced: "
            "str() of such a call's exception says what killed it"
        )


def _threads(table: Table, found: Summary) -> Iterator[str]:
    facts = table.facts
    workers = found.workers
    if facts.threads * workers > facts.cpus and facts.threads > 1:
        fitting = max(1, facts.cpus // workers)
        yield (
            f"{workers} workers with {facts.threads} BLAS threads each share "
            f"{facts.cpus} CPUs: they hinder each other. Leave threads_per_worker out, "
            f"or set it to {fitting}"
        )


def _again(table: Table, found: Summary) -> Iterator[str]:
    if found.copied_again < max(MUCH, 0.2 * found.copied_in):
        return
    name, calls = _most(table, table.again)
    yield (
        f"{amount(found.copied_again)} of the {amount(found.copied_in)} that were "
        f"copied for calls came from arrays that earlier calls were given, too "
        f"({calls:,} calls of {name}): if they do not change, pass shmexec.share(x) "
        "instead, which is copied once"
    )


def _results(table: Table, found: Summary) -> Iterator[str]:
    if found.placing < 0.1 * found.running or found.copied_out < MUCH:
        return
    name, _ = _most(table, table.copied_out)
    text = (
        f"workers copied {amount(found.copied_out)} of results for "
        f"{seconds(found.placing)}, most of it for {name}: "
    )
    if not table.facts.native:
        yield text + "with the native part they need no copy (see `shmexec.stats()`)"
    else:
        yield text + (
            "what a call makes, and keeps no reference to, needs no copy; or return "
            "less, or have map_batches(out=) written to"
        )


def _tiny(table: Table, found: Summary) -> Iterator[str]:
    if found.busy > 0.6:
        return
    for each in found.functions:
        if each.calls >= MANY and each.median < TINY and each.running:
            size = max(2, round(WORTH / max(each.median, 1e-6)))
            yield (
                f"{each.calls:,} calls of {each.name} ran {seconds(each.median)} each, "
                "which is less than what sending a call costs: do more in each, or use "
                f"map(chunksize={min(size, 1000)}) or map_batches"
            )
            return


def _start(table: Table, found: Summary) -> Iterator[str]:
    sent = table.sent[np.isfinite(table.sent)]
    if not len(sent) or any(pool.up for pool in table.facts.pools):
        return
    wait = float(sent.min() - table.queued[np.isfinite(table.sent)].min())
    if wait > 0.2 * found.seconds:
        yield (
            f"{seconds(wait)} of {seconds(found.seconds)} went until the first worker "
            "was up: keep one executor for all, or start its workers early by "
            "ex.broadcast(int)"
        )


def _workers(table: Table, found: Summary) -> Iterator[str]:
    facts, workers = table.facts, found.workers
    own = facts.pools[0] if facts.pools else None
    if own is None or not found.seconds:
        return
    spare = facts.cpus - workers * facts.threads
    if found.busy > 0.8 and found.queue > 0.5:
        if spare > 0 and workers >= own.max_workers:
            yield (
                f"workers were busy {found.busy:.0%} of the time while calls waited, "
                f"and {spare} of {facts.cpus} CPUs had none: more workers would help"
            )
        return
    if found.busy > 0.5 or len(table) < 2 * workers or workers < 2:
        return
    yield from _idle(table, found)


def _idle(table: Table, found: Summary) -> Iterator[str]:
    idle = f"workers were idle {1 - found.busy:.0%} of the time: "
    if found.packing > 0.5 * found.seconds:
        how = (
            "share arrays, or make them in the call"
            if found.copied_in > MUCH
            else "pass less, or pass large data as arrays"
        )
        yield (
            f"{idle}this process took {seconds(found.packing)} of "
            f"{seconds(found.seconds)} to pickle and copy arguments: {how}"
        )
        return
    ran = table.ran
    overlap = np.maximum.accumulate(table.replied[ran])[:-1] > table.queued[ran][1:]
    if len(overlap) and overlap.mean() < 0.05:
        yield (
            f"{idle}each call was submitted after the one before was done. Submit all "
            "of them before the first result() is asked for, or use map"
        )
    elif found.queue < 0.2 and found.returning < found.running:
        text = f"{idle}there was too little to do at a time"
        if len(table.facts.pools) == 1:
            needed = max(1, round(found.busy * found.workers))
            text += f". {needed} of {found.workers} would have been enough"
        yield text


def _tail(table: Table, found: Summary) -> Iterator[str]:
    ran = table.ran
    workers = worker_count(table)
    if workers < 2 or ran.sum() < 2 * workers or found.queue < 0.3:
        return
    lasts = [table.ended[ran & (table.worker == w)] for w in range(len(table.workers))]
    ends = sorted(float(each.max()) for each in lasts if len(each))[-workers:]
    if len(ends) < workers:
        return
    tail = ends[-1] - ends[0]
    if tail > 0.15 * found.seconds:
        yield (
            f"in the last {seconds(tail)} some workers had nothing left to do while "
            "others ran long calls: submit those first, or make them smaller"
        )


def _most(table: Table, column: np.ndarray) -> tuple[str, int]:
    """The function that has most of it, and how many of its calls have some."""
    totals = np.bincount(table.name, column, len(table.names))
    index = int(totals.argmax())
    return table.names[index], int((column[table.name == index] > 0).sum())
