"""The network faults of one direction between two regions, and their effect on the time of arrival.

Pure: decides when a segment arrives and how many bytes may be in transit; knows no sockets and no clocks.

The model is TCP as an application sees it. Delay and jitter are those of `tc netem` (uniform, delay ± jitter, never
negative). A lost segment arrives after a retransmission timeout of 200 ms (Linux TCP_RTO_MIN), doubled each time it is
lost again (RFC 6298, 5.5), and all later bytes wait for it, as in a byte stream. A segment is what the operating system
returns from one read, so that loss delays bulk transfers less than the loss of single packets would. While a direction
is cut, nothing passes; after the cut, held bytes arrive one delay later, as if they were retransmitted at that moment.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace

# Linux TCP_RTO_MIN and TCP_RTO_MAX.
RTO_MS_MIN = 200.0
RTO_MS_MAX = 120_000.0

# A segment is lost at most this often in a row: 15 is net.ipv4.tcp_retries2, after which TCP aborts the connection.
LOSSES_MAX = 15

# Longer than any real delay on earth; a larger number is a wrong unit.
DELAY_MS_MAX = 10_000.0

# Each connection gets 1 Gbit/s in a direction; its bandwidth-delay product may be in transit, within these bounds.
BANDWIDTH_BYTES_PER_S = 125_000_000
WINDOW_BYTES_MIN = 256 * 1024
WINDOW_BYTES_MAX = 16 * 1024 * 1024

Pair = tuple[str, str]


class FaultInvalid(Exception):
    """A setting is invalid; the message names it and the valid values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The state of one direction.

    Attributes:
        delay_ms: one-way delay, 0 to DELAY_MS_MAX.
        jitter_ms: the delay varies by up to this much in both directions; order is kept.
        loss: the fraction of segments that need a retransmission, 0 or more and less than 1.
        cut: nothing passes; bytes are held.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    cut: bool = False

    def __post_init__(self) -> None:
        for name in ("delay_ms", "jitter_ms"):
            value = getattr(self, name)
            if not 0 <= value <= DELAY_MS_MAX:
                raise FaultInvalid(f"{name} is {value}: use 0 to {DELAY_MS_MAX:.0f} milliseconds")
        if not 0 <= self.loss < 1:
            raise FaultInvalid(f"loss is {self.loss}: use a fraction from 0 to below 1 (for all, use cut)")

    @property
    def is_clear(self) -> bool:
        """Whether there is no fault, and bytes pass at once."""
        return not (self.delay_ms or self.jitter_ms or self.loss or self.cut)

    @property
    def window_bytes(self) -> int:
        """How many bytes of one connection may be in transit before its sender is paused."""
        product = BANDWIDTH_BYTES_PER_S * (self.delay_ms + self.jitter_ms) / 1000
        return round(min(max(product, WINDOW_BYTES_MIN), WINDOW_BYTES_MAX))


CLEAR = Fault()
FAULT_FIELDS = tuple(field.name for field in fields(Fault))


def arrival(fault: Fault, *, now: float, previous: float, draws: Iterator[float]) -> float:
    """Return when a segment that is sent now arrives.

    Args:
        fault: the state of its direction; `cut` is ignored.
        now: seconds.
        previous: the arrival of the segment before it; this one does not arrive earlier.
        draws: uniform random numbers from [0, 1); each random decision takes one.

    Returns:
        Seconds, on the clock of `now`.
    """
    delay_ms = fault.delay_ms
    if fault.jitter_ms:
        delay_ms = max(0.0, delay_ms + fault.jitter_ms * (2 * next(draws) - 1))
    if fault.loss:
        delay_ms += _retransmission_ms(fault.loss, draws)
    return max(previous, now + delay_ms / 1000)


def _retransmission_ms(loss: float, draws: Iterator[float]) -> float:
    waited_ms, rto_ms = 0.0, RTO_MS_MIN
    for _ in range(LOSSES_MAX):
        if next(draws) >= loss:
            break
        waited_ms += rto_ms
        rto_ms = min(rto_ms * 2, RTO_MS_MAX)
    return waited_ms


class FaultTable:
    """The fault of every directed pair of regions, and the baseline that `heal` restores."""

    def __init__(self, pairs: Iterable[Pair], baseline: Mapping[Pair, Fault]) -> None:
        self._baseline = {pair: baseline.get(pair, CLEAR) for pair in sorted(pairs)}
        self._current = dict(self._baseline)

    def __getitem__(self, pair: Pair) -> Fault:
        return self._current[pair]

    def items(self) -> list[tuple[Pair, Fault]]:
        """Return every pair with its fault, in the order of their names."""
        return list(self._current.items())

    def change(self, changes: Iterable[Mapping[str, object]]) -> list[tuple[Pair, Fault]]:
        """Apply all changes or none; return the changed pairs with their new faults.

        Args:
            changes: in each, `source` and `target` name the direction, and the other keys are fields of Fault;
                missing fields stay as they are.

        Raises:
            FaultInvalid: a region, a field or a value is invalid.
        """
        result: dict[Pair, Fault] = {}
        for change in changes:
            settings = dict(change)
            pair = (str(settings.pop("source", "")), str(settings.pop("target", "")))
            if pair not in self._current:
                known = ", ".join(sorted({name for known_pair in self._current for name in known_pair}))
                raise FaultInvalid(f"no link leads from {pair[0]!r} to {pair[1]!r}; regions are {known}")
            result[pair] = merge(result.get(pair, self._current[pair]), settings)
        self._current.update(result)
        return list(result.items())

    def heal(self, pairs: Iterable[Pair] | None = None) -> list[tuple[Pair, Fault]]:
        """Restore the baseline of these pairs, or of all if None; return the pairs with it.

        Raises:
            FaultInvalid: a pair is unknown.
        """
        chosen = list(self._baseline) if pairs is None else list(pairs)
        for source, target in chosen:
            if (source, target) not in self._baseline:
                raise FaultInvalid(f"no link leads from {source!r} to {target!r}")
        healed = {pair: self._baseline[pair] for pair in chosen}
        self._current.update(healed)
        return list(healed.items())


def merge(fault: Fault, settings: Mapping[str, object]) -> Fault:
    """Return the fault with these fields changed; check the type of each.

    Raises:
        FaultInvalid: a field is unknown, or its value is invalid.
    """
    for name, value in settings.items():
        if name not in FAULT_FIELDS:
            raise FaultInvalid(f"{name!r} is no setting of a fault; there are {', '.join(FAULT_FIELDS)}")
        if isinstance(value, bool) != (name == "cut") or not isinstance(value, bool | int | float):
            raise FaultInvalid(f"{name} is {value!r}: use {'true or false' if name == 'cut' else 'a number'}")
        if not math.isfinite(value):
            raise FaultInvalid(f"{name} is {value}: use a finite number")
    return replace(fault, **settings)  # pyright: ignore[reportArgumentType] - each was checked above


def as_json(pair: Pair, fault: Fault) -> dict[str, object]:
    """Return a direction in the format of the control API and of the configuration."""
    return {"source": pair[0], "target": pair[1], **asdict(fault)}
