"""The place of Merkle repair: comparing a view with the ledger and sending only what differs.

Sans-IO when it is built: the tree and the difference of two trees, without clock, sockets or SQL.
"""
