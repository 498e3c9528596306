"""The failover core: decides which region leads a cell, without I/O.

``core.py`` is the core of one agent: it notes which agents it hears, suspects the silent ones (``detector.py``) and
sends heartbeats. It has one ``machine.py`` for each cell. The machine turns events into facts (``facts.py``) and asks
``steps.py``, ``claims.py`` and ``orders.py`` what the facts call for. ``rules.py`` has the rules of docs/failover.md,
one function each. Nothing in this package reads a clock, opens a socket or writes a log.

The region agent runs this core: ``regions.switcher`` feeds it events and performs the effects that it returns.
"""
