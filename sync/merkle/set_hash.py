"""Combines the hashes of rows into the hash of a set of rows: their count, and the XOR of their 128-bit hashes.

A `SetHash` is the value of one row, of a leaf, of an inner node, and of a change of rows. XOR is its own inverse, so
adding and removing a row need no other row: an insert adds the row's hash, a delete subtracts it, an update does both.
The order does not matter, so disjoint sets can be hashed apart and added. The count detects what XOR cannot: a row that
occurs twice.

XOR alone is not collision resistant: whoever knows the hashes of 129 rows can choose some of them whose XOR is that of
another set. It is safe because the rows are hashed with a secret (`row_hash`).

Source: D. Clarke, S. Devadas, M. van Dijk, B. Gassend, G. Suh, "Incremental Multiset Hash Functions and Their
Application to Memory Integrity Checking", ASIACRYPT 2003, section 4 (MSet-XOR-Hash).
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

DIGEST_BYTES: Final = 8
"""Two differing sets have equal digests with probability 2^-64."""

_SET_HASH: Final = struct.Struct(">qqq")


@dataclass(frozen=True, slots=True)
class SetHash:
    """The hash of a set of rows, or the difference of two.

    Attributes:
        count: Number of rows; negative in a difference that removes rows.
        h1: XOR of the first 64 bits of the rows' hashes, as a signed integer, PostgreSQL's ``bigint``.
        h2: XOR of the second 64 bits.
    """

    count: int
    h1: int
    h2: int

    def __add__(self, other: "SetHash") -> "SetHash":
        """Return the hash of both sets together."""
        return SetHash(self.count + other.count, self.h1 ^ other.h1, self.h2 ^ other.h2)

    def __sub__(self, other: "SetHash") -> "SetHash":
        """Return the hash of this set without the rows of the other one."""
        return SetHash(self.count - other.count, self.h1 ^ other.h1, self.h2 ^ other.h2)

    @property
    def digest(self) -> bytes:
        """Eight bytes that stand for this hash in a message that is part of a descent.

        The digest hashes all 24 bytes, because a stored leaf may be damaged in any way, and a XOR of its parts would
        miss some. Equality of whole trees is decided by the full hashes of the roots, never by digests.
        """
        return hashlib.sha256(_SET_HASH.pack(self.count, self.h1, self.h2)).digest()[:DIGEST_BYTES]


EMPTY: Final = SetHash(0, 0, 0)
"""The hash of no rows."""
