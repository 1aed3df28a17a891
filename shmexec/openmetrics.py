"""Figures as OpenMetrics text, which Prometheus and its like scrape. Pure.

What is written about which figure stands in a table. A figure is known by the name of
its field; which class has it is nobody's business here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""What a server is to call the text."""

STATES = ("starting", "idle", "busy", "draining")


class Family(NamedTuple):
    """A metric: a line of type and help, and samples with different labels.

    Attributes:
        name: Without the ``_total`` of a counter.
        kind: ``counter`` or ``gauge``.
        text: What it says.
        unit: With which its name ends, empty if it counts things.
        fields: The figures that are its samples, and the labels of each.
    """

    name: str
    kind: str
    text: str
    unit: str
    fields: tuple[tuple[str, Mapping[str, str]], ...]


def _one(field: str, name: str, kind: str, text: str, unit: str = "") -> Family:
    return Family(f"shmexec_{name}", kind, text, unit, ((field, {}),))


OF_POOLS = (
    _one("max_workers", "max_workers", "gauge", "Workers that the pool may have."),
    _one("submitted", "calls_submitted", "counter", "Calls that were submitted."),
    _one("pending", "calls_pending", "gauge", "Calls that wait for a worker."),
    _one("running", "calls_running", "gauge", "Calls that are with workers."),
    Family(
        "shmexec_calls_finished",
        "counter",
        "Calls that are finished, by what became of them.",
        "",
        tuple((each, {"outcome": each}) for each in ("done", "failed", "cancelled")),
    ),
    _one(
        "worker_deaths", "worker_deaths", "counter", "Workers that ended by themselves."
    ),
    _one(
        "workers_replaced",
        "workers_replaced",
        "counter",
        "Workers replaced after a call, for their memory.",
    ),
    _one(
        "workers_killed",
        "workers_killed",
        "counter",
        "Workers killed in a call, for their memory.",
    ),
    _one(
        "bytes_copied_in",
        "copied_in_bytes",
        "counter",
        "Arguments copied into shared memory.",
        "bytes",
    ),
    _one(
        "bytes_copied_out",
        "copied_out_bytes",
        "counter",
        "Results copied into shared memory.",
        "bytes",
    ),
    _one(
        "bytes_by_reference",
        "by_reference_bytes",
        "counter",
        "Arguments passed without a copy.",
        "bytes",
    ),
    _one(
        "blocks_recycled",
        "blocks_recycled",
        "counter",
        "Blocks of shared memory that were in use before.",
    ),
    _one(
        "blocks_faulted",
        "blocks_faulted",
        "counter",
        "Blocks of shared memory that took new memory.",
    ),
    _one(
        "shared_memory_used",
        "shared_memory_used_bytes",
        "gauge",
        "Shared memory in use.",
        "bytes",
    ),
    _one(
        "shared_memory_budget",
        "shared_memory_budget_bytes",
        "gauge",
        "Shared memory that may be used.",
        "bytes",
    ),
    _one(
        "memory_free",
        "memory_free_bytes",
        "gauge",
        "Memory that the machine, or the control group, has left.",
        "bytes",
    ),
    _one(
        "min_free_memory",
        "min_free_memory_bytes",
        "gauge",
        "Memory that shall be left.",
        "bytes",
    ),
    _one(
        "paused",
        "paused",
        "gauge",
        "1 while calls begin one at a time, for lack of memory.",
    ),
    _one("pauses", "pauses", "counter", "How often that came about."),
)

OF_WORKERS = (
    _one("calls", "worker_calls", "counter", "Calls that the worker has finished."),
    _one(
        "private_bytes",
        "worker_private_bytes",
        "gauge",
        "Private memory of the worker.",
        "bytes",
    ),
    _one(
        "peak_bytes",
        "worker_peak_bytes",
        "gauge",
        "The most private memory that it was seen to have.",
        "bytes",
    ),
    _one(
        "growth_bytes",
        "worker_growth_bytes",
        "gauge",
        "Private memory that it has more than after its start.",
        "bytes",
    ),
    _one(
        "arena_bytes",
        "worker_arena_bytes",
        "gauge",
        "Its results that this program holds.",
        "bytes",
    ),
)


class _Sample(NamedTuple):
    labels: Mapping[str, str]
    value: int


def render(pools: Sequence[Any]) -> str:
    """The text for some pools.

    Args:
        pools: For each a record with the fields of :data:`OF_POOLS`, and ``name``,
            ``native`` and ``workers``: records with those of :data:`OF_WORKERS`, and
            ``pid`` and ``state``.
    """
    named = list(zip(_distinct([pool.name for pool in pools]), pools, strict=True))
    lines = [
        "# TYPE shmexec_pool info",
        "# HELP shmexec_pool How the pool was made.",
    ]
    for name, pool in named:
        labels = {"pool": name, "native": "true" if pool.native else "false"}
        lines.append(f"shmexec_pool_info{_labels(labels)} 1")
    states = Family("shmexec_workers", "gauge", "Workers, by state.", "", ())
    lines += _family(states, _states(named))
    for family in OF_POOLS:
        samples = (
            _Sample({"pool": name, **labels}, getattr(pool, field))
            for name, pool in named
            for field, labels in family.fields
        )
        lines += _family(family, samples)
    for family in OF_WORKERS:
        lines += _family(family, _of_workers(named, family.fields[0][0]))
    return "\n".join([*lines, "# EOF", ""])


def _distinct(names: Iterable[str]) -> list[str]:
    """Names of which those that were there before have numbers: no label occurs twice."""
    found: list[str] = []
    for name in names:
        new, number = name, 1
        while new in found:
            number += 1
            new = f"{name} ({number})"
        found.append(new)
    return found


def _states(named: Iterable[tuple[str, Any]]) -> Iterator[_Sample]:
    for name, pool in named:
        states = [worker.state for worker in pool.workers]
        for state in STATES:
            yield _Sample({"pool": name, "state": state}, states.count(state))


def _of_workers(named: Iterable[tuple[str, Any]], field: str) -> Iterator[_Sample]:
    for name, pool in named:
        for worker in pool.workers:
            value = getattr(worker, field)
            if worker.pid is not None and value is not None:
                yield _Sample({"pool": name, "pid": str(worker.pid)}, value)


def _family(family: Family, samples: Iterable[_Sample]) -> Iterator[str]:
    yield f"# TYPE {family.name} {family.kind}"
    if family.unit:
        yield f"# UNIT {family.name} {family.unit}"
    yield f"# HELP {family.name} {_escaped(family.text)}"
    suffix = "_total" if family.kind == "counter" else ""
    for labels, value in samples:
        yield f"{family.name}{suffix}{_labels(labels)} {value:d}"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
