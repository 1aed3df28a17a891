"""Decides what happens to calls and workers. Pure: events in, commands out.

``records`` has the states, events and commands; ``machine`` takes the events in. What it
decides about is in ``entities``, and how that may change in ``state``; ``waiting``,
``packs``, ``slots`` and ``crew`` have the rules for a part each, ``inspection`` what only
looks. ``flow`` and ``grouping`` are for pipelines and batchers. No thread, clock, socket
or process is known here.
"""
