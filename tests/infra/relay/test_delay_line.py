"""Tests one delay line without sockets, in virtual time: what it delivers, when it pauses its sender, what it drops."""

from collections.abc import Generator
from types import SimpleNamespace

import pytest

from infra.relay import delay_line as module
from infra.relay.delay_line import HELD_S_MAX, DelayLine, Direction, Item, Signal
from infra.relay.faults import WINDOW_BYTES_MIN, Fault
from tests.virtual_loop import VirtualLoop


class Ends:
    """Both ends of a delay line, with the calls that they received."""

    def __init__(self, loop: VirtualLoop, fault: Fault) -> None:
        self.direction = Direction(("a", "b"), fault)
        self.delivered: list[Item] = []
        self.slowed: list[bool] = []
        self.expired = 0
        self.delay_line = loop.run_until_complete(self._lane())

    async def _lane(self) -> DelayLine:
        return DelayLine(
            self.direction, deliver=self.delivered.append, slow_down=self.slowed.append, expire=self._expire
        )

    def _expire(self) -> None:
        self.expired += 1


CUT = Fault(cut=True)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Generator[VirtualLoop]:
    """A loop whose clock is the delay line's."""
    made = VirtualLoop()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made.time))
    yield made
    made.close()


def test_a_delay_line_without_a_fault_delivers_within_push(loop: VirtualLoop) -> None:
    ends = Ends(loop, Fault())
    ends.delay_line.push(b"one")
    ends.delay_line.push(Signal.END)
    assert ends.delivered == [b"one", Signal.END]
    assert (ends.direction.bytes_total, ends.direction.held_bytes) == (3, 0)


def test_the_sender_is_paused_above_the_window_and_resumed_below_half_of_it(loop: VirtualLoop) -> None:
    ends = Ends(loop, CUT)
    ends.delay_line.push(bytes(WINDOW_BYTES_MIN))
    assert ends.slowed == []
    ends.delay_line.push(b"x")
    assert ends.slowed == [True]
    ends.direction.apply(Fault())
    loop.advance(0)
    assert ends.slowed == [True, False]
    assert len(ends.delivered) == 2


def test_a_blocked_receiver_pauses_the_sender_and_gets_the_rest_in_order(loop: VirtualLoop) -> None:
    ends = Ends(loop, Fault())
    ends.delay_line.block()
    for number in range(5):
        ends.delay_line.push(bytes([number]))
    assert (ends.delivered, ends.slowed) == ([], [True])
    ends.delay_line.unblock()
    assert ends.delivered == [bytes([number]) for number in range(5)]
    assert ends.slowed == [True, False]


def test_a_reset_reaches_a_receiver_whose_buffer_is_full(loop: VirtualLoop) -> None:
    ends = Ends(loop, Fault())
    ends.delay_line.block()
    ends.delay_line.push(b"never")
    ends.delay_line.push(Signal.RESET)
    loop.advance(HELD_S_MAX)
    assert ends.delivered == [Signal.RESET]
    assert ends.direction.held_bytes == 0


def test_a_cut_holds_items_that_are_in_transit(loop: VirtualLoop) -> None:
    ends = Ends(loop, Fault(delay_ms=20))
    ends.delay_line.push(b"late")
    ends.direction.apply(CUT)
    loop.advance(HELD_S_MAX / 2)
    assert ends.delivered == []
    ends.direction.apply(Fault())
    loop.advance(0)
    assert ends.delivered == [b"late"]


def test_a_cut_that_lasts_too_long_expires_once(loop: VirtualLoop) -> None:
    ends = Ends(loop, CUT)
    ends.delay_line.push(b"one")
    ends.delay_line.push(b"two")
    loop.advance(HELD_S_MAX - 0.001)
    assert ends.expired == 0
    loop.advance(0.001)
    assert ends.expired == 1
    loop.advance(10 * HELD_S_MAX)
    assert ends.expired == 1


def test_a_cut_that_heals_in_time_does_not_expire(loop: VirtualLoop) -> None:
    ends = Ends(loop, CUT)
    ends.delay_line.push(b"one")
    loop.advance(HELD_S_MAX - 0.001)
    ends.direction.apply(Fault())
    loop.advance(10 * HELD_S_MAX)
    assert (ends.expired, ends.delivered) == (0, [b"one"])


def test_a_closed_delay_line_counts_nothing_and_ignores_fault_changes(loop: VirtualLoop) -> None:
    ends = Ends(loop, CUT)
    ends.delay_line.push(b"lost")
    ends.delay_line.close()
    ends.direction.apply(Fault())
    loop.advance(10 * HELD_S_MAX)
    assert (ends.delivered, ends.direction.held_bytes, ends.direction.delay_lines) == ([], 0, set())
