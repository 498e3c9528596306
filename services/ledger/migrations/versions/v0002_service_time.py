"""Idempotency keys age by service time; the statements stand in the SQL file of the same name."""

from pathlib import Path

from alembic import op

from services.schema.migration import execute_script

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the counter, and what each key keeps of it."""
    execute_script(op.get_bind(), Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    """Refuse: keys made since then have no age by another clock."""
    raise NotImplementedError
