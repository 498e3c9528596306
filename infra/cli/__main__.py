"""`python -m infra.cli` is `palaver`."""

from infra.cli.main import run

run()
