"""Runs calls, in the child process.

``main`` is the loop, made of ``line``, ``calls``, ``replies``, ``streaming`` and
``packing``, or ``flight`` where calls run several at a time; ``memory`` the worker's own
arena and its views of the parent's; ``handover`` how results leave it; ``setup`` what is
done once, before the first call; ``tasks`` what the parent's side runs here on behalf of
``map`` and ``map_batches``. Nothing here imports the parent's side, nor psutil: every
worker would pay for it.
"""
