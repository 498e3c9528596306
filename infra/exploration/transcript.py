"""Writes a counterexample as text, one line for each move, in the order of the moves."""

from collections.abc import Iterator

from infra.exploration.describe import REGIONS
from infra.exploration.search import Counterexample
from infra.exploration.world import Label, State, World
from regions.failover.events import Gossip


def transcript(world: World, found: Counterexample) -> Iterator[str]:
    """Yield the lines of a counterexample."""
    for number, (label, state) in enumerate(found.path, 1):
        yield f"{number:3}  {describe(world, label):70} {_stand(state)}"
    yield f"{len(found.path) + 1:3}  {describe(world, found.label)}"
    yield f"     VIOLATION: {found.what}"


def describe(world: World, label: Label) -> str:
    """Describe one move in words."""
    verb, region, *details = label
    who = "" if region < 0 else f"{REGIONS[region]} "
    match verb, details:
        case (("sees" | "reads" | "reads for strong reads"), [0, -1]):
            return f"{who}{verb}: there is no record"
        case (("sees" | "reads" | "reads for strong reads"), [revision, number]):
            return f"{who}{verb} revision {revision}: {_record(world, number)}"
        case "etcd applies a late swap", [number]:
            return f"etcd applies a late swap: {_record(world, number)}"
        case "hears", [sender, word]:
            return f"{who}hears {REGIONS[sender]}: {_word(word)}"
        case "receives", [source, lsn]:
            return f"{who}has WAL up to {lsn} from {REGIONS[source]}, and confirms it"
        case _:
            return " ".join([who.rstrip(), verb, *(str(one) for one in details if one != "")]).strip()


def _record(world: World, number: int) -> str:
    record = world.record(number)
    return f"epoch {record.epoch}, {record.leader} {record.phase}"


def _word(word: Gossip) -> str:
    parts = [f"epoch {word.epoch}"]
    if word.suspects:
        parts.append(f"suspects the leader of epoch {word.suspects}")
    if word.vote is not None:
        parts.append(f"votes at {word.vote.position.epoch}:{word.vote.position.lsn}")
    return ", ".join(parts)


def _stand(state: State) -> str:
    return "  ".join(_region(state, region) for region in range(len(REGIONS)))


def _region(state: State, region: int) -> str:
    node, member = state.nodes[region], state.members[region].value
    agent = "down" if node.machine is None else node.machine.state
    wal = "".join({"fence": "F", "write": "W", "promotion": "P"}[one.kind] + str(one.number) for one in member.wal)
    gate = "*" if node.gate else ""
    return f"{REGIONS[region]}{gate}={agent}/{member.kind}:{wal}"
