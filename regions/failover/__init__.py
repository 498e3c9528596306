"""Who takes over when a leader region is lost: the deciding core, without I/O.

``core.py`` is the core of one agent: whom it hears and suspects (``detector.py``), when it speaks. It has a
``machine.py`` for each cell, which turns events into facts and asks ``steps.py``, ``claims.py`` and ``orders.py``
what they call for; ``rules.py`` has the rules of docs/failover.md, one function each. Nothing in this package reads
a clock, opens a socket or logs.

The region agent runs this core: ``regions.switcher`` feeds it events and performs the effects that it returns.
"""
