"""What :meth:`shmexec.Executor.profile` makes of the calls that it recorded.

``profile`` is what the user has; ``table`` brings what was recorded into order, on one
clock; ``summary`` says where the time went, ``advice`` what to change; ``timeline`` draws,
``chrome`` writes a trace. They know nothing of pools but what ``profile`` tells them.
"""
