"""Reserved for Merkle repair, which will compare a view with the ledger and send only the differences. Empty.

It will be sans-IO: a tree and the difference of two trees, without clock, sockets or SQL.
"""
