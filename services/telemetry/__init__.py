"""Logs, metrics, traces and the internal port, the same for every process.

Knows HTTP and the three signals, but no comments, databases or epochs (a provider returns the epoch as a number).
Import from the modules: `logs`, `tracing`, `red`, `middleware`, `http_server`, `internal`.
"""
