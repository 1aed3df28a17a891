"""One measurement in a process of its own: ``python -m shmexec.comparing.child SYSTEM CASE``.

Started by :mod:`shmexec.comparing.fresh`. The last line on stdout is the sample as JSON; if
anything goes wrong there is none, and a non-zero exit.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial

from shmexec.comparing import limits
from shmexec.comparing.cases import CASES
from shmexec.comparing.quantities import LIMIT
from shmexec.comparing.sampling import Plan, Sample
from shmexec.comparing.systems import SYSTEMS


def measure(system_name: str, case_name: str, workers: int, plan: Plan) -> Sample:
    """Open the system, make the calls, close it."""
    case, system = CASES[case_name], SYSTEMS[system_name]
    if system.inherits and case.prepare is not None:
        case.prepare()
    opening = partial(system.open, case.workers or workers)
    if case.opens:
        return case.measure(opening, plan)
    with opening() as caller:
        return case.measure(caller, plan)


def main(arguments: list[str]) -> int:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m shmexec.comparing.child")
    parser.add_argument("system")
    parser.add_argument("case")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--nbytes", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(arguments)
    plan = Plan.of(args.nbytes, quick=args.quick)
    if args.system == LIMIT:
        measured = limits.measure(args.case, args.nbytes, plan)
    else:
        measured = measure(args.system, args.case, args.workers, plan)
    print(json.dumps(asdict(measured)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
