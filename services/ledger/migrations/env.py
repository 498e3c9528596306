"""Alembic environment of the ledger."""

from services.schema.environment import run_revisions

run_revisions()
