"""The exception of a failed migration. Most processes never import `migration`, because its imports are expensive."""


class MigrationFailed(Exception):
    """The schema could not be brought up to date; the cause is chained."""
