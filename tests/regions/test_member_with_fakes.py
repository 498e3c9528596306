"""The quorum and the timeline history that a member has on disk and in memory, with a fake PostgreSQL client."""

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
from tests.regions.power_loss import power_loss

EAST, WEST, SOUTH = REGIONS
ONE, OTHER = quorum_names((WEST, SOUTH), 1), quorum_names((WEST,), 1)


@dataclass
class FakeLedger:
    """Records the calls of the member.

    Attributes:
        asked: Each call, with its argument.
        held: For a quorum: the event for which its reload waits.
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
class Harness:
    made: Deployment
    member: FailoverMember
    ledger: FakeLedger

    def quorum_on_disk(self) -> str:
        return (self.member.settings.data / "palaver.conf").read_text()


@pytest.fixture
async def harness() -> AsyncGenerator[Harness]:
    async with deployment() as made:
        member, ledger = FailoverMember(made.settings(EAST)), FakeLedger()
        member.ledger = cast("Ledger", ledger)
        (member.settings.data / "pg_wal").mkdir(parents=True)
        yield Harness(made, member, ledger)


async def test_a_quorum_already_in_force_is_verified_and_not_reloaded(harness: Harness) -> None:
    for _ in range(2):
        await harness.member.set_quorum(ONE)
    assert harness.ledger.asked == [("reload", ONE), ("verify", ONE)]


async def test_a_quorum_is_reloaded_after_another_may_have_reached_the_disk(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.member.set_quorum(ONE)
    write_atomically = supervision.write_atomically

    def fails(path: Path, text: str, account: None) -> None:
        write_atomically(path, text, account)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(supervision, "write_atomically", fails)
        with pytest.raises(MemberFailed, match="cannot be written"):
            await harness.member.set_quorum(OTHER)
    # The file may have been written before the error, so the next reload may put the other quorum in force.
    assert OTHER in harness.quorum_on_disk()
    await harness.member.set_quorum(ONE)
    assert ONE in harness.quorum_on_disk()
    assert harness.ledger.asked == [("reload", ONE)] * 2


async def test_a_quorum_is_reloaded_after_another_was_requested_meanwhile(harness: Harness) -> None:
    harness.ledger.held[ONE] = asyncio.Event()
    first = asyncio.create_task(harness.member.set_quorum(ONE))
    while not harness.ledger.asked:  # noqa: ASYNC110 - the fake sets no event
        await asyncio.sleep(0)
    await harness.member.set_quorum(OTHER)
    harness.ledger.held[ONE].set()
    await first
    await harness.member.set_quorum(ONE)
    assert harness.ledger.asked == [("reload", ONE), ("reload", OTHER), ("reload", ONE)]


@pytest.mark.parametrize("there", [False, True])
async def test_a_timeline_history_is_durable_before_its_wal_is_received(harness: Harness, there: bool) -> None:
    """If a loss of power removes a timeline's history, a standby cannot read the WAL of it that it has confirmed."""
    folder, history = harness.member.settings.data / "pg_wal", "1\t0/3000000\tno recovery target specified\n"
    file = folder / "00000002.history"
    with power_loss(folder) as power:
        if there:
            # An agent that was killed may have written the file without flushing it.
            file.write_text(history)
        await harness.member._install_history(2, history)
        kept = [possible_states.get(file.name) for possible_states in power.possible_states()]
    assert kept == [history.encode()] * len(kept)
    assert harness.ledger.asked == ([] if there else [("run", "reload")])
