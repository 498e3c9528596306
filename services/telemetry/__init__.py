"""Logs, metrics, traces and the internal port, the same for every process.

Knows HTTP and the three signals; refuses to know comments, databases or epochs (an epoch is a number that
a provider hands over). Import from the modules: `logs`, `tracing`, `red`, `middleware`, `http_server`,
`internal`.
"""
