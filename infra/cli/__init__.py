"""The `palaver` command."""
