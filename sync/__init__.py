"""Replicates changes from the ledger to the views: capture, channel, apply, checkpoint.

Knows rows and positions. Does not know comments, HTTP APIs, or how a leader is chosen. `DESIGN.md` has the guarantee
and the reasons for it.
"""
