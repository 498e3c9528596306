"""How a migration fails, apart from the migration's own module, whose imports most processes never need."""


class MigrationFailed(Exception):
    """The schema could not be brought up to date; the cause is chained."""
