"""Parses UUIDs in paths. Accepts only the form with hyphens; `uuid.UUID` accepts several others."""

from typing import Final
from uuid import UUID

UUID_CHARS: Final = 36


def parse_uuid(text: str) -> UUID | None:
    """Return the UUID of a text with hyphens, in upper or lower case; None for any other text."""
    if len(text) != UUID_CHARS or text[8] != "-" or not text.isascii():
        return None
    try:
        return UUID(text)
    except ValueError:
        return None
