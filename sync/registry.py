"""The registry: one declaration of each table that the ledger publishes and the views hold.

Decides what a declaration says, and whether a change fits it. Does not know which tables there are: the composition
root passes the registry to capture, snapshot and apply. **A change that does not fit the registry is never applied and
never becomes a dead letter: it shows that the ledger has a newer schema than this process knows.**

The ledger announces the schema of each table in the published table `table_schemas`. A migration changes this row in
the transaction that changes the table, so the announcement precedes the first change of the new form in the stream.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from sync.change import Change, SyncError

SCHEMAS_TABLE: Final = "table_schemas"
FENCE_TABLE: Final = "fence"

CONTROL_TABLES: Final = frozenset({FENCE_TABLE, SCHEMAS_TABLE})
"""Published tables that describe the stream. Views do not hold them."""

_OUT_OF_LINE_TYPES: Final = frozenset({"text", "text[]", "jsonb", "bytea"})


class SchemaUnknown(SyncError):
    """The stream carries a table, a column or a schema version that this process does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column as the stream carries it.

    Attributes:
        name: In the ledger and in the view.
        type: PostgreSQL's name of its type, as `format_type` returns it.
        kept: Whether the view has the column.
    """

    name: str
    type: str
    kept: bool = True

    @property
    def out_of_line(self) -> bool:
        """Whether PostgreSQL may store a value out of line; an update does not send such a value if it is unchanged."""
        return self.type in _OUT_OF_LINE_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The declaration of a table.

    The view's function `merge_<name>` writes its rows, each only over an older version of itself, and returns the
    counters and pages that they move (type `moved`).

    Attributes:
        name: In the ledger's schema `palaver`, and in the view.
        schemas: The schema versions that this process can apply; the ledger announces one of them.
        key: The columns of the primary key.
        columns: In the order of the ledger. Every table has `version`, which each update increases.
        level: If rows reference rows of the same table: the column with a smaller number in the referenced row.
        erased: Columns with content or personal data, which the ledger sets to NULL when it erases a row.
        erased_with: If rows are erased with a row of another table: this table, and the column with its key.
    """

    name: str
    schemas: frozenset[int]
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    level: str | None = None
    erased: frozenset[str] = frozenset()
    erased_with: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        """Check the declaration.

        Raises:
            ValueError: A name is used twice, or a column that the declaration names is missing.
        """
        kept = {column.name for column in self.columns if column.kept}
        if len({column.name for column in self.columns}) != len(self.columns):
            raise ValueError(f"table {self.name}: two columns have the same name")
        level = () if self.level is None else (self.level,)
        owner = () if self.erased_with is None else (self.erased_with[1],)
        missing = {*self.key, "version", *level, *owner, *self.erased} - kept
        if missing or not self.key or not self.schemas:
            raise ValueError(
                f"table {self.name}: key, version, level, schemas or erased columns are missing: {missing}"
            )

    @property
    def carried(self) -> frozenset[str]:
        """The names of the columns that the stream carries."""
        return frozenset(column.name for column in self.columns)

    @property
    def out_of_line(self) -> tuple[str, ...]:
        """The kept columns whose value may be absent from an update."""
        return tuple(column.name for column in self.columns if column.kept and column.out_of_line)

    @property
    def merge_function(self) -> str:
        """The name of the view's function that writes rows of this table."""
        return f"merge_{self.name}"


class Registry:
    """The tables in an order in which a row comes after the rows of other tables that it references."""

    def __init__(self, *tables: Table) -> None:
        """Check that names are unique.

        Raises:
            ValueError: Two tables have the same name, or a table has the name of a control table.
        """
        self._tables: Mapping[str, Table] = {table.name: table for table in tables}
        self._carried: Mapping[str, frozenset[str]] = {table.name: table.carried for table in tables}
        if len(self._tables) != len(tables) or not CONTROL_TABLES.isdisjoint(self._tables):
            raise ValueError("the names of tables are unique, and not those of control tables")

    def __iter__(self) -> Iterator[Table]:
        """Iterate over the tables, referenced tables first."""
        return iter(self._tables.values())

    def __len__(self) -> int:
        """Return the number of tables."""
        return len(self._tables)

    def __getitem__(self, name: str) -> Table:
        """Return the table with a name.

        Raises:
            KeyError: There is none.
        """
        return self._tables[name]

    def check(self, change: Change) -> None:
        """Check that a change has a known table and only known columns, or announces a known schema.

        Raises:
            SchemaUnknown: It does not.
        """
        carried = self._carried.get(change.table)
        if carried is not None:
            if not carried.issuperset(change.row):
                unknown = ", ".join(sorted(set(change.row) - carried))
                raise SchemaUnknown(f"the ledger's table {change.table} has columns that this version lacks: {unknown}")
        elif change.table == SCHEMAS_TABLE:
            self._check_announcement(change)
        elif change.table != FENCE_TABLE:
            raise SchemaUnknown(f"the ledger has a table that this version lacks: {change.table}")

    def _check_announcement(self, change: Change) -> None:
        if change.op not in {"insert", "update"}:
            return
        name, schema = change.row.get("name"), change.row.get("schema")
        table = self._tables.get(str(name))
        if table is None:
            raise SchemaUnknown(f"the ledger announces a table that this version lacks: {name}")
        if schema is None or not schema.isdecimal() or int(schema) not in table.schemas:
            known = ", ".join(map(str, sorted(table.schemas)))
            raise SchemaUnknown(f"the ledger announces schema {schema} of {name}; this version knows {known}")
