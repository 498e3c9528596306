"""Creates the table of votes and the counts of a comment; the statements stand in the SQL file of the same name."""

from pathlib import Path

from alembic import op

from services.schema.migration import execute_script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and the columns."""
    execute_script(op.get_bind(), Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    """Refuse: a view is rebuilt, not downgraded."""
    raise NotImplementedError
