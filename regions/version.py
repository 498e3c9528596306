"""The version of the package, the API and the command line. `pyproject.toml` reads it from here."""

from typing import Final

VERSION: Final = "0.1.0"
