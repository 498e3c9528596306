"""A mutation run over the failover core: each condition is changed, and a test has to notice. `make mutations`."""
