"""Changes facts by the gossip of other agents, and by the detector's suspicion of them."""

from regions.failover import rules, steps
from regions.failover.events import Gossip, SuspicionChanged
from regions.failover.handover import Preparing
from regions.failover.record_changes import hear_release
from regions.failover.turn import Turn
from regions.identity import RegionName


def take_verdict(turn: Turn, event: SuspicionChanged) -> None:
    """Handle a change of the detector's suspicion of a region."""
    peers = turn.facts.peers
    others = peers.suspected - {event.region}
    peers.suspected = others | {event.region} if event.suspected else others


def take_gossip(turn: Turn, sender: RegionName, gossip: Gossip) -> None:
    """Take the newest gossip of another agent."""
    facts, peers = turn.facts, turn.facts.peers
    heard = [one.epoch for one in peers.gossip.values()]
    peers.gossip = {**peers.gossip, sender: gossip}
    hear_release(turn, gossip.release)
    _note_drained_leader(turn, sender, gossip)
    if facts.record is not None and gossip.epoch > max([facts.record.epoch, *heard]):
        # The heartbeat has overtaken the watch. The nearest etcd member may lag as well, so the read is linearizable.
        # A read that began after another agent's gossip named this epoch is new enough.
        turn.read_again()


def _note_drained_leader(turn: Turn, sender: RegionName, gossip: Gossip) -> None:
    """As the successor, prepare for the hand-over while the leader has drained, and no longer when it goes on."""
    facts, record = turn.facts, turn.facts.record
    if record is None or record.leader != sender:
        return
    succeeds = record.succession is not None and record.succession.region == facts.region
    prepares = isinstance(facts.handover, Preparing)
    if not succeeds or gossip.drained != record.epoch:
        if prepares:
            turn.move_handover(None)
    elif not prepares:
        # The deadline is for an agent that dies after this gossip: its PostgreSQL may continue to lead.
        turn.move_handover(Preparing(until=turn.now + facts.settings.stall_s))


def note_agreement(turn: Turn) -> None:
    """Note since when enough regions suspect the leader."""
    facts, peers, record = turn.facts, turn.facts.peers, turn.facts.record
    agreed = record is not None and steps.count_suspecting_regions(facts, record) >= facts.settings.observers_min
    if not agreed:
        peers.leader_suspected_since = None
    elif peers.leader_suspected_since is None:
        assert record is not None, "a suspicion needs a record"
        peers.leader_suspected_since = turn.now
        turn.log("warning", f"epoch {record.epoch}: {record.leader} is silent, and others agree")


def note_majority(turn: Turn) -> None:
    """Log when a voter no longer hears a majority of the voters, and when it does again (rule 1)."""
    facts, record = turn.facts, turn.facts.record
    alone = record is not None and facts.votes_here and not steps.may_be_heard(facts, record)
    if alone == facts.peers.in_minority:
        return
    facts.peers.in_minority = alone
    if record is not None and alone:
        heard, needed = ", ".join(steps.heard(facts, record)), rules.majority(record.voters)
        turn.log("error", f"epoch {record.epoch}: hears only {heard}; no failover until {needed} voters are heard")
    else:
        turn.log("info", "hears a majority of the voters again")
