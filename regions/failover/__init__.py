"""Who takes over when a leader region is lost: the deciding core, without I/O.

The place of failover to another region. ``decision.py`` holds what is decided today: what a member
does when it starts, crashes, follows or is deposed, all within the region that leads. The suspicion of
a silent leader (``detector.py``), the recruiting, choosing and establishing of a new one
(``events.py``, ``effects.py``, ``machine.py``) and what must hold after each transition
(``invariants.py``) belong here too. Nothing in this package reads a clock, opens a socket or logs.
"""
