"""Every number of the failover core: its unit, its limit, and what happens when it is too small or too large."""

from dataclasses import dataclass, field

from regions.identity import RegionName

_LIMITS = {
    "heartbeat_interval_s": (0.02, 1.0),
    "phi_threshold": (1.0, 16.0),
    "phi_window": (20, 10_000),
    "observers_min": (2, 31),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an agent's core may be tuned by; the same for all its cells.

    Attributes:
        heartbeat_interval_s: Seconds between heartbeats, 0.02 to 1. Shorter detects sooner and costs more.
        phi_threshold: Phi at which a region is suspected, 1 to 16. At 8 a false suspicion by chance alone has
            odds of 1 in 10^8 per interval; lower trips sooner.
        phi_window: Intervals that are remembered, 20 to 10,000. Short forgets a slow network quickly.
        phi_stddev_min_s: Smallest deviation assumed, seconds. Too small makes a steady network nervous.
        phi_pause_s: Silence that is forgiven on top, seconds: garbage collection, a stalled disk, a lost packet.
            It is the largest part of the time to detect.
        refused_pause_s: The same for a leader whose ledger's host says that nobody listens there, seconds: a dead
            process is certain, and what is forgiven is only a heartbeat under way.
        observers_min: Regions that must suspect before anybody acts, 2 to 31: with 1 a bad link would decide.
        lag_s_max: Lateness of this agent's own loop beyond which it trusts no silence, seconds.
        claim_stagger_s: Head start of each region over the next in the order of preference, seconds. Zero is
            safe and makes two candidates at once likely.
        stall_s: How long an epoch may stay in one phase before another candidate begins the next, seconds.
        stall_s_max: The same after several failed attempts; it doubles with each.
        rest_s: How long a leader that has handed over leaves its PostgreSQL stopped while others are enough for its
            successor's quorum, seconds. Its recovery flushes every file, and the first commits wait for disks and
            processors that it may share. Longer leaves one member fewer for longer.
        hold_down_s: After ``failovers_max`` failovers within this time, the next by suspicion waits, seconds.
        failovers_max: Failovers by suspicion that are free within ``hold_down_s``.
        request_s_max: How long etcd and the promise file may take to answer before they are asked again, seconds.
        ledger_s_max: The same for short effects on the member.
        rebuild_s_max: The same for copies, rewinds and the first initialisation.
        retry_s: Pause after something failed, seconds; doubles up to ``retry_s_max``.
        retry_s_max: Its bound: how late a region may notice that what it waits for is possible again.
        target_s_max: How long a candidate waits for the vote of the region that an operator wants, seconds.
    """

    heartbeat_interval_s: float = 0.1
    phi_threshold: float = 8.0
    phi_window: int = 1000
    phi_stddev_min_s: float = 0.05
    phi_pause_s: float = 0.68
    refused_pause_s: float = 0.1
    observers_min: int = 2
    lag_s_max: float = 0.25
    claim_stagger_s: float = 0.25
    stall_s: float = 2.0
    rest_s: float = 0.5
    stall_s_max: float = 16.0
    hold_down_s: float = 45.0
    failovers_max: int = 3
    request_s_max: float = 1.5
    ledger_s_max: float = 5.0
    rebuild_s_max: float = 3600.0
    retry_s: float = 0.05
    retry_s_max: float = 1.0
    target_s_max: float = 2.0

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            assert low <= getattr(self, name) <= high, f"{name} is not between {low} and {high}"
        assert self.retry_s <= self.retry_s_max, "retry bound below its start"
        assert self.refused_pause_s <= self.phi_pause_s, "more is forgiven to the dead"
        assert self.stall_s <= self.stall_s_max, "stall bound below its start"


DEFAULTS = Settings()


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRegions:
    """The regions of a cell, each list in order of preference for leadership.

    Attributes:
        voters: Those whose members make up the ledger when the cell is first started.
        regions: All that run an agent, voters included.
    """

    voters: tuple[RegionName, ...]
    regions: tuple[RegionName, ...] = field(default=())

    def __post_init__(self) -> None:
        assert self.voters, "a cell needs a voter"
        assert len(set(self.voters)) == len(self.voters), "a voter is listed twice"
        assert not self.regions or set(self.voters) <= set(self.regions), "a voter is no region"
