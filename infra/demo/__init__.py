"""The tour of `palaver demo`: real comments through every edge, read back everywhere, every claim checked."""
