"""One lane without sockets: what it delivers, when it slows its sender down, what it drops."""

import asyncio

import pytest

from infra.relay.faults import WINDOW_BYTES_MIN, Fault
from infra.relay.lane import Direction, Item, Lane, Signal


class Ends:
    """Both ends of a lane, and what they were told."""

    def __init__(self, fault: Fault) -> None:
        self.direction = Direction(("a", "b"), fault)
        self.delivered: list[Item] = []
        self.slowed: list[bool] = []
        self.expired = 0
        self.lane = Lane(
            self.direction, deliver=self.delivered.append, slow_down=self.slowed.append, expire=self._expire
        )

    def _expire(self) -> None:
        self.expired += 1


CUT = Fault(cut=True)


async def test_a_clear_lane_delivers_within_push() -> None:
    ends = Ends(Fault())
    ends.lane.push(b"one")
    ends.lane.push(Signal.END)
    assert ends.delivered == [b"one", Signal.END]
    assert (ends.direction.bytes_total, ends.direction.held_bytes) == (3, 0)


async def test_the_sender_is_slowed_above_the_window_and_let_go_below_half_of_it() -> None:
    ends = Ends(CUT)
    ends.lane.push(bytes(WINDOW_BYTES_MIN))
    assert ends.slowed == []
    ends.lane.push(b"x")
    assert ends.slowed == [True]
    ends.direction.apply(Fault())
    await asyncio.sleep(0.05)
    assert ends.slowed == [True, False]
    assert len(ends.delivered) == 2


async def test_a_blocked_receiver_slows_the_sender_and_gets_the_rest_in_order() -> None:
    ends = Ends(Fault())
    ends.lane.block()
    for number in range(5):
        ends.lane.push(bytes([number]))
    assert (ends.delivered, ends.slowed) == ([], [True])
    ends.lane.unblock()
    assert ends.delivered == [bytes([number]) for number in range(5)]
    assert ends.slowed == [True, False]


async def test_a_reset_passes_a_receiver_that_takes_no_bytes() -> None:
    ends = Ends(Fault())
    ends.lane.block()
    ends.lane.push(b"never")
    ends.lane.push(Signal.RESET)
    await asyncio.sleep(0.05)
    assert ends.delivered == [Signal.RESET]
    assert ends.direction.held_bytes == 0


async def test_a_cut_stops_what_is_under_way_already() -> None:
    ends = Ends(Fault(delay_ms=20))
    ends.lane.push(b"late")
    ends.direction.apply(CUT)
    await asyncio.sleep(0.06)
    assert ends.delivered == []
    ends.direction.apply(Fault())
    await asyncio.sleep(0.06)
    assert ends.delivered == [b"late"]


async def test_a_cut_that_holds_for_too_long_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.relay.lane.HELD_S_MAX", 0.02)
    ends = Ends(CUT)
    ends.lane.push(b"one")
    ends.lane.push(b"two")
    await asyncio.sleep(0.1)
    assert ends.expired == 1


async def test_a_cut_that_heals_in_time_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.relay.lane.HELD_S_MAX", 0.1)
    ends = Ends(CUT)
    ends.lane.push(b"one")
    ends.direction.apply(Fault())
    await asyncio.sleep(0.2)
    assert (ends.expired, ends.delivered) == (0, [b"one"])


async def test_a_closed_lane_counts_nothing_and_hears_no_change() -> None:
    ends = Ends(CUT)
    ends.lane.push(b"lost")
    ends.lane.close()
    ends.direction.apply(Fault())
    await asyncio.sleep(0.02)
    assert (ends.delivered, ends.direction.held_bytes, ends.direction.lanes) == ([], 0, set())
