"""Alembic environment of the view."""

from services.schema.environment import run_revisions

run_revisions()
