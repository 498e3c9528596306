r"""Hashes rows with a secret, in a way that PostgreSQL 18 computes without an extension.

Decides what is hashed. Does not know how a key or a row becomes text. With `d` for the digest, PostgreSQL's form is
``substr(d, 1, 8)::bigint`` and ``substr(d, 9, 8)::bigint``, where `d` is

* for a key: ``sha256(secret || convert_to(key, 'UTF8'))``
* for a row: ``sha256(secret || convert_to(key, 'UTF8') || '\x00' || convert_to(canonical, 'UTF8'))``

The hash of a row contains its key, so rows with equal content have different hashes. Otherwise the XOR of their hashes
would be zero, and content that moved from one key to another would not change any node above both leaves. A zero byte
separates key and content, because PostgreSQL's ``text`` cannot contain one.

Both hashes are keyed. Whoever chooses the keys or the content of rows, as a client does, can neither put all rows into
one leaf nor find rows whose hashes cancel each other. SHA-256 with the secret as prefix is safe here, because the
secret has a fixed length and the digest is truncated to half, which prevents its extension.
"""

import hashlib
import struct
from typing import Final

from sync.merkle.set_hash import SetHash

SECRET_BYTES: Final = 32
"""The length of every secret, so that no other division into secret and text gives the same bytes."""

_TWO_BIGINTS: Final = struct.Struct(">qq")


def hash_key(secret: bytes, key: str) -> int:
    """Return the 64-bit hash of a key as a signed integer. Its leading bits select the row's leaf.

    Args:
        secret: The secret of the cell, `SECRET_BYTES` long.
        key: Text of the primary key. If one tree has the rows of several tables, it names the table.
    """
    return _hash(secret, key.encode())[0]


def hash_row(secret: bytes, key: str, canonical: str) -> SetHash:
    """Return the hash of the set that contains this row only.

    Args:
        secret: The secret of the cell, `SECRET_BYTES` long.
        key: As in `hash_key`.
        canonical: Text of the row, equal on both sides if and only if the rows are equal.
    """
    return SetHash(1, *_hash(secret, b"\0".join((key.encode(), canonical.encode()))))


def scheme_of(secret: bytes, description: str) -> int:
    """Return a signed 64-bit integer that two sides share if they hash rows in the same way.

    Args:
        secret: The secret of the cell, `SECRET_BYTES` long.
        description: Names what determines the canonical text: the tables and the versions of their schemas.
    """
    return _hash(secret, b"\0\0" + description.encode())[0]


def _hash(secret: bytes, message: bytes) -> tuple[int, int]:
    assert len(secret) == SECRET_BYTES, f"a secret of {len(secret)} bytes"
    first, second = _TWO_BIGINTS.unpack_from(hashlib.sha256(secret + message).digest())
    return first, second
