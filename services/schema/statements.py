"""Loads SQL statements by name. Each statement is a `.sql` file in the package that owns it."""

from functools import cache
from pathlib import Path


@cache
def statement(folder: Path, name: str) -> str:
    """Return the text of `<folder>/<name>.sql`. The file must exist."""
    path = folder / f"{name}.sql"
    assert path.is_file(), f"no statement {name} in {folder}"
    return path.read_text("utf-8")
