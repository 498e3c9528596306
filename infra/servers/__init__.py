"""The server binaries of the embedded deployment: where they come from, and which account runs PostgreSQL."""
