"""Decides what happens to calls and workers. Pure: events in, commands out.

``records`` has the states, events and commands; ``machine`` has everything that
changes them. No thread, clock, socket or process is known here.
"""
