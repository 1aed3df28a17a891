"""The commands that only look: ``shmexec top``, ``doctor`` and ``completion``.

Their parsers; each command is a module of its own, imported when it is asked for.
"""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_parsers", "run"]

_Commands = Any
"""What ``add_subparsers`` returns, which has no public name."""

_TOP_DESCRIPTION = """\
Shows live what every shmexec pool of this user on this machine does: its program, its
workers with their current calls, CPU and memory, the queue, failures and restarts. Keys:
q quits, arrows scroll. Without a terminal it prints one table.

Programs are found by sockets that their pools listen on, and asked; one that is stopped
or busy is shown with what the system says of it. Only processes of this user are asked,
and answer. Pools in other containers are not seen, nor those of programs started with
SHMEXEC_VISIBLE=0, nor executors that have had no call yet. Linux only.
"""

_TOP_EXAMPLES = """\
examples:
  shmexec top
  shmexec top --interval 5
  shmexec top --once
  shmexec top --json | jq '.programs[].pools[] | {name, pending, failed}'

in the table:
  FOR      since when the call, or the state, lasts
  CPU %    of one CPU, since the last look
  PRIVATE  memory of the worker's own; SHARED: shared memory that it has touched

exit codes: 0 shown, 1 this system does not tell, 2 bad arguments, 143 terminated
"""

_DOCTOR_DESCRIPTION = """\
Looks at what pools depend on (CPUs, memory, shared memory, the native part, start
methods, BLAS threads, limits, extras), starts a pool of one worker, and says in plain
words what was found and what to change.
"""

_DOCTOR_EXAMPLES = """\
examples:
  shmexec doctor
  shmexec doctor --json | jq '.checks[] | select(.level != "ok") | .advice'
  shmexec doctor > /dev/null && echo "a pool works here"

exit codes: 0 a pool works, 1 it does not, 2 bad arguments
"""

_COMPLETION_EXAMPLES = """\
examples:
  eval "$(shmexec completion bash)"                    # in ~/.bashrc
  shmexec completion bash > ~/.local/share/bash-completion/completions/shmexec
  shmexec completion zsh > ~/.zfunc/_shmexec           # with fpath+=(~/.zfunc) before compinit
  shmexec completion fish > ~/.config/fish/completions/shmexec.fish

exit codes: 0 printed, 2 bad arguments, or shtab is missing
"""


def add_parsers(commands: _Commands) -> None:
    """Add theirs to the others."""
    _add_top(commands)
    _add_doctor(commands)
    _add_completion(commands)


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run one of them.

    Args:
        options: What the parser returned.
        parser: Of all commands.

    Returns:
        The exit code.
    """
    if options.command == "top":
        from shmexec.cli.top import top

        return top(options)
    if options.command == "doctor":
        from shmexec.cli.doctor import doctor

        return doctor(options)
    from shmexec.cli.completion import completion

    return completion(parser, options.shell)


def _add_top(commands: _Commands) -> None:
    top = commands.add_parser(
        "top",
        help="what the pools of this user do now",
        description=_TOP_DESCRIPTION,
        epilog=_TOP_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--interval",
        type=_interval,
        default=1.0,
        metavar="SECONDS",
        help="time between two looks, at least 0.1 (default: 1)",
    )
    top.add_argument("--once", action="store_true", help="print one table and exit")
    top.add_argument("--json", action="store_true", help="the same once, for scripts")


def _add_doctor(commands: _Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what this machine offers to a pool, and what to change",
        description=_DOCTOR_DESCRIPTION,
        epilog=_DOCTOR_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--json", action="store_true", help="the same for scripts")


def _add_completion(commands: _Commands) -> None:
    completion = commands.add_parser(
        "completion",
        help="have a shell complete the command line",
        description="Prints what the shell needs, to be run by it or kept in a file.",
        epilog=_COMPLETION_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="which")


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 86400:
        msg = f"must be from 0.1 to 86400 seconds, not {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value
