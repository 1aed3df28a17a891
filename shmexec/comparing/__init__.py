"""Speed of shmexec beside other ways to call a function in another process.

What ``shmexec bench`` measures, and ``python -m benchmarks`` of the source tree, which adds
what shmexec is meant to reach. One question per module:

- :mod:`.latency`: what does a call cost that does nothing?
- :mod:`.throughput`: how many such calls a second?
- :mod:`.threads`: how long does a row take that one of many threads asks for?
- :mod:`.arrays`: what does it cost to pass an array, in, out, there and back?
- :mod:`.sharing`: what does an array cost that many calls use?
- :mod:`.programs`: what is left of a second CPU in whole programs?
- :mod:`.start`: how long until the first result?
- :mod:`.memory`: how much memory does it take?
- :mod:`.limits`: how fast could that be at best on this machine, now?

Who is compared: :mod:`.systems` and :mod:`.peers`. In which order, each in a process of
its own: :mod:`.running`, :mod:`.fresh` and :mod:`.child`. What becomes of the figures:
:mod:`.results`, :mod:`.wording` and :mod:`.plot`.

To add a case, append to the ``CASES`` of a module, or list a new module's in
:mod:`.cases`. To add a system, write one class and one line in
:data:`shmexec.comparing.systems.SYSTEMS`. Nothing else needs to know.
"""
