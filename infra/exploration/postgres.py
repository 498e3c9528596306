"""Models a member of the ledger as an immutable value: the guarantees and the known traps of PostgreSQL.

WAL is a tuple of entries, an LSN is a number of entries, and a region is a number. The traps are those of failover.md:

* two promotions can take the same timeline number, and a standby on an equal number receives without a comparison;
* a rewind between equal timeline numbers does nothing, any other rewind goes below acknowledged WAL;
* a standby's ``synchronous_standby_names`` is empty until it is set;
* a restart makes rows visible that no standby has, and after it the receive position is unknown.
"""

from typing import Literal, NamedTuple

LEDGER_KINDS = Literal["absent", "stopped", "standby", "primary"]


class Entry(NamedTuple):
    """A WAL record.

    Attributes:
        timeline: The timeline on which it was written.
        kind: A fence row, the write of a client, or a promotion.
        number: The epoch of a fence row or promotion; the number of the client's request of a write.
        by: The region whose primary wrote it; records of different primaries are never equal.
    """

    timeline: int
    kind: Literal["fence", "write", "promotion"]
    number: int
    by: int


class Member(NamedTuple):
    """One PostgreSQL with its data.

    Attributes:
        kind: ``absent`` without data, ``stopped``, or the role in which it runs.
        epoch: The epoch in which its agent made it a primary, or connected it to one; 0 otherwise.
        wal: Its WAL, all of it flushed.
        source: The region from which it receives as a standby; None if it is frozen or no standby.
        standby_names: The regions in its ``synchronous_standby_names``, ascending; if empty, it commits alone.
        required: How many of ``standby_names`` a commit waits for.
        acks: The LSN that each region's standby has reported as flushed since this primary runs.
        confirmed: The LSN up to which commits have returned; those are acknowledged and visible.
        restarted: Whether the receive position is NULL.
    """

    kind: LEDGER_KINDS = "absent"
    epoch: int = 0
    wal: tuple[Entry, ...] = ()
    source: int | None = None
    standby_names: tuple[int, ...] = ()
    required: int = 0
    acks: tuple[int, int, int] = (0, 0, 0)
    confirmed: int = 0
    restarted: bool = False


ABSENT = Member()


def timeline(wal: tuple[Entry, ...]) -> int:
    """The timeline on which this WAL ends."""
    return wal[-1].timeline if wal else 1


def fence_epochs(wal: tuple[Entry, ...]) -> tuple[int, ...]:
    """The epochs of the fence rows, ascending."""
    return tuple(entry.number for entry in wal if entry.kind == "fence")


def stop(member: Member) -> Member:
    """Stop the member; its data and its standby names stay."""
    if member.kind == "absent":
        return member
    return Member(kind="stopped", wal=member.wal, standby_names=member.standby_names, required=member.required)


def initialise(member: Member, epoch: int) -> Member:
    """Start the member as the first primary of the cell, with empty data if it has none."""
    if member.kind == "primary":
        return member
    return Member(kind="primary", epoch=epoch, wal=member.wal, confirmed=len(member.wal))


def run_as_standby(member: Member, *, source: int | None, epoch: int) -> Member:
    """Run the member as a standby of ``source``, or frozen if ``source`` is None."""
    restarted = member.restarted or member.kind != "standby"
    return member._replace(kind="standby", source=source, epoch=epoch, acks=(0, 0, 0), confirmed=0, restarted=restarted)


def promote(member: Member, region: int, epoch: int) -> Member:
    """Promote the standby to primary, on the timeline number after its own."""
    assert member.kind == "standby", "only a standby is promoted"
    wal = (*member.wal, Entry(timeline(member.wal) + 1, "promotion", epoch, region))
    return Member(
        kind="primary", epoch=epoch, wal=wal, standby_names=member.standby_names, required=member.required,
        confirmed=len(wal),
    )  # fmt: skip


def append(member: Member, region: int, kind: Literal["fence", "write"], number: int) -> Member:
    """Write and flush a row on a primary."""
    return member._replace(wal=(*member.wal, Entry(timeline(member.wal), kind, number, region)))


def has_row(member: Member, kind: str, number: int) -> bool:
    """Whether a row is in the member's WAL."""
    return row_lsn(member, kind, number) is not None


def row_lsn(member: Member, kind: str, number: int) -> int | None:
    """The LSN at which the first such row ends in the member's WAL; None if there is none."""
    return next((lsn for lsn, one in enumerate(member.wal, 1) if one.kind == kind and one.number == number), None)


def accepts(standby: Member, primary: Member) -> bool:
    """Whether the primary lets the standby stream; it compares only timelines and LSN."""
    mine, theirs = timeline(standby.wal), timeline(primary.wal)
    if mine == theirs:
        return len(standby.wal) <= len(primary.wal)
    forks = [at for at, entry in enumerate(primary.wal) if entry.timeline > mine]
    knows = mine == 1 or any(entry.timeline == mine for entry in primary.wal)
    return mine < theirs and knows and len(standby.wal) <= forks[0]


def receive(standby: Member, primary: Member) -> Member:
    """Receive and flush the next entry, if there is one, without a comparison of earlier entries."""
    news = primary.wal[len(standby.wal) : len(standby.wal) + 1]
    return standby._replace(wal=(*standby.wal, *news), restarted=False)


def acknowledge(primary: Member, region: int, lsn: int) -> Member:
    """The primary receives the LSN that a standby has flushed."""
    acks = list(primary.acks)
    acks[region] = max(acks[region], lsn)
    return primary._replace(acks=(acks[0], acks[1], acks[2]))


def quorum_lsn(primary: Member) -> int:
    """The LSN up to which commits may return."""
    if primary.required == 0 or not primary.standby_names:
        return len(primary.wal)
    known = sorted((primary.acks[region] for region in primary.standby_names), reverse=True)
    return min(known[primary.required - 1], len(primary.wal))


def rewind(member: Member, primary: Member) -> Member:
    """``pg_rewind``: does nothing between equal timeline numbers; else goes back to a checkpoint before the fork."""
    if timeline(member.wal) == timeline(primary.wal):
        return stop(member)
    shared = 0
    for mine, theirs in zip(member.wal, primary.wal, strict=False):
        if mine.timeline != theirs.timeline:
            break
        shared += 1
    return stop(member)._replace(wal=primary.wal[: min(shared, 1)])


def copy(primary: Member) -> Member:
    """``pg_basebackup``: the primary's WAL, without its settings."""
    return Member(kind="stopped", wal=primary.wal)
