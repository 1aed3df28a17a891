"""What a run of the comparison is compared with, and other things to measure.

The comparison itself is :mod:`shmexec.comparing`, which ``shmexec bench`` runs too. Here
``python -m benchmarks`` runs all of it (``--help`` says how), with what shmexec is meant to
reach (:mod:`benchmarks.targets`), and writes Markdown tables (:mod:`benchmarks.report`).

``python -m benchmarks.ways`` measures the other ways of calling, and ``python -m
benchmarks.reliability`` what becomes of pools when things go wrong (:mod:`.breaking` has
the faults, :mod:`.storm` and :mod:`.recovery` the questions, :mod:`.breakable` the pools).
"""
