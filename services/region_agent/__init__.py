"""The process of the region agent: settings, status, metrics, the internal port, and its composition root."""
