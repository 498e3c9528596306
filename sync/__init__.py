"""How changes travel from the ledger to the views: capture, channel, apply, checkpoint.

Knows rows and positions; refuses to know comments, HTTP APIs and who decides on leadership. The guarantee
and the reasons for it are in `DESIGN.md`.
"""
