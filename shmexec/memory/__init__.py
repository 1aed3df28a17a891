"""Bytes that processes share.

``segment`` maps shared memory; ``allocator``, ``leases`` and ``budget`` decide, purely,
who has which part of it; ``arena`` joins the two for the process that owns a segment;
``views`` lends blocks out as NumPy memory; ``host`` is the parent's side of it all.
Nothing here knows of calls, workers or messages.
"""
