"""A model check of the failover core itself: every interleaving of three regions up to a stated bound.

``search.py`` goes breadth first through the states of ``world.py``. In each state the real ``Machine`` of each
region stands where events have brought it; what surrounds it is modelled by its promises and by its traps:
``postgres.py`` and the register of ``world.py``. ``moves.py`` says what may happen next, ``faults.py`` what may go
wrong, ``bounds.py`` how often. Nothing here reads a clock or draws a random number.
"""
