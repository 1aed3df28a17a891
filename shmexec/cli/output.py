"""What the commands print: error lines, figures, tables, a progress bar."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["CommandError", "one_line", "print_error", "print_table", "progress_bar"]

_LONGEST = 600


class CommandError(Exception):
    """Ends a command with one line on stderr.

    Attributes:
        code: Exit code of the process.
        details: More lines for ``--traceback``.
    """

    def __init__(self, message: str, *, code: int = 2, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


def one_line(text: str) -> str:
    """The text without line breaks, cut where nobody would read on."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def print_error(command: str, text: str) -> None:
    """Write the one line that tells why the command failed."""
    print(f"shmexec {command}: error: {one_line(text)}", file=sys.stderr)


@contextmanager
def progress_bar(
    rows: int, wanted: bool | None
) -> Iterator[Callable[[int], object] | None]:
    """A bar with rows per second on stderr.

    Args:
        rows: How many there are in all.
        wanted: None for "if stderr is a terminal and tqdm is installed".

    Yields:
        What to call with the rows just done, or None without a bar.

    Raises:
        CommandError: A bar was asked for, and tqdm is not installed.
    """
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        if wanted:
            msg = "--progress needs tqdm: pip install 'shmexec[cli]'"
            raise CommandError(msg) from None
        yield None
        return
    # tqdm's own lock is shared between processes, through a named semaphore that must
    # be cleaned up; its monitor is a thread. One bar in one process needs neither.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    with tqdm(total=rows, unit="row", unit_scale=True, file=sys.stderr) as bar:
        yield bar.update


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, the first and last column left-aligned."""
    left = {0, len(head) - 1}
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _print_plain_table(title, head, rows, left)
        return
    console: Any = Console()
    if not console.is_terminal:
        console = Console(width=120)
    table = Table(title=title, title_justify="left")
    for column, name in enumerate(head):
        table.add_column(name, justify="left" if column in left else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _print_plain_table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], left: set[int]
) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print(title)
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
