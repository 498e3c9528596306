"""The tables that the ledger publishes and the views hold: the registry that `sync` works with.

Decides, for each table, its key, its columns, what the stream carries and what is erased. The merge of its rows is the
view's function `merge_<table>` (`services/view/functions`). A test compares the declarations with the ledger's
publication and with the view; the replicator checks the view at its start.
"""

from typing import Final

from sync.registry import Column, Registry, Table

_UUID: Final = "uuid"
_TEXT: Final = "text"
_INTEGER: Final = "integer"
_SMALLINT: Final = "smallint"
_BIGINT: Final = "bigint"
_TIME: Final = "timestamp with time zone"

SITES: Final = Table(
    name="sites",
    schemas=frozenset({1}),
    key=("id",),
    columns=(
        Column(name="id", type=_UUID),
        Column(name="name", type=_TEXT),
        Column(name="origins", type="text[]"),
        Column(name="settings", type="jsonb"),
        Column(name="version", type=_INTEGER),
        Column(name="epoch", type=_BIGINT, kept=False),
        Column(name="created_at", type=_TIME, kept=False),
    ),
)

THREADS: Final = Table(
    name="threads",
    schemas=frozenset({1}),
    key=("id",),
    columns=(
        Column(name="id", type=_UUID),
        Column(name="site_id", type=_UUID),
        Column(name="key", type=_TEXT),
        Column(name="title", type=_TEXT),
        Column(name="state", type=_TEXT),
        Column(name="version", type=_INTEGER),
        Column(name="epoch", type=_BIGINT, kept=False),
        Column(name="created_at", type=_TIME, kept=False),
    ),
)

COMMENTS: Final = Table(
    name="comments",
    schemas=frozenset({1}),
    key=("id",),
    columns=(
        Column(name="id", type=_UUID),
        Column(name="site_id", type=_UUID),
        Column(name="thread_id", type=_UUID),
        Column(name="parent_id", type=_UUID),
        Column(name="depth", type=_INTEGER),
        Column(name="author_id", type=_TEXT),
        Column(name="author_name", type=_TEXT),
        Column(name="author_url", type=_TEXT),
        Column(name="body", type=_TEXT),
        Column(name="state", type=_TEXT),
        Column(name="version", type=_INTEGER),
        Column(name="epoch", type=_BIGINT, kept=False),
        Column(name="created_at", type=_TIME),
        Column(name="edited_at", type=_TIME),
        Column(name="deleted_at", type=_TIME),
    ),
    level="depth",
    erased=frozenset({"author_id", "author_name", "author_url", "body"}),
)

VOTES: Final = Table(
    name="votes",
    schemas=frozenset({1}),
    key=("comment_id", "user_id"),
    columns=(
        Column(name="comment_id", type=_UUID),
        Column(name="user_id", type=_TEXT),
        Column(name="site_id", type=_UUID),
        Column(name="thread_id", type=_UUID),
        Column(name="value", type=_SMALLINT),
        Column(name="version", type=_INTEGER),
        Column(name="epoch", type=_BIGINT, kept=False),
        Column(name="created_at", type=_TIME, kept=False),
        Column(name="changed_at", type=_TIME, kept=False),
    ),
    erased_with=("comments", "comment_id"),
)

TABLES: Final = Registry(SITES, THREADS, COMMENTS, VOTES)
