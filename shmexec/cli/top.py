"""``shmexec top``: what the pools of this user on this machine do."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from typing import TYPE_CHECKING

from shmexec.cli.output import CommandError, print_error
from shmexec.cli.watching.finding import CannotLook, Lookout
from shmexec.cli.watching.gauging import Gauge
from shmexec.cli.watching.records import Program, to_json

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["top"]

_BETWEEN = 0.2
"""Seconds between the two looks of which CPU time is told, where there is one picture."""

_WIDTH = 120
"""Columns where no terminal tells."""


def top(options: argparse.Namespace) -> int:
    """Show the pools, live or once.

    Args:
        options: What the parser returned.

    Returns:
        The exit code: 0 shown, also if there are none, 1 if this system does not tell,
        2 if rich is missing.
    """
    try:
        if options.json:
            print(json.dumps(to_json(_look_twice()), indent=2))
        elif options.once or not _is_terminal():
            _print_once()
        else:
            return _watch(options.interval)
    except CannotLook as error:
        print_error("top", str(error))
        return 1
    except CommandError as error:
        print_error("top", str(error))
        return error.code
    except BrokenPipeError:  # as by `| head`
        sys.stderr.close()
    return 0


def _look_twice() -> list[Program]:
    gauge = Gauge()
    with Lookout() as lookout:
        gauge.programs(lookout.look())
        # Nobody wakes this: it is the time of which CPU per cent are told.
        threading.Event().wait(_BETWEEN)
        return gauge.programs(lookout.look())


def _is_terminal() -> bool:
    if not sys.stdout.isatty():
        return False
    console = _console()
    return bool(console.is_terminal and not console.is_dumb_terminal)


def _console(width: int | None = None) -> Console:
    try:
        from rich.console import Console
    except ImportError:
        msg = "tables need rich: pip install 'shmexec[cli]'; --json works without"
        raise CommandError(msg) from None
    return Console(width=width, highlight=False)


def _print_once() -> None:
    console = _console()
    if not console.is_terminal:
        console = _console(_WIDTH)
    from shmexec.cli.watching.display import overview

    console.print(overview(_look_twice(), console.width))


def _watch(interval: float) -> int:
    console = _console()
    from shmexec.cli.watching.display import heading, overview
    from shmexec.cli.watching.screen import Ended, Screen

    gauge = Gauge()
    with Lookout() as lookout:
        # Before the screen changes: if this fails, it is to be read.
        programs = gauge.programs(lookout.look())
        pause = min(_BETWEEN, interval)
        try:
            with Screen(console) as screen:
                while True:
                    screen.draw(
                        heading(programs, interval, keys=screen.takes_keys),
                        overview(programs, console.width),
                    )
                    screen.wait(pause)
                    pause = interval
                    programs = gauge.programs(lookout.look())
        except Ended as end:
            return 128 + end.signal if end.signal else 0
