"""Loads the SQL statements of this package by name.

Each statement is one file in ``sync/sql``. **A missing file is an error at the first use, never an empty text.**
"""

from functools import cache
from importlib.resources import files
from typing import LiteralString, cast


@cache
def load_sql(name: str) -> LiteralString:
    """Return the text of ``sync/sql/<name>.sql``."""
    # The files belong to the product and are not input, so they are as trustworthy as literals.
    return cast("LiteralString", files("sync").joinpath("sql", f"{name}.sql").read_text())
