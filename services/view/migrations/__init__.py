"""Alembic revisions of the view."""
