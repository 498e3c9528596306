"""The read API: answers from this region's view, from memory when it can, and says how fresh the answer is.

Decides which kept page may still be served and what a consistency level means here. Refuses to know the
ledger, who leads and how changes arrive.
"""
