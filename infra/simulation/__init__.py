"""Runs the failover core under virtual time, against models of its environment, with faults, clients and checkers.

``scheduler.py`` provides virtual time and randomness. ``network.py``, ``etcd.py`` and ``member.py`` model what an agent
depends on: the guarantees and the known traps. ``node.py`` models an agent, which executes the core's effects.
``faults.py`` injects faults, ``workload.py`` sends writes and reads, ``checkers.py`` checks invariants independently of
both. ``runner.py`` assembles one run, ``campaign.py`` runs many seeds, ``shrink.py`` reduces a failing fault plan.
"""
