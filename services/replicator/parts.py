"""Holds the parts of a replicator, and reports their state.

Decides what /status and /readyz report. Opens nothing; the tasks in `__main__` do. `__main__` also builds the parts.
"""

import time
from dataclasses import dataclass

from regions.coordination import LeadershipView
from regions.position import encode_token
from regions.topology import Topology
from services.replicator.dead_letters import DeadLetterHandler
from services.replicator.invalidation import CacheInvalidator
from services.replicator.repairs import Repairs
from services.view.cache import Invalidation
from sync.apply import Applier
from sync.channel.direct.client import DirectChannel
from sync.channel.direct.server import ChangeServer
from sync.lag import LagMeter
from sync.slots import SlotWatch


@dataclass(slots=True, kw_only=True)
class Parts:
    """The parts of one replicator.

    Attributes:
        slot_watch: None in a region without a ledger member.
        migrated: Whether the view has this version's schema.
        indexed: Whether the view has this version's indexes; until then pages with many hidden comments are slower.
    """

    topology: Topology
    leaders: LeadershipView
    meter: LagMeter
    server: ChangeServer
    channel: DirectChannel
    applier: Applier[Invalidation]
    letter_orders: DeadLetterHandler
    invalidator: CacheInvalidator
    repairs: Repairs
    slot_watch: SlotWatch | None
    migrated: bool = False
    indexed: bool = False

    def lag_ms(self) -> int:
        """Return the lag of the view in milliseconds."""
        return self.meter.lag_ms(now=time.monotonic(), now_us=time.time_ns() // 1000)

    def missing(self) -> list[str]:
        """Return the reasons why the view does not follow the ledger, one sentence each."""
        missing: list[str] = []
        if not self.migrated:
            missing.append("the view's schema is not there yet")
        elif self.applier.trouble is not None:
            missing.append(f"apply: {self.applier.trouble}")
        if self.meter.trouble is not None:
            missing.append(f"change stream: {self.meter.trouble}")
        elif self.meter.takes_snapshot:
            missing.append("change stream: a snapshot is being taken, because changes are gone")
        return missing

    def status(self) -> dict[str, object]:
        """Return the facts for /status."""
        meter, cell = self.meter, self.topology.cell
        return {
            "region": self.topology.region,
            "applied_position": None if meter.applied is None else encode_token(cell, meter.applied),
            "source_position": None if meter.received is None else encode_token(cell, meter.received),
            "lag_ms": self.lag_ms(),
            "connected": meter.connected,
            "source": meter.source,
            "dead_letters": self.applier.dead_letters,
            "dead_letters_by_reason": dict(self.applier.letters.kinds),
            "trouble": self.missing(),
            "indexed": self.indexed,
            "cache": self.invalidator.trouble,
            "subscribers": self.server.subscribed,
            "repair": self.repairs.status(),
        }
