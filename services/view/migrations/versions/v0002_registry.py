"""Projects rows by one function for each table; the statements stand in the SQL file of the same name."""

from pathlib import Path

from alembic import op

from services.schema.migration import execute_script

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the type `moved`, and drop the functions that named every table."""
    execute_script(op.get_bind(), Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    """Refuse: a view is rebuilt, not downgraded."""
    raise NotImplementedError
