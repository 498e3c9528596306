"""The region agent as a process: settings, what it shows of itself, and its composition root."""
