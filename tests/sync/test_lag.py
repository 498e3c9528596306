from regions.identity import RegionName
from regions.position import Position
from sync.change import Progress, Transaction
from sync.lag import LagMeter

SECOND_US = 1_000_000


def transaction(lsn: int, commit_ts_us: int, *, partial: bool = False) -> Transaction:
    return Transaction(position=Position(1, lsn), commit_ts_us=commit_ts_us, trace=None, changes=(), partial=partial)


def connected() -> LagMeter:
    meter = LagMeter(now=0)
    meter.note_applied(Position(1, 5))
    meter.note_connected(RegionName("us-east"))
    return meter


def test_a_view_that_has_applied_everything_received_has_no_lag() -> None:
    meter = connected()
    meter.note_received(transaction(10, 0), now=1)
    meter.note_applied(Position(1, 10))
    assert meter.lag_ms(now=9, now_us=9 * SECOND_US) == 0


def test_the_lag_is_the_age_of_the_oldest_change_that_is_not_applied() -> None:
    meter = connected()
    meter.note_received(transaction(10, 1 * SECOND_US), now=1)
    meter.note_received(transaction(20, 3 * SECOND_US), now=3)
    assert meter.lag_ms(now=5, now_us=5 * SECOND_US) == 4000
    meter.note_applied(Position(1, 10))
    assert meter.lag_ms(now=5, now_us=5 * SECOND_US) == 2000


def test_the_lag_grows_with_the_silence_while_no_stream_is_open() -> None:
    meter = connected()
    meter.note_received(Progress(position=Position(1, 5), sent_at_us=0), now=2)
    meter.note_disconnected("cut off")
    assert (meter.connected, meter.trouble) == (False, "cut off")
    assert meter.lag_ms(now=5, now_us=0) == 3000


def test_the_lag_grows_from_the_start_before_anything_was_received() -> None:
    meter = LagMeter(now=1)
    assert meter.lag_ms(now=3, now_us=0) == 2000
    meter.note_connected(RegionName("us-east"))
    assert meter.lag_ms(now=4, now_us=0) == 3000


def test_the_lag_is_never_negative_when_clocks_disagree() -> None:
    meter = connected()
    meter.note_received(transaction(10, 100 * SECOND_US), now=1)
    assert meter.lag_ms(now=1, now_us=SECOND_US) == 0


def test_items_that_a_restart_drops_do_not_count_as_lag() -> None:
    meter = connected()
    meter.note_received(transaction(10, 0), now=1)
    meter.note_received(transaction(15, 0, partial=True), now=1)
    meter.note_restarted()
    meter.note_applied(Position(1, 10))
    assert meter.lag_ms(now=9, now_us=9 * SECOND_US) == 0


def test_the_lag_grows_during_a_snapshot_until_its_end_is_applied() -> None:
    meter = connected()
    east = RegionName("us-east")
    meter.note_snapshot(east, now=10)
    meter.note_received(transaction(50, 11 * SECOND_US, partial=True), now=11)
    assert meter.lag_ms(now=12, now_us=12 * SECOND_US) == 2000
    meter.note_disconnected("cut off")
    meter.note_snapshot(east, now=13)
    assert meter.lag_ms(now=14, now_us=14 * SECOND_US) == 4000, "a second one for the same changes"
    meter.note_received(transaction(60, 14 * SECOND_US), now=14)
    meter.note_connected(east)
    assert meter.takes_snapshot, "its end was received and not applied"
    meter.note_applied(Position(1, 60))
    assert not meter.takes_snapshot
    assert meter.lag_ms(now=15, now_us=15 * SECOND_US) == 0


def test_a_snapshot_ends_when_a_stream_of_changes_opens_instead() -> None:
    meter = connected()
    meter.note_snapshot(RegionName("us-east"), now=10)
    meter.note_connected(RegionName("us-east"))
    assert not meter.takes_snapshot
