"""Kills random processes of every region under load, in many rounds."""

import os
import random

import pytest

from tests.integration.load import check_nothing_lost_or_doubled, load
from tests.integration.stack import REGIONS, Stack
from tests.integration.test_faults import PROCESSES

pytestmark = [pytest.mark.integration, pytest.mark.stack, pytest.mark.soak, pytest.mark.timeout(0)]

ROUNDS = int(os.environ.get("PALAVER_SOAK_ROUNDS", "100"))
SEED = int(os.environ.get("PALAVER_SOAK_SEED", "1"))


def test_random_kills_lose_no_write_and_apply_none_twice(stack: Stack) -> None:
    chooser = random.Random(SEED)  # noqa: S311 - a repeatable script, not a secret
    for number in range(ROUNDS):
        victims = [(chooser.choice(REGIONS), chooser.choice(PROCESSES)) for _ in range(chooser.randint(1, 2))]
        print(f"round {number} of seed {SEED}: {victims}")  # noqa: T201 - shown when a round fails
        with load(stack) as account:
            for region, process in victims:
                stack.palaver("fault", "kill", region, process)
            stack.until_healthy(within_s=30)
        assert account.given_up == []
        check_nothing_lost_or_doubled(stack, account)
