"""Measures a real deployment, as ratios to limits that are measured in the same run."""
