"""A model checker for the failover core: explores every interleaving of three regions up to given bounds.

``search.py`` searches the states of ``state_space.py`` breadth first; ``legs.py`` runs several searches in sequence. A
state contains the real ``Machine`` of each region. The environment is modelled by its guarantees and its known traps:
PostgreSQL in ``postgres.py``, etcd in ``state_space.py``. ``moves.py`` generates the events that can happen next,
``answers.py`` the answers to requests, ``crashes.py`` the crashes; ``bounds.py`` limits how often each happens. No
module here reads a clock or draws a random number.
"""
