"""Build ``Facts`` from flat field names, so that a test lists only the fields that it depends on."""

from dataclasses import fields
from typing import Any

from regions.failover.facts import EtcdFacts, Facts, MemberFacts, PeerFacts, Requests
from regions.failover.handover import Preparing, RestartDelayed, announcement, drained

_GROUPS = {"etcd": EtcdFacts, "member": MemberFacts, "peers": PeerFacts, "requests": Requests}
_PLACES = {
    **{field.name: (group, field.name) for group, kind in _GROUPS.items() for field in fields(kind)},
    "etcd_record": ("etcd", "record"),
}
_TOP = {field.name for field in fields(Facts)} - set(_GROUPS)


def facts_of(**known: Any) -> Facts:
    """Return facts with these values; ``etcd_record`` is the record in etcd, the others have their default."""
    top = {name: value for name, value in known.items() if name in _TOP}
    return with_facts(Facts(requests=Requests(last_ticket=1), **top), **known)


def with_facts(facts: Facts, **changes: Any) -> Facts:
    """Return a copy of ``facts`` with these changes."""
    twin = facts.snapshot()
    for name, value in changes.items():
        if name in _TOP:
            setattr(twin, name, value)
        else:
            group, field = _PLACES[name]
            setattr(getattr(twin, group), field, value)
    return twin


def announced_at(facts: Facts) -> int:
    """Return the revision with which a leader has announced its successor; 0 for none."""
    return 0 if facts.switchover is None else announcement(facts.switchover)


def drained_to(facts: Facts) -> int | None:
    """Return the LSN up to which the successor has all WAL; None before the drain is complete."""
    return drained(facts.handover)


def prepares_until(facts: Facts) -> float | None:
    """Return the end of the successor's preparation for the hand-over; None if it does not prepare."""
    return facts.handover.until if isinstance(facts.handover, Preparing) else None


def restart_delayed_until(facts: Facts) -> float | None:
    """Return the end of an old leader's restart delay; None if there is none."""
    return facts.handover.until if isinstance(facts.handover, RestartDelayed) else None
