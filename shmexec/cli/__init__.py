"""The command line: ``shmexec run``, ``shmexec serve``, ``shmexec demo`` and others.

Only the parser lives here; each command is a module of its own, imported when it is
asked for, since workers import this package to reach :mod:`shmexec.cli.target`.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, NoReturn

from shmexec import __version__
from shmexec.cli import looking
from shmexec.options import (
    WORKERS_AT_MOST,
    byte_count,
    default_workers,
    positive_int,
)

if TYPE_CHECKING:
    from typing_extensions import override
else:

    def override(method: object) -> object:
        """Stand in for ``typing.override``, which Python 3.11 lacks."""
        return method


__all__ = ["main"]

_EXAMPLES = """\
examples:
  shmexec demo
      serial, one process per call and the pool side by side, checked
  shmexec run model.py:predict input.npy -o output.npy
      output.npy[i] = predict(input.npy[i]), batch by batch, on all CPUs
  shmexec run model.py:predict input.npy -o output.npy \\
      --batch-size 256 --workers 4 --timeout 60
  shmexec top
      what the pools of this user do now, live
  shmexec doctor
      whether a pool works here, and what to change
  shmexec serve model.py
      the script's functions for programs in other languages, by JSON-RPC
  shmexec bench --quick
      beside one process per call and what else is installed
"""

_RUN_DESCRIPTION = """\
Batch inference over a .npy file, which may be larger than memory: both files are
memory-mapped. The function gets a read-only array of at most --batch-size rows and
returns an array with as many. Each worker runs the script once, so load the model at
its top level. OUTPUT appears only when all of it is there.
"""

_RUN_EXAMPLES = """\
examples:
  shmexec run model.py:predict input.npy -o output.npy
  shmexec run model.py:predict input.npy -o output.npy \\
      --batch-size 256 --workers 4 --timeout 60
  shmexec run model.py:Net.predict input.npy -o output.npy --traceback

a script:
  import numpy as np
  weights = np.load("weights.npy")       # once in each worker
  def predict(batch):                    # (rows, ...) in, (rows, ...) out
      return np.tanh(batch @ weights)

exit codes: 0 done, 1 a batch failed, 2 bad arguments, 130 Ctrl-C, 143 terminated
"""

_SERVE_DESCRIPTION = """\
The functions of a script for programs in other languages: JSON-RPC 2.0, one message a
line, on stdin and stdout, or on a Unix socket. Each worker runs the script once, before
the first request is read. What the script prints goes to stderr.
"""

_SERVE_EXAMPLES = """\
methods and their params:
  call       {function, args: [], kwargs: {}, timeout, arrays: {npy: FOLDER}}
  stream     the same and buffersize; each item is a notification "stream.item"
             {id, item}, then comes the reply {items: how many}
  cancel     {id} of a call or stream; it is stopped if it runs
  functions, health, stats, shutdown

arrays, both ways:
  {"__ndarray__": BASE64, "dtype": "<f4", "shape": [2, 3]}
  {"__ndarray__": "/path/of/file.npy"}

errors:
  -32700 to -32603 as in JSON-RPC 2.0; -32000 the function raised, -32001 its worker
  died, -32002 time-out, -32003 cancelled, -32004 the result is no JSON, -32005 no
  shared memory, -32006 no worker can be started, -32007 the server is ending

examples:
  echo '{"jsonrpc": "2.0", "id": 1, "method": "call",
         "params": {"function": "predict", "args": [[1, 2]]}}' | tr -d '\\n' |
      shmexec serve model.py
  shmexec serve model.py --workers 2 --socket /run/user/1000/model.sock --timeout 60

exit codes: 0 end of input or shutdown, 1 the script cannot be loaded or replies not be
written, 2 bad arguments, 130 Ctrl-C, 143 terminated
"""

_DEMO_DESCRIPTION = """\
Makes a small model and data, runs them serially, in one process per call and through
the pool, checks that all agree and prints what was measured.
"""


_BENCH_DESCRIPTION = """\
Compares this pool with one process per call and with the packages for it that are
installed: concurrent.futures, multiprocessing, loky, joblib, mpire, Pebble, Ray, Dask.
Each measurement is a process of its own; they take turns, and each result is checked.
"limit" is what the machine itself takes for it, measured in the same run. Some minutes.
"""

_BENCH_EXAMPLES = """\
examples:
  shmexec bench
  shmexec bench --quick
      in about a minute: small arrays, without what takes long to start
  shmexec bench --peers ppe-fork,joblib --cases both-64MB,mlp --repeats 5
  shmexec bench --plot comparison.png --json figures.json
  shmexec bench --list
      the peers and cases that there are

exit codes: 0 done, 1 a wrong result or a failure, 2 bad arguments, 130 Ctrl-C, with what
was measured
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    @override
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments, without the program's name. Default: ``sys.argv[1:]``.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad arguments, 128 + the signal's number if
        interrupted.
    """
    parser = _parser()
    try:
        options = parser.parse_args(argv)
        if hasattr(options, "workers"):
            # A model fills memory: what is served is loaded once, unless told otherwise.
            otherwise = 1 if options.command == "serve" else None
            options.workers = _workers(parser, options.workers, otherwise)
    except SystemExit as stop:
        return int(stop.code or 0)
    return _run(options, parser)


def _run(options: argparse.Namespace, parser: _Parser) -> int:
    if options.command == "run":
        from shmexec.cli.run import run

        return run(options)
    if options.command == "serve":
        from shmexec.cli.serve import serve

        return serve(options)
    if options.command == "demo":
        from shmexec.cli.demo import demo

        return demo(options)
    if options.command == "bench":
        from shmexec.cli.bench import bench

        return bench(options)
    if options.command is not None:
        return looking.run(options, parser)
    parser.print_help(sys.stderr)
    return 2


def _workers(parser: _Parser, asked: int | None, otherwise: int | None) -> int:
    try:
        if asked is None:
            return default_workers(otherwise)
        return positive_int("--workers", asked, WORKERS_AT_MOST)
    except ValueError as error:
        parser.error(str(error))


def _parser() -> _Parser:
    parser = _Parser(
        prog="shmexec",
        description="A shared-memory process pool for NumPy work.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shmexec {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    _add_run(commands)
    _add_serve(commands)
    _add_demo(commands)
    _add_bench(commands)
    looking.add_parsers(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction[_Parser]) -> None:
    run = commands.add_parser(
        "run",
        help="batch inference over a .npy file",
        description=_RUN_DESCRIPTION,
        epilog=_RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("target", metavar="SCRIPT.py:FUNCTION", help="what to run")
    run.add_argument("input", metavar="INPUT.npy", help="rows along the first axis")
    run.add_argument(
        "-o", "--output", metavar="OUTPUT.npy", required=True, help="replaced if there"
    )
    run.add_argument(
        "--batch-size",
        type=_count,
        metavar="ROWS",
        help="rows per call (default: chosen from the input's size)",
    )
    _add_workers(run)
    run.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="the longest that one batch may take (default: no limit)",
    )
    run.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a progress bar on stderr (default: if that is a terminal)",
    )
    run.add_argument(
        "--traceback",
        action="store_true",
        help="on failure, also show where in the script it happened",
    )


def _add_serve(commands: argparse._SubParsersAction[_Parser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="a script's functions for programs in other languages",
        description=_SERVE_DESCRIPTION,
        epilog=_SERVE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("script", metavar="SCRIPT.py", help="whose functions are served")
    serve.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="worker processes (default: $SHMEXEC_WORKERS, else one)",
    )
    serve.add_argument(
        "--socket",
        metavar="PATH",
        help="listen at a Unix socket, for this user only, not on stdin and stdout",
    )
    serve.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="the longest that a call may run, unless it says itself "
        "(default: no limit)",
    )
    serve.add_argument(
        "--max-line",
        type=_bytes,
        default=64 * 2**20,
        metavar="BYTES",
        help="the longest request, such as 1MB (default: 64MiB)",
    )
    serve.add_argument(
        "--grace",
        type=_seconds_or_zero,
        default=10.0,
        metavar="SECONDS",
        help="how long calls may go on after the end of input or SIGTERM, before they "
        "are cancelled (default: 10)",
    )


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="compare serial, one process per call and the pool",
        description=_DEMO_DESCRIPTION,
        epilog="examples:\n  shmexec demo\n  shmexec demo --quick --workers 2\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("--rows", type=_count, help="default: 131072; --quick: 16384")
    _add_workers(demo)
    demo.add_argument(
        "--batch-size", type=_count, default=512, metavar="ROWS", help="default: 512"
    )
    demo.add_argument("--quick", action="store_true", help="less data, done in seconds")


def _add_bench(commands: argparse._SubParsersAction[_Parser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="compare with one process per call and with other packages",
        description=_BENCH_DESCRIPTION,
        epilog=_BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument("--quick", action="store_true", help="done in about a minute")
    bench.add_argument(
        "--peers", nargs="+", metavar="NAME", help="default: those installed"
    )
    bench.add_argument(
        "--cases", nargs="+", metavar="NAME", help="cases or families of them"
    )
    bench.add_argument("--repeats", type=_count, metavar="N", help="default: 3")
    _add_workers(bench)
    bench.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="for each measurement (default: 120; 30 with --quick)",
    )
    bench.add_argument("--json", metavar="FILE", help="write all figures there")
    bench.add_argument(
        "--plot",
        metavar="FILE",
        help="draw them: .png, .svg or .pdf (needs matplotlib)",
    )
    bench.add_argument(
        "--list", action="store_true", help="name cases and peers, and end"
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="worker processes (default: $SHMEXEC_WORKERS, else the usable CPUs, "
        "eight at most)",
    )


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value <= 0:
        msg = f"must be a whole number of at least 1, not {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value


def _bytes(text: str) -> int:
    try:
        value = byte_count("it", int(text) if text.isdecimal() else text)
    except ValueError:
        value = None
    if value is None:
        msg = f"must be bytes or a text such as 1MB, not {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value


def _seconds_or_zero(text: str) -> float:
    return 0.0 if text.strip() in {"0", "0.0"} else _seconds(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        msg = f"must be a number of seconds greater than 0, not {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value
