"""One deployment on one machine: what is to run, and the process that keeps it running.

The supervisor is the owner of every process of every region. The processes know nothing of it:
each is started with a command line and an environment that a container would give it as well.
"""
