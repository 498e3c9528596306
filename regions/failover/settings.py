"""All settings of the failover core: unit, limits, and the effect of a value that is too small or too large."""

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
    """The settings of an agent's core; the same for all its cells.

    Attributes:
        heartbeat_interval_s: Seconds between heartbeats, 0.02 to 1. A shorter interval detects sooner and costs more.
        phi_threshold: Phi at which a region is suspected, 1 to 16. At 8 the probability of a false suspicion is 1 in
            10^8 per interval; a lower threshold suspects sooner.
        phi_window: Number of intervals in the window, 20 to 10,000. A short window forgets a slow network quickly.
        phi_stddev_min_s: Smallest standard deviation assumed, seconds. Too small a value suspects on a steady network.
        phi_pause_s: Acceptable pause in addition, seconds: garbage collection, a stalled disk, a lost packet. It is the
            largest part of the time to detect.
        refused_pause_s: The acceptable pause if the host of the leader's ledger refuses connections, seconds: the
            process is certainly gone, and only a heartbeat in flight is waited for.
        observers_min: Regions that must suspect before any of them acts, 2 to 31: with 1 a bad link would decide.
        lag_s_max: Lateness of this agent's own loop above which it ignores the silence of others, seconds.
        claim_stagger_s: Head start of each region over the next in the order of preference, seconds. Zero is safe, and
            makes two candidates at once likely.
        stall_s: How long an epoch may stay in one phase before another candidate begins the next, seconds.
        stall_s_max: The same after several failed attempts; the time doubles with each.
        rest_s: How long the old leader leaves its PostgreSQL stopped after a hand-over, while the others are enough for
            the successor's quorum, seconds. Its recovery flushes every file, and the first commits may wait for the
            shared disks and processors. A longer delay leaves the cell with one member fewer for longer.
        hold_down_s: After ``failovers_max`` failovers within this time, the next after suspicion is delayed, seconds.
        failovers_max: Failovers after suspicion within ``hold_down_s`` that are not delayed.
        request_s_max: How long etcd and the promise file may take to answer before the core asks again, seconds.
        ledger_s_max: The same for short effects on the member.
        rebuild_s_max: The same for copies, rewinds and the first initialisation.
        retry_s: Pause after a failure, seconds; it doubles up to ``retry_s_max``.
        retry_s_max: Longest pause: how late a region may notice that its next step is possible again.
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
        assert self.refused_pause_s <= self.phi_pause_s, "the pause of a refused ledger is the shorter one"
        assert self.stall_s <= self.stall_s_max, "stall bound below its start"


DEFAULTS = Settings()


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRegions:
    """The regions of a cell, each list in order of preference for leadership.

    Attributes:
        voters: The regions whose members form the ledger when the cell is created.
        regions: All regions with an agent, voters included.
    """

    voters: tuple[RegionName, ...]
    regions: tuple[RegionName, ...] = field(default=())

    def __post_init__(self) -> None:
        assert self.voters, "a cell needs a voter"
        assert len(set(self.voters)) == len(self.voters), "a voter is listed twice"
        assert not self.regions or set(self.voters) <= set(self.regions), "a voter is no region"
