"""The text form of identifiers in paths: a UUID in its usual form, and no other that Python would take."""

from typing import Final
from uuid import UUID

UUID_CHARS: Final = 36


def parse_uuid(text: str) -> UUID | None:
    """Return a UUID in its usual text form (either case), or None for any other text."""
    if len(text) != UUID_CHARS or text[8] != "-" or not text.isascii():
        return None
    try:
        return UUID(text)
    except ValueError:
        return None
