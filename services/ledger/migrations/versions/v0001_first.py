"""The first schema of the ledger; the statements stand in the SQL file of the same name."""

from pathlib import Path

from alembic import op

from services.schema.migration import execute_script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    execute_script(op.get_bind(), Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    """Refuse: the first schema has nothing before it."""
    raise NotImplementedError
