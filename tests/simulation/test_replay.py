"""Tests that a seed determines a run to the byte, whatever the hash seed of the process."""

import hashlib
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.simulation

SEEDS = (2, 6, 7)
PROGRAM = """
import sys
from infra.simulation.runner import run_seed
for seed in map(int, sys.argv[1:]):
    report = run_seed(seed, traced=True)
    print("\\n".join(report.trace), report.violation, report.recoveries_s, report.transitions)
"""


def trace_of(hash_seed: str) -> bytes:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", PROGRAM, *map(str, SEEDS)]
    return subprocess.run(command, env=environment, check=True, capture_output=True).stdout


def test_a_seed_replays_to_the_byte_in_a_process_with_another_hash_seed() -> None:
    one, other = trace_of("1"), trace_of("20261124")
    assert len(one) > 100_000
    assert hashlib.sha256(one).hexdigest() == hashlib.sha256(other).hexdigest()
