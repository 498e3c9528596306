"""The failover core under virtual time: models of what surrounds it, faults, a workload, and checkers apart from them.

``world.py`` is time and chance, ``network.py``, ``etcd.py`` and ``member.py`` model what agents stand on by what it
promises and by its traps, ``node.py`` is an agent that performs the core's effects on them. ``faults.py`` hurts,
``workload.py`` writes and reads, ``checkers.py`` judges, ``runner.py`` puts one run together, ``shrink.py`` makes
a failing one small.
"""
