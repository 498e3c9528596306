"""Derives a site's secrets from the deployment's secret, so that the ledger does not store them.

Decides the derivation: HMAC-SHA256 over purpose, site and generation. A replay of the creation of a site
therefore returns the same secrets, and a rotation uses the next generation. The ledger stores only the SHA-256 of API
keys, and no token secrets. Source: RFC 5869, for deriving secrets for several purposes from one secret.
"""

import base64
import hashlib
import hmac
import secrets
import time
from typing import Final
from uuid import UUID

API_KEY_PREFIX: Final = "psk_"
FIRST_GENERATION: Final = 1


def derive_api_key(secret: bytes, site: UUID, generation: int = FIRST_GENERATION) -> str:
    """Return the site's API key."""
    return API_KEY_PREFIX + _derive(secret, b"api-key", site, generation)


def derive_token_secret(secret: bytes, site: UUID, generation: int = FIRST_GENERATION) -> str:
    """Return the secret with which the site signs the tokens of its users."""
    return _derive(secret, b"token-secret", site, generation)


def hash_api_key(key: bytes) -> bytes:
    """Return what the ledger keeps of a key. A key has 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(key).digest()


def new_site_id() -> UUID:
    """Return a UUIDv7 (RFC 9562, section 5.7); the site's secrets depend on it, so it is made before the row."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 7 << 76
    return UUID(int=value & ~(3 << 62) | 2 << 62)


def _derive(secret: bytes, purpose: bytes, site: UUID, generation: int) -> str:
    message = purpose + b"\x00" + site.bytes + generation.to_bytes(4, "big")
    return base64.urlsafe_b64encode(hmac.digest(secret, message, "sha256")).rstrip(b"=").decode()
