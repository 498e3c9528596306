"""The named SQL of this package.

Decides where statements are: one file each in ``sync/sql``. **A statement that does not exist is an
error at its first use, never an empty text.**
"""

from functools import cache
from importlib.resources import files
from typing import LiteralString, cast


@cache
def load_sql(name: str) -> LiteralString:
    """Return the text of ``sync/sql/<name>.sql``."""
    # The files are part of the product, not input: they are as literal as a constant.
    return cast("LiteralString", files("sync").joinpath("sql", f"{name}.sql").read_text())
