"""The read API: answers reads from caches or from this region's view, and states how fresh each answer is.

Decides which cached page may still be served and what each consistency level means. Does not know the ledger, the
leader, or how changes arrive.
"""
