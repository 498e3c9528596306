"""Runs one deployment on one machine: the plan of its processes, and the supervisor that keeps them running.

The supervisor owns every process of every region. The processes know nothing of it: each gets a command line
and an environment, as it would in a container.
"""
