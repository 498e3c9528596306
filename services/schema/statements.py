"""Finds SQL by name: one statement, one `.sql` file beside the package that owns it."""

from functools import cache
from pathlib import Path


@cache
def statement(folder: Path, name: str) -> str:
    """Return the text of `<folder>/<name>.sql`. A name without a file is a programmer's error."""
    path = folder / f"{name}.sql"
    assert path.is_file(), f"no statement {name} in {folder}"
    return path.read_text("utf-8")
