"""Adds what erases and retries a dead letter; the statements stand in the SQL file of the same name."""

from pathlib import Path

from alembic import op

from services.schema.migration import execute_script

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and fill them for the letters that are there."""
    execute_script(op.get_bind(), Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    """Refuse: a view is rebuilt, not downgraded."""
    raise NotImplementedError
