"""Compares a view with the ledger by their trees, and finds the rows that differ, without reading the other rows.

The package is sans-IO: no database, network, clock or randomness. Its callers read rows, leaves and changes, send the
messages, and repair. The steps of a comparison, each in its own module:

1. `row_hash` hashes the key and the canonical text of a row; `set_hash` combines hashes of rows.
2. `shape` assigns rows to leaves; `tree` keeps the leaves and the nodes above them while rows change.
3. `rewind` returns the tree as it was at an earlier position, so that both sides are compared at the same position.
4. `descent` compares two trees from the root to the leaves; `rows` compares the rows of the leaves that differ.
5. `wire` encodes the messages of 4.

**Two trees at the same position with equal roots have the same rows, except with probability 2^-128. A comparison
reports a row as different only if it differs at that position** (ADR 0054).
"""
