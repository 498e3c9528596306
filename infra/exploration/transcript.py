"""Writes a counterexample as text, one line for each move, in the order of the moves."""

from collections.abc import Iterator

from infra.exploration.canonical_text import REGIONS
from infra.exploration.search import Counterexample
from infra.exploration.state_space import Label, State, StateSpace
from regions.failover.events import Gossip


def transcript(space: StateSpace, found: Counterexample) -> Iterator[str]:
    """Yield the lines of a counterexample."""
    for number, (label, state) in enumerate(found.path, 1):
        yield f"{number:3}  {describe(space, label):70} {_regions(state)}"
    yield f"{len(found.path) + 1:3}  {describe(space, found.label)}"
    yield f"     VIOLATION: {found.what}"


def describe(space: StateSpace, label: Label) -> str:
    """Describe one move in words; a violation in an answer that etcd gives at once has no label of its own."""
    if not label:
        return "the next move"
    verb, region, *details = label
    who = "" if region < 0 else f"{REGIONS[region]} "
    match verb, details:
        case (("sees" | "reads" | "reads for strong reads"), [0, -1]):
            return f"{who}{verb}: there is no record"
        case (("sees" | "reads" | "reads for strong reads"), [revision, number]):
            return f"{who}{verb} revision {revision}: {_record(space, number)}"
        case "etcd applies a late swap", [number]:
            return f"etcd applies a late swap: {_record(space, number)}"
        case "hears", [sender, gossip]:
            return f"{who}hears {REGIONS[sender]}: {_gossip_text(gossip)}"
        case "receives", [source, lsn]:
            return f"{who}has WAL up to {lsn} from {REGIONS[source]}, and confirms it"
        case _:
            return " ".join([who.rstrip(), verb, *(str(one) for one in details if one != "")]).strip()


def _record(space: StateSpace, number: int) -> str:
    record = space.record(number)
    return f"epoch {record.epoch}, {record.leader} {record.phase}"


def _gossip_text(gossip: Gossip) -> str:
    parts = [f"epoch {gossip.epoch}"]
    if gossip.suspects:
        parts.append(f"suspects the leader of epoch {gossip.suspects}")
    if gossip.vote is not None:
        parts.append(f"votes at {gossip.vote.position.epoch}:{gossip.vote.position.lsn}")
    return ", ".join(parts)


def _regions(state: State) -> str:
    return "  ".join(_region(state, region) for region in range(len(REGIONS)))


def _region(state: State, region: int) -> str:
    node, member = state.nodes[region], state.members[region].value
    agent = "down" if node.machine is None else node.machine.state
    wal = "".join({"fence": "F", "write": "W", "promotion": "P"}[one.kind] + str(one.number) for one in member.wal)
    admitted_epoch = "*" if node.admitted_epoch else ""
    return f"{REGIONS[region]}{admitted_epoch}={agent}/{member.kind}:{wal}"
