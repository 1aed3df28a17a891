"""Figures as OpenMetrics text, read by the parser of Prometheus' own client."""

from __future__ import annotations

import dataclasses
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import shmexec
from shmexec import openmetrics
from shmexec.figures import Stats, WorkerStats

FIGURES = {
    field.name: index
    for index, field in enumerate(dataclasses.fields(Stats), 100)
    if field.type == "int"
}


def made(name="pool", workers=(), **other):
    return Stats(
        **{**FIGURES, "name": name, "workers": workers, "native": True, **other}
    )


def read(text):
    assert text.endswith("# EOF\n")
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families, name, **labels):
    [found] = [
        sample.value
        for sample in families[name].samples
        if labels.items() <= sample.labels.items()
    ]
    return found


def test_every_figure_is_in_it_once():
    text = made().to_openmetrics()
    families = read(text)
    told = [field for family in openmetrics.OF_POOLS for field, _ in family.fields]
    known = {field.name for field in dataclasses.fields(Stats)}
    assert sorted(told) == sorted(known - {"name", "workers", "native"})
    of_worker = {field.name for field in dataclasses.fields(WorkerStats)}
    told = [field for family in openmetrics.OF_WORKERS for field, _ in family.fields]
    assert sorted(told) == sorted(of_worker - {"pid", "state"})
    for name, number in FIGURES.items():
        assert text.count(f" {number}\n") == 1, name
    assert value(families, "shmexec_paused") == 0


def test_types_and_units():
    families = read(made(workers=(worker(7),)).to_openmetrics())
    for name, family in families.items():
        assert family.documentation
        for sample in family.samples:
            counted = sample.name.endswith("_total")
            assert counted == (family.type == "counter"), name
        if name.endswith("_bytes"):
            assert family.unit == "bytes"
        assert family.samples, name
    assert families["shmexec_copied_in_bytes"].type == "counter"
    assert value(families, "shmexec_pool", native="true") == 1


def worker(pid, state="idle", **other):
    figures = {"calls": 3, "private_bytes": 4, "arena_bytes": 5}
    figures |= {"peak_bytes": 6, "growth_bytes": 7}
    return WorkerStats(**{"pid": pid, "state": state, **figures, **other})


def test_workers():
    workers = (
        worker(1),
        worker(2, "busy", private_bytes=None),
        worker(None, "starting"),
    )
    families = read(made(workers=workers).to_openmetrics())
    states = ("starting", "idle", "busy", "draining")
    counts = [value(families, "shmexec_workers", state=state) for state in states]
    assert counts == [1, 1, 1, 0]
    assert value(families, "shmexec_worker_calls", pid="2") == 3
    private = families["shmexec_worker_private_bytes"].samples
    assert [sample.labels["pid"] for sample in private] == ["1"]


@pytest.mark.parametrize(
    "name", ['a "b"', "back\\slash", "two\nlines", "\\n", "é😀", ""]
)
def test_names_that_are_to_be_escaped(name):
    families = read(made(name).to_openmetrics())
    assert value(families, "shmexec_calls_pending", pool=name) == FIGURES["pending"]


def test_several_pools_are_one_text():
    text = made("a").to_openmetrics(made("a"), made("b"), made("a (2)", submitted=0))
    families = read(text)
    samples = families["shmexec_calls_submitted"].samples
    assert [sample.labels["pool"] for sample in samples] == [
        "a",
        "a (2)",
        "b",
        "a (2) (2)",
    ]
    assert text.count("# TYPE shmexec_calls_submitted counter") == 1


def test_records_cannot_be_changed():
    stats = made()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.done = 5


def test_of_a_pool_served_as_the_readme_says():
    executor = shmexec.Executor(in_process=True, name="here")
    executor.submit(abs, -1).result()

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", openmetrics.CONTENT_TYPE)
            self.end_headers()
            self.wfile.write(executor.stats().to_openmetrics().encode())

        def log_message(self, *_args):
            pass

    with executor, HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url) as answer:
            families = read(answer.read().decode())
        thread.join()
    assert value(families, "shmexec_calls_finished", outcome="done") == 1
