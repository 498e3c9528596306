"""The Alembic environment of both databases: runs revisions on the connection that `migration` opened."""

from alembic import context
from sqlalchemy import Connection


def run_revisions() -> None:
    """Run the pending revisions in one transaction; called by each `env.py`."""
    connection = context.config.attributes["connection"]
    assert isinstance(connection, Connection)
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()
