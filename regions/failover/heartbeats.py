"""The heartbeat between agents, and the events and effects of a whole agent's core."""

from dataclasses import dataclass

from regions.failover.effects import Effect
from regions.failover.events import Event, Gossip
from regions.identity import CellId, RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """One message from an agent to another; its loss, duplication or reordering is harmless.

    Attributes:
        sender: Region of the agent.
        incarnation: Grows with each start of the agent; a lower one than the last heard is dropped.
        sequence: Grows with each heartbeat of an incarnation; one that is not higher is dropped.
        cells: Its gossip about each of its cells.
    """

    sender: RegionName
    incarnation: int
    sequence: int
    cells: tuple[tuple[CellId, Gossip], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReceived:
    """An authenticated heartbeat arrived."""

    heartbeat: Heartbeat


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRefused:
    """The host of a silent leader's ledger refused a connection: no process listens on the ledger's port."""

    cell: CellId
    region: RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class CellEvent:
    """An event of one cell."""

    cell: CellId
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class CellEffect:
    """An effect of one cell."""

    cell: CellId
    effect: Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class SendHeartbeat:
    """Send a heartbeat to an agent; no answer is expected."""

    to: RegionName
    heartbeat: Heartbeat


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCommit:
    """Write a little WAL on the leader's member and answer ``QuorumCommit`` with the newest LSN on a quorum.

    It does not wait for a quorum: the answer is the LSN that the standbys had confirmed before. A member whose disk
    hangs never answers, and one that lost its standbys answers with the same LSN again.
    """

    cell: CellId


AgentEvent = HeartbeatReceived | LedgerRefused | CellEvent
AgentEffect = CellEffect | SendHeartbeat | ReadCommit
