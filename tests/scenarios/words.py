"""Writes an effect of a core as one line of a transcript, and names the requests that a command can answer."""

from dataclasses import fields
from typing import assert_never

from regions.failover.effects import (
    AnswerOrder,
    AnswerStrongReads,
    CopyLedger,
    DrainLedger,
    Effect,
    FollowLedger,
    FreezeLedger,
    GossipChanged,
    InitialiseLedger,
    LedgerEffect,
    Log,
    PromoteLedger,
    ReadRecord,
    RewindLedger,
    SetQuorum,
    StartServing,
    StopLedger,
    StopServing,
    StorePromise,
    SwapRecord,
    WatchLeader,
    WriteFence,
)
from regions.failover.events import Promise
from regions.leadership import Leadership, Succession
from regions.position import Position

Asked = ReadRecord | SwapRecord | StorePromise | LedgerEffect
"""An effect that is answered."""

NAMES: dict[type[Asked], str] = {
    ReadRecord: "read",
    SwapRecord: "swap",
    StorePromise: "store",
    InitialiseLedger: "initialise",
    FreezeLedger: "freeze",
    SetQuorum: "quorum",
    PromoteLedger: "promote",
    WriteFence: "fence",
    FollowLedger: "follow",
    RewindLedger: "rewind",
    CopyLedger: "copy",
    DrainLedger: "drain",
    StopLedger: "stop",
}


def text_of(  # noqa: C901, PLR0911, PLR0912 - one line an effect
    effect: Effect, known: Leadership | None
) -> str | None:
    """Return an effect as a line, or None for one that transcripts omit: gossip, watches, messages of level info."""
    match effect:
        case Log(level=level, text=text):
            return None if level == "info" else f"{level}: {text}"
        case GossipChanged() | WatchLeader():
            return None
        case ReadRecord(linearizable=linearizable):
            return "read" if linearizable else "read any"
        case SwapRecord(expected_revision=revision, record=record):
            return f"swap r{revision}: {_changes(record, known)}"
        case StorePromise(promise=promise):
            return f"store {promise_text(promise)}"
        case SetQuorum(epoch=epoch, standbys=standbys, required=required):
            return f"quorum for {epoch}: {required} of {' '.join(standbys)}"
        case FollowLedger(epoch=epoch, leader=leader):
            return f"follow {leader} for {epoch}"
        case RewindLedger(epoch=epoch, leader=leader):
            return f"rewind from {leader} for {epoch}"
        case CopyLedger(epoch=epoch, leader=leader):
            return f"copy from {leader} for {epoch}"
        case DrainLedger(epoch=epoch, target=target):
            return f"drain to {target} for {epoch}"
        case InitialiseLedger(epoch=epoch) | FreezeLedger(epoch=epoch) | PromoteLedger(epoch=epoch):
            return f"{NAMES[type(effect)]} for {epoch}"
        case WriteFence(epoch=epoch) | StopLedger(epoch=epoch):
            return f"{NAMES[type(effect)]} for {epoch}"
        case StartServing(epoch=epoch):
            return f"OPENS WRITES under {epoch}"
        case StopServing(epoch=epoch):
            return f"CLOSES WRITES under {epoch}"
        case AnswerStrongReads(requests=requests, current=current):
            return f"answers reads {' '.join(map(str, requests))}: {'current' if current else 'may be stale'}"
        case AnswerOrder(ticket=ticket, refused=refused):
            return f"answers order {ticket}: {'done' if refused is None else 'refused, ' + refused}"
        case _:
            assert_never(effect)


def promise_text(promise: Promise) -> str:
    """Return a promise as transcripts write it."""
    parts = (("lineage", promise.lineage), ("floor", promise.floor), ("copying", promise.copying))
    return ", ".join([str(promise.epoch), *(f"{name} {epoch}" for name, epoch in parts if epoch)])


def _changes(record: Leadership, known: Leadership | None) -> str:
    """The fields of the record that a swap changes, and the reason if it begins an epoch."""
    names = [one.name for one in fields(record) if one.name not in ("since", "fence_id", "reason")]
    empty = {**dict.fromkeys(names), **dict.fromkeys(("joining", "drained", "ancestry"), ()), "automatic": True}
    before = empty if known is None else {name: getattr(known, name) for name in names}
    changed = [f"{name} {_value(getattr(record, name))}" for name in names if getattr(record, name) != before[name]]
    begins = known is None or record.epoch != known.epoch
    return (", ".join(changed) or "the same again") + (f" ({record.reason})" if begins else "")


def _value(value: str | int | bool | Succession | Position | tuple[object, ...] | None) -> str:
    match value:
        case None:
            return "nobody"
        case bool():
            return "yes" if value else "no"
        case Succession(region=region):
            return region
        case Position(epoch=epoch, lsn=lsn):
            return f"{epoch}:{lsn:X}"
        case tuple():
            return "+".join(map(str, value)) or "nobody"
        case _:
            return str(value)
