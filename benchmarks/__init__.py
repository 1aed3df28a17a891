"""Speed of shmexec beside other ways to call a function in another process.

Run with ``python -m benchmarks``; see ``python -m benchmarks --help``. One question per
module:

- :mod:`benchmarks.latency`: what does a call cost that does nothing?
- :mod:`benchmarks.throughput`: how many such calls a second?
- :mod:`benchmarks.arrays`: what does it cost to pass an array, in, out, there and back?
- :mod:`benchmarks.sharing`: what does an array cost that many calls use?
- :mod:`benchmarks.programs`: what is left of a second CPU in whole programs?
- :mod:`benchmarks.start`: how long until the first result?
- :mod:`benchmarks.memory`: how much memory does it take?
- :mod:`benchmarks.limits`: how fast could that be at best on this machine, now?

``python -m benchmarks.ways`` measures the other ways of calling, and ``python -m
benchmarks.reliability`` what becomes of pools when things go wrong (:mod:`.breaking` has
the faults, :mod:`.storm` and :mod:`.recovery` the questions, :mod:`.breakable` the pools).

Who is compared: :mod:`benchmarks.systems` and :mod:`benchmarks.peers`. What shmexec is
meant to reach: :mod:`benchmarks.targets`. What becomes of the figures:
:mod:`benchmarks.report` and :mod:`benchmarks.plot`.

To add a case, append to the ``CASES`` of a module, or list a new module's in
:mod:`benchmarks.cases`. To add a system, write one class and one line in
:data:`benchmarks.systems.SYSTEMS`. Nothing else needs to know.
"""
