"""``shmexec completion``: what a shell needs to complete the command line."""

from __future__ import annotations

import argparse

from shmexec.cli.output import CommandError, print_error

__all__ = ["SHELLS", "completion"]

SHELLS = ("bash", "zsh", "fish")

_FILES = (".npy", ".py", "FILE", "PATH")
"""What the names of arguments have in them that are files."""


def completion(parser: argparse.ArgumentParser, shell: str) -> int:
    """Print the shell's script, which shtab makes of the parser.

    Args:
        parser: Of all commands.
        shell: One of :data:`SHELLS`.

    Returns:
        The exit code: 0 printed, 2 if shtab is missing.
    """
    try:
        print(_script(parser, shell))
    except CommandError as error:
        print_error("completion", str(error))
        return error.code
    return 0


def _script(parser: argparse.ArgumentParser, shell: str) -> str:
    try:
        import shtab
    except ImportError:
        msg = "it needs shtab: pip install 'shmexec[cli]'"
        raise CommandError(msg) from None
    _mark_files(parser, shtab.FILE)
    return str(shtab.complete(parser, shell))


def _mark_files(parser: argparse.ArgumentParser, files: object) -> None:
    for action in parser._actions:  # noqa: SLF001  (as shtab's own documentation does)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for below in action.choices.values():
                _mark_files(below, files)
        elif any(name in str(action.metavar) for name in _FILES):
            action.complete = files  # type: ignore[attr-defined]
