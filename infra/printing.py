"""Prints tables and JSON documents to standard output. Decides their form and knows nothing of their content."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import typer
from rich.console import Console
from rich.table import Table


def print_json(document: object) -> None:
    """Print one JSON document to standard output, indented."""
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; it is readable also if standard output is not a terminal."""
    Console(soft_wrap=False, width=None).print(_table(title, columns, rows))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table as text, without colours."""
    console = Console(soft_wrap=False, width=None, color_system=None)
    with console.capture() as captured:
        console.print(_table(title, columns, rows))
    return captured.get().rstrip("\n")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    made = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*("" if cell is None else str(cell) for cell in row))
    return made
