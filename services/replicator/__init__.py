"""The replicator of a region: applies changes to the view, and serves them to all regions while it leads.

Composition of `sync` with what this product's rows mean in the view (`projection`) and with the page cache
(`invalidation`).
"""
