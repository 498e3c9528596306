"""A member of the ledger as PostgreSQL would be: what it promises, and where it would deceive.

WAL is a tuple of entries and an LSN is a number of entries. The traps are those of failover.md: two promotions can
take the same timeline number, a standby on an equal number accepts what comes, a rewind between equal numbers does
nothing, one between others goes below what was acknowledged, a standby's ``synchronous_standby_names`` is empty,
a restart makes rows visible that no standby has, and after one the receive position is unknown. Regions are numbers.
"""

from typing import Literal, NamedTuple

LEDGER_KINDS = Literal["absent", "stopped", "standby", "primary"]


class Entry(NamedTuple):
    """A piece of WAL: ``fence`` and ``promotion`` carry an epoch, ``write`` the number of a client's request.

    ``by`` is the region whose primary wrote it: what two of them write is never the same, whatever it says.
    """

    timeline: int
    kind: Literal["fence", "write", "promotion"]
    number: int
    by: int


class Member(NamedTuple):
    """One PostgreSQL with its data.

    Attributes:
        kind: Whether and as what it runs.
        epoch: Under which epoch its agent made it a primary, or pointed it at one; 0 otherwise.
        wal: What is on its disk; everything is flushed before it is told to anybody.
        source: Whom it receives from, as a standby.
        names: Its ``synchronous_standby_names``, ascending; empty: it commits alone.
        required: How many of them.
        acks: What each standby has said that it flushed, since this primary runs, by region.
        began: How long the WAL was when it became primary.
        confirmed: Up to where commits have returned, and so are acknowledged and visible.
        restarted: Whether the receive position is NULL.
    """

    kind: LEDGER_KINDS = "absent"
    epoch: int = 0
    wal: tuple[Entry, ...] = ()
    source: int | None = None
    names: tuple[int, ...] = ()
    required: int = 0
    acks: tuple[int, int, int] = (0, 0, 0)
    began: int = 0
    confirmed: int = 0
    restarted: bool = False


ABSENT = Member()


def timeline(wal: tuple[Entry, ...]) -> int:
    """The timeline on which this WAL ends."""
    return wal[-1].timeline if wal else 1


def fences(wal: tuple[Entry, ...]) -> tuple[int, ...]:
    """The epochs of the fence rows, ascending."""
    return tuple(entry.number for entry in wal if entry.kind == "fence")


def stop(member: Member) -> Member:
    """Stop it; data and settings stay."""
    if member.kind == "absent":
        return member
    return Member(kind="stopped", wal=member.wal, names=member.names, required=member.required)


def initialise(member: Member, epoch: int) -> Member:
    """Run it as the first primary, empty if there was none."""
    if member.kind == "primary":
        return member
    return Member(kind="primary", epoch=epoch, wal=member.wal, began=len(member.wal), confirmed=len(member.wal))


def as_standby(member: Member, *, source: int | None, epoch: int) -> Member:
    """Run it as a standby of ``source``, or of nobody."""
    restarted = member.restarted or member.kind != "standby"
    return member._replace(
        kind="standby", source=source, epoch=epoch, acks=(0, 0, 0), began=0, confirmed=0, restarted=restarted
    )


def promote(member: Member, region: int, epoch: int) -> Member:
    """Make a primary of it, on the timeline number after the last that it knows."""
    assert member.kind == "standby", "only a standby is promoted"
    wal = (*member.wal, Entry(timeline(member.wal) + 1, "promotion", epoch, region))
    return Member(
        kind="primary", epoch=epoch, wal=wal, names=member.names, required=member.required,
        began=len(wal), confirmed=len(wal),
    )  # fmt: skip


def append(member: Member, region: int, kind: Literal["fence", "write"], number: int) -> Member:
    """Write a row on a primary, and flush it there."""
    return member._replace(wal=(*member.wal, Entry(timeline(member.wal), kind, number, region)))


def has(member: Member, kind: str, number: int) -> bool:
    """Whether a row is in its WAL."""
    return position(member, kind, number) is not None


def position(member: Member, kind: str, number: int) -> int | None:
    """Where the first such row ends in its WAL; None when there is none."""
    return next((lsn for lsn, one in enumerate(member.wal, 1) if one.kind == kind and one.number == number), None)


def accepts(standby: Member, primary: Member) -> bool:
    """Whether the standby can receive from this primary, as far as timelines tell."""
    mine, theirs = timeline(standby.wal), timeline(primary.wal)
    if mine == theirs:
        return len(standby.wal) <= len(primary.wal)
    forks = [at for at, entry in enumerate(primary.wal) if entry.timeline > mine]
    knows = mine == 1 or any(entry.timeline == mine for entry in primary.wal)
    return mine < theirs and knows and len(standby.wal) <= forks[0]


def receive(standby: Member, primary: Member) -> Member:
    """Receive and flush the next entry, whatever was there before; or confirm that there is none."""
    news = primary.wal[len(standby.wal) : len(standby.wal) + 1]
    return standby._replace(wal=(*standby.wal, *news), restarted=False)


def acknowledge(primary: Member, region: int, lsn: int) -> Member:
    """The primary hears what a standby has flushed."""
    acks = list(primary.acks)
    acks[region] = max(acks[region], lsn)
    return primary._replace(acks=(acks[0], acks[1], acks[2]))


def on_quorum(primary: Member) -> int:
    """Up to where commits may return."""
    if primary.required == 0 or not primary.names:
        return len(primary.wal)
    known = sorted((primary.acks[region] for region in primary.names), reverse=True)
    return min(known[primary.required - 1], len(primary.wal))


def rewind(member: Member, primary: Member) -> Member:
    """``pg_rewind``: nothing between equal timeline numbers, else back to a checkpoint long before the fork."""
    if timeline(member.wal) == timeline(primary.wal):
        return stop(member)
    shared = 0
    for mine, theirs in zip(member.wal, primary.wal, strict=False):
        if mine.timeline != theirs.timeline:
            break
        shared += 1
    return stop(member)._replace(wal=primary.wal[: min(shared, 1)])


def copy(primary: Member) -> Member:
    """``pg_basebackup``: what the primary had, and none of its settings."""
    return Member(kind="stopped", wal=primary.wal)
