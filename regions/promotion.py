"""The statement that waits inside a ledger member until that member is primary.

A follower sends it before START_REPLICATION (ADR 0043). The write API of the chosen region runs it before it looks for
the fence row again. Each passes its own bound.
"""

from importlib import resources

_TEXT = resources.files("regions").joinpath("sql", "await_promotion.sql").read_text()


def await_promotion(wait_max: str) -> str:
    """Return the statement; it returns after ``wait_max``, an interval of PostgreSQL, even if there is no promotion."""
    return _TEXT.replace("{wait_max}", wait_max)
