"""``shmexec doctor``: what this machine offers to a pool, and what to change."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from shmexec.cli.examining.findings import Finding
from shmexec.cli.examining.machine import machine
from shmexec.cli.examining.software import software
from shmexec.cli.examining.trial import try_pool

__all__ = ["doctor"]

_MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}
_NAMES = 18
"""Columns for the names of checks."""

_WIDEST = 100


def doctor(options: argparse.Namespace) -> int:
    """Look at this machine, start a small pool, and say what was found.

    Args:
        options: What the parser returned.

    Returns:
        The exit code: 0 if a pool works, else 1.
    """
    findings = [*software(), *machine(), try_pool()]
    works = all(each.level != "bad" for each in findings)
    if options.json:
        checks = [asdict(each) for each in findings]
        print(json.dumps({"version": 1, "works": works, "checks": checks}, indent=2))
    else:
        width = min(_WIDEST, shutil.get_terminal_size().columns)
        print("\n".join(_lines(findings, width)))
    return 0 if works else 1


def _lines(findings: Sequence[Finding], width: int) -> Iterator[str]:
    for each in findings:
        head = f"{_MARKS[each.level]}  {each.name:{_NAMES}} "
        yield from _wrapped(head, each.value, width)
    advice = [each for each in findings if each.advice]
    yield ""
    if not advice:
        yield "Nothing to change."
        return
    yield "What to change:"
    for number, each in enumerate(advice, 1):
        yield from _wrapped(f"{number:2}. {each.name}: ", each.advice, width, 4)


def _wrapped(head: str, text: str, width: int, indent: int | None = None) -> list[str]:
    # An error may have several lines.
    one = head + " ".join(text.split())
    below = " " * (len(head) if indent is None else indent)
    return textwrap.wrap(one, max(40, width), subsequent_indent=below)
