"""Mutation testing of the failover core (`make mutations`): changes each condition, and requires that a test fails."""
