"""What a member keeps on its disk and in its memory, beside a ledger that plays along."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from regions.member import supervision
from regions.member.errors import MemberFailed
from regions.member.failover_member import FailoverMember
from regions.member.ledger import Ledger
from regions.member.settings import quorum_names
from tests.regions.deployment import REGIONS, Deployment, deployment
from tests.regions.power import losing_power

EAST, WEST, SOUTH = REGIONS
ONE, OTHER = quorum_names((WEST, SOUTH), 1), quorum_names((WEST,), 1)


@dataclass
class PlayedLedger:
    """Puts in force what it is asked for, and notes how.

    Attributes:
        held: Waited for before a quorum is in force.
    """

    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    held: dict[str, asyncio.Event] = field(default_factory=dict[str, asyncio.Event])

    async def reload(self, *, synchronous_standby_names: str) -> None:
        self.asked.append(("reload", synchronous_standby_names))
        if synchronous_standby_names in self.held:
            await self.held[synchronous_standby_names].wait()

    async def verify_quorum(self, synchronous_standby_names: str) -> None:
        self.asked.append(("verify", synchronous_standby_names))

    async def run(self, name: str) -> None:
        self.asked.append(("run", name))


@dataclass
class Stand:
    made: Deployment
    member: FailoverMember
    ledger: PlayedLedger

    def quorum_on_disk(self) -> str:
        return (self.member.settings.data / "palaver.conf").read_text()


@pytest.fixture
async def stand() -> AsyncGenerator[Stand]:
    async with deployment() as made:
        member, ledger = FailoverMember(made.settings(EAST)), PlayedLedger()
        member.ledger = cast("Ledger", ledger)
        (member.settings.data / "pg_wal").mkdir(parents=True)
        yield Stand(made, member, ledger)


async def test_a_quorum_that_is_in_force_already_is_looked_at_and_not_put_in_force_again(stand: Stand) -> None:
    for _ in range(2):
        await stand.member.set_quorum(ONE)
    assert stand.ledger.asked == [("reload", ONE), ("verify", ONE)]


async def test_a_quorum_is_put_in_force_again_after_another_that_may_have_come_to_the_disk(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stand.member.set_quorum(ONE)
    write_atomically = supervision.write_atomically

    def fails(path: Path, text: str, account: None) -> None:
        write_atomically(path, text, account)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(supervision, "write_atomically", fails)
        with pytest.raises(MemberFailed, match="cannot be written"):
            await stand.member.set_quorum(OTHER)
    # Whoever tells PostgreSQL to read its files now makes it wait for the other.
    assert OTHER in stand.quorum_on_disk()
    await stand.member.set_quorum(ONE)
    assert ONE in stand.quorum_on_disk()
    assert stand.ledger.asked == [("reload", ONE)] * 2


async def test_a_quorum_is_put_in_force_again_when_another_was_asked_for_meanwhile(stand: Stand) -> None:
    stand.ledger.held[ONE] = asyncio.Event()
    first = asyncio.create_task(stand.member.set_quorum(ONE))
    while not stand.ledger.asked:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)
    await stand.member.set_quorum(OTHER)
    stand.ledger.held[ONE].set()
    await first
    await stand.member.set_quorum(ONE)
    assert stand.ledger.asked == [("reload", ONE), ("reload", OTHER), ("reload", ONE)]


@pytest.mark.parametrize("there", [False, True])
async def test_the_history_of_a_timeline_is_durable_before_wal_of_it_is_received(stand: Stand, there: bool) -> None:
    """A standby that confirms WAL of a timeline whose history a loss of power takes could not read its own WAL."""
    folder, history = stand.member.settings.data / "pg_wal", "1\t0/3000000\tno recovery target specified\n"
    file = folder / "00000002.history"
    with losing_power(folder) as power:
        if there:
            # An agent that was killed had come so far.
            file.write_text(history)
        await stand.member._install_history(2, history)
        kept = [left.get(file.name) for left in power.left()]
    assert kept == [history.encode()] * len(kept)
    assert stand.ledger.asked == ([] if there else [("run", "reload")])
