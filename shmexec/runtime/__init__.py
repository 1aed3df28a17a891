"""Carries decisions out, in the parent.

``pool`` joins the scheduler with processes, sockets and memory; ``leading`` settles who
reads replies; ``calls`` packs and unpacks calls; ``futures`` has the future;
``processes`` starts and ends workers; ``lifecycle`` is about fork and interpreter exit;
``guard`` minds memory, of which ``monitor`` and ``cgroups`` tell.
"""
