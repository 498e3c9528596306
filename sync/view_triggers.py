"""Builds the statements that let a view keep its Merkle tree: hash functions, triggers, and indexes on key hashes.

Decides what a trigger writes: for each row whose canonical columns changed, the row's hash after the change minus the
one before. Statement triggers see the rows of a whole statement at once, and a statement of an operator as well as
those of apply. A change of derived counters writes nothing. **The changes are in `merkle_changes` if and only if the
transaction that changed the rows is committed.** What no trigger sees (triggers that are disabled, restored files, a
damaged page) is found by a scrub.

The functions contain the secret of the cell, because an index needs an immutable function. Roles that can read this
database can therefore read the secret; clients cannot.
"""

from typing import Final, LiteralString

from psycopg import sql

from sync.canonical import canonical_text, key_text, values
from sync.merkle.shape import FANOUT_BITS, KEY_HASH_BITS, nodes_at
from sync.registry import Registry, Table

KEY_FUNCTION: Final = "merkle_key_hash"
ROW_FUNCTION: Final = "merkle_row_hash"

_FUNCTIONS: Final = """
CREATE OR REPLACE FUNCTION merkle_key_hash(p_key text) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN substr(sha256({secret} || convert_to(p_key, 'UTF8')), 1, 8)::bigint;

CREATE OR REPLACE FUNCTION merkle_row_hash(p_key text, p_canonical text) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN sha256({secret} || convert_to(p_key, 'UTF8') || '\\x00'::bytea || convert_to(p_canonical, 'UTF8'));
"""

_ONE_SIDE: Final = """
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
    INSERT INTO public.merkle_changes (key_hash, count, h1, h2, batch)
    SELECT
        public.merkle_key_hash(r.k), {count}, substr(r.d, 1, 8)::bigint, substr(r.d, 9, 8)::bigint,
        nullif(current_setting('palaver.batch', true), '')::bigint[]
    FROM (
        SELECT {key} AS k, public.merkle_row_hash({key}, {canonical}) AS d FROM changed AS t
        OFFSET 0  -- each hash is computed once
    ) AS r;
    RETURN NULL;
END
$body$;
"""

_UPDATE: Final = """
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
    INSERT INTO public.merkle_changes (key_hash, count, h1, h2, batch)
    SELECT
        public.merkle_key_hash(r.k), (r.n IS NOT NULL)::integer - (r.o IS NOT NULL)::integer,
        coalesce(substr(r.n, 1, 8)::bigint, 0) # coalesce(substr(r.o, 1, 8)::bigint, 0),
        coalesce(substr(r.n, 9, 8)::bigint, 0) # coalesce(substr(r.o, 9, 8)::bigint, 0),
        nullif(current_setting('palaver.batch', true), '')::bigint[]
    FROM (
        SELECT
            coalesce({new_key}, {old_key}) AS k,
            public.merkle_row_hash({new_key}, {new_canonical}) AS n,
            public.merkle_row_hash({old_key}, {old_canonical}) AS o
        FROM new_rows AS n FULL JOIN old_rows AS o ON {same_key}
        WHERE n.{first} IS NULL OR o.{first} IS NULL OR {new_values} IS DISTINCT FROM {old_values}
        OFFSET 0
    ) AS r;
    RETURN NULL;
END
$body$;
"""

_HALVES: Final = """
SELECT r.name, r.key, r.key_hash, substr(r.hash, 1, 8)::bigint AS h1, substr(r.hash, 9, 8)::bigint AS h2
FROM ({} OFFSET 0) AS r
"""

_SUMS: Final = """
SELECT
    ((r.key_hash >> {shift}) & {mask})::integer AS leaf,
    count(*)::integer AS count, bit_xor(r.h1) AS h1, bit_xor(r.h2) AS h2
FROM ({rows}) AS r
GROUP BY 1
"""

_TRUNCATE: Final = """
CREATE OR REPLACE FUNCTION merkle_truncated() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
    UPDATE public.merkle_state SET complete = false;  -- the leaves are computed again
    RETURN NULL;
END
$body$;
"""

_TRIGGERS: Final = """
CREATE OR REPLACE TRIGGER merkle_insert AFTER INSERT ON {table}
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION {insert}();
CREATE OR REPLACE TRIGGER merkle_update AFTER UPDATE ON {table}
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {update}();
CREATE OR REPLACE TRIGGER merkle_delete AFTER DELETE ON {table}
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION {delete}();
CREATE OR REPLACE TRIGGER merkle_truncate AFTER TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION merkle_truncated();
"""


def functions_and_triggers(tables: Registry, secret: bytes) -> str:
    """Return the statements that create the functions and the triggers of all tables, or replace them.

    Args:
        tables: The registry.
        secret: The secret of the cell.
    """
    hashed = sql.SQL("{}::bytea").format(sql.Literal("\\x" + secret.hex()))
    parts: list[sql.Composable] = [sql.SQL(_FUNCTIONS).format(secret=hashed), sql.SQL(_TRUNCATE)]
    parts += [_of_table(table) for table in tables]
    return sql.Composed(parts).as_string(None)


def index_name(table: Table) -> str:
    """Return the name of a table's index on the key hash."""
    return f"{table.name}_by_key_hash"


def create_index(table: Table) -> str:
    """Return the statement that builds the index on the key hash while rows are written and read."""
    return (
        sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} ({}({}))")
        .format(
            sql.Identifier(index_name(table)), sql.Identifier(table.name), sql.Identifier(KEY_FUNCTION), key_text(table)
        )
        .as_string(None)
    )


def drop_index(table: Table) -> str:
    """Return the statement that drops the index on the key hash, if it exists."""
    return sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(index_name(table))).as_string(None)


def count_rows(tables: Registry) -> str:
    """Return a query of the number of rows of all tables."""
    counts = [sql.SQL("(SELECT count(*) FROM {})").format(sql.Identifier(table.name)) for table in tables]
    return sql.SQL("SELECT {}").format(sql.SQL(" + ").join(counts)).as_string(None)


def leaf_sums(tables: Registry, depth: int) -> str:
    """Return a query of the leaves of a tree of this depth, computed from all rows: leaf, count, h1, h2."""
    return _SUMS.format(rows=hashed_rows(tables), shift=KEY_HASH_BITS - FANOUT_BITS * depth, mask=nodes_at(depth) - 1)


def insert_leaves(tables: Registry, depth: int) -> str:
    """Return the statement that writes the leaves of a tree of this depth, computed from all rows."""
    return f"INSERT INTO merkle_leaves (leaf, count, h1, h2) {leaf_sums(tables, depth)}"


def hashed_rows(tables: Registry, *, source: LiteralString = "", condition: LiteralString = "true") -> str:
    """Return a query of rows of all tables: name, key, key_hash, h1, h2.

    Args:
        tables: The registry.
        source: Added to FROM, after the table.
        condition: The condition of the rows, in which ``{hash}`` stands for the expression of the key hash.
    """
    rows = [
        sql.SQL("SELECT {} AS name, ARRAY[{}] AS key, {} AS key_hash, {}({}, {}) AS hash FROM {}{} WHERE {}").format(
            sql.Literal(table.name),
            sql.SQL(", ").join([sql.SQL("{}::text").format(sql.Identifier(name)) for name in table.key]),
            _key_hash(table),
            sql.Identifier(ROW_FUNCTION),
            key_text(table),
            canonical_text(table),
            sql.Identifier(table.name),
            sql.SQL(source),
            sql.SQL(condition).format(hash=_key_hash(table)),
        )
        for table in tables
    ]
    return sql.SQL(_HALVES).format(sql.SQL(" UNION ALL ").join(rows)).as_string(None)


def _key_hash(table: Table) -> sql.Composed:
    return sql.SQL("{}({})").format(sql.Identifier(KEY_FUNCTION), key_text(table))


def _of_table(table: Table) -> sql.Composed:
    names = {op: sql.Identifier(f"merkle_{op}_{table.name}") for op in ("insert", "update", "delete")}
    sides = {
        f"{side}_{what}": build(table, alias=alias)
        for side, alias in (("new", "n"), ("old", "o"))
        for what, build in (("key", key_text), ("canonical", canonical_text), ("values", values))
    }
    one_side = {"key": key_text(table, alias="t"), "canonical": canonical_text(table, alias="t")}
    same_key = sql.SQL(" AND ").join(
        [sql.SQL("{} = {}").format(sql.Identifier("n", name), sql.Identifier("o", name)) for name in table.key]
    )
    return sql.Composed(
        [
            sql.SQL(_ONE_SIDE).format(function=names["insert"], count=sql.Literal(1), **one_side),
            sql.SQL(_ONE_SIDE).format(function=names["delete"], count=sql.Literal(-1), **one_side),
            sql.SQL(_UPDATE).format(
                function=names["update"], same_key=same_key, first=sql.Identifier(table.key[0]), **sides
            ),
            sql.SQL(_TRIGGERS).format(table=sql.Identifier(table.name), **names),
        ]
    )
