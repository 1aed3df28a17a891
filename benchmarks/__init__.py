"""Speed of shmexec beside other ways to call a function in another process.

Run with ``python -m benchmarks``; see ``python -m benchmarks --help``. One question per
module:

- :mod:`benchmarks.latency`: what does a call cost that does nothing?
- :mod:`benchmarks.arrays`: what does it cost to pass an array, in, out, there and back?
- :mod:`benchmarks.limits`: how fast could that be at best on this machine, now?

To add a case, append to the ``CASES`` of a module, or list a new module's in
:mod:`benchmarks.cases`. To add a system, write one function in
:mod:`benchmarks.systems`. Nothing else needs to know.
"""
