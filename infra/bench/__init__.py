"""Measurements of a real deployment, as ratios against a limit that runs beside it in the same run."""
