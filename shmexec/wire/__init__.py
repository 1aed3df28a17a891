"""What crosses a pipe between parent and worker.

``messages`` is the record and its codec, pure; ``channel`` carries messages over
sockets; ``pickling`` turns objects into a pickle and the buffers beside it, which
``buffers`` collects as ``sources``; ``explaining`` says why it could not; ``functions``
decides how a function travels. Nothing here knows who sends and why.
"""
