"""Changes facts by what comes from etcd and by releases: records, reads, outcomes of swaps.

A release of the leader begins the next epoch before etcd has it (rule 20), so the record that the agent acts by is
computed from both.
"""

from dataclasses import replace

from regions.failover import rules
from regions.failover.effects import AnswerStrongReads, FreezeLedger, SetQuorum
from regions.failover.events import RecordRead, Release, SwapAnswered, Ticket
from regions.failover.facts import Retry
from regions.failover.handover import Announcing, Draining, Preparing, RestartDelayed
from regions.failover.turn import Turn
from regions.leadership import Leadership


def learn(turn: Turn, revision: int, record: Leadership) -> None:
    """Take a record of etcd, if it is newer than the known one."""
    etcd = turn.facts.etcd
    if revision > etcd.revision:
        etcd.record, etcd.revision = record, revision
        _adopt(turn, rules.effective_record(record, revision, turn.facts.release))


def hear_release(turn: Turn, release: Release | None) -> None:
    """Take a release: it begins the next epoch, as soon as the record that names the successor is known (rule 20)."""
    facts = turn.facts
    if release is None or (facts.release is not None and facts.release.epoch >= release.epoch):
        return
    facts.release = release
    if release.revision > facts.etcd.revision:
        turn.read_again()
    elif facts.etcd.record is not None:
        _adopt(turn, rules.effective_record(facts.etcd.record, facts.etcd.revision, release))


def _adopt(turn: Turn, record: Leadership) -> None:
    """Act by another record from now on."""
    facts, known = turn.facts, turn.facts.record
    assert known is None or record.epoch >= known.epoch, "an epoch in etcd never goes back"
    facts.record = record
    if known is not None and known.voters != record.voters and facts.resize is not None:
        # An earlier swap of its own has succeeded after all.
        done = facts.resize[0] == record.voters
        turn.end_resize(None if done else "other voters were recorded meanwhile: ask again")
    acts_differently = known is None or (known.epoch, known.phase, known.leader) != (
        record.epoch,
        record.phase,
        record.leader,
    )
    if acts_differently:
        facts.record_since, facts.peers.leader_suspected_since = turn.now, None
        facts.requests.ledger_retry = facts.requests.etcd_retry = Retry()
    if known is not None and record.automatic and not known.automatic:
        # A leader that was suspected during the pause is acted upon from now on, so the head starts count from now.
        facts.peers.leader_suspected_since = None
    if known is None or known.epoch != record.epoch:
        _begin_epoch(turn, record)
    delays = record.phase == "promoting" and record.handed_over_at is not None
    if isinstance(facts.handover, RestartDelayed) and not delays:
        turn.move_handover(None)
    if record.phase == "promoting" and acts_differently:
        turn.log("info", f"epoch {record.epoch}: {record.leader} was chosen")
    if record.phase == "serving" and acts_differently:
        turn.log("info", f"epoch {record.epoch}: {record.leader} serves")
        if known is not None and known.phase == "promoting" and record.target is None:
            facts.failovers = (*facts.failovers, turn.now)[-facts.settings.failovers_max :]


def _begin_epoch(turn: Turn, record: Leadership) -> None:
    facts, member, requests = turn.facts, turn.facts.member, turn.facts.requests
    turn.stop_serving()
    prepares = isinstance(facts.handover, Preparing)
    prepared = prepares and record.handed_over_at is not None
    working = requests.working
    # What was frozen while the leader drained stays frozen, and what is being frozen will be; so does its quorum.
    if prepared and working is not None and isinstance(working.effect, FreezeLedger | SetQuorum):
        working = requests.working = replace(working, effect=replace(working.effect, epoch=record.epoch))
    if member.frozen_vote is not None and prepared and (working is None or isinstance(working.effect, SetQuorum)):
        member.frozen_vote = replace(member.frozen_vote, epoch=record.epoch)
    else:
        member.frozen_vote = member.quorum = None
    if prepares:
        turn.move_handover(None)
    member.fence = None
    member.diverged = False
    member.rebuilt_epoch = member.quorum_commit = 0
    member.standbys = frozenset()
    if facts.switchover is not None:
        turn.end_switchover(None if record.target == facts.switchover.order.region else "another epoch began")
    turn.end_resize("another epoch began")
    turn.log("info", f"epoch {record.epoch}: {record.leader} {record.phase}: {record.reason}")


def take_read(turn: Turn, event: RecordRead) -> None:
    """Take the answer to a read of the record."""
    facts, requests = turn.facts, turn.facts.requests
    if requests.strong_reading is not None and requests.strong_reading.ticket == event.ticket:
        proven = rules.proves_leadership(event.record, facts.member.serving_epoch, facts.region)
        turn.effects.append(AnswerStrongReads(requests=requests.strong_reading.strong, current=proven))
        requests.strong_reading = None
        _settle_previous_run(turn, event, linearizable=True)
    elif requests.reading is not None and requests.reading.ticket == event.ticket:
        _settle_previous_run(turn, event, linearizable=requests.reading.linearizable)
        if requests.reading.linearizable:
            facts.etcd.must_read = facts.outdated = False
            _compare_with_promise(turn, event)
        requests.reading, facts.etcd.was_read = None, True
    else:
        return
    if event.record is not None:
        learn(turn, event.revision, event.record)


def _settle_previous_run(turn: Turn, read: RecordRead, *, linearizable: bool) -> None:
    """Of the swaps that a previous run has asked for, only one that expects the newest revision can still succeed."""
    etcd = turn.facts.etcd
    if etcd.unsettled_revision is None and rules.shows_newest(linearizable=linearizable):
        etcd.unsettled_revision = read.revision


def _compare_with_promise(turn: Turn, read: RecordRead) -> None:
    """An etcd that is behind this region's own promise has lost data; the agent asks it again, slowly.

    An exception: a region that has promised the epoch of a hand-over, which begins without etcd, may be ahead of it.
    """
    facts, promise = turn.facts, turn.facts.member.promise
    known = 0 if read.record is None else rules.next_epoch(read.record) - 1
    if promise is None or promise.epoch <= known:
        facts.requests.etcd_retry = Retry()
    else:
        turn.pause_etcd(f"etcd knows epoch {known}, but {promise.epoch} was promised: restore etcd's data")


def take_failed_read(turn: Turn, ticket: Ticket) -> None:
    """Handle a read of the record that got no answer."""
    requests = turn.facts.requests
    if requests.strong_reading is not None and requests.strong_reading.ticket == ticket:
        turn.effects.append(AnswerStrongReads(requests=requests.strong_reading.strong, current=False))
        requests.strong_reading = None
    elif requests.reading is not None and requests.reading.ticket == ticket:
        requests.reading = None
        turn.pause_etcd("etcd does not answer")


def take_swap(turn: Turn, event: SwapAnswered) -> None:
    """Take the outcome of a swap of the record."""
    facts, swapping = turn.facts, turn.facts.requests.swapping
    if swapping is None or swapping.ticket != event.ticket:
        return
    facts.requests.swapping = None
    if event.outcome == "applied":
        learn(turn, event.revision, swapping.record)
        facts.etcd.unsettled_revision = 0
        _note_announcement(turn, swapping.record, event.revision)
        if swapping.order is not None:
            turn.answer(swapping.order, None)
        return
    if event.outcome == "unknown" and facts.etcd.unsettled_revision is not None:
        facts.etcd.unsettled_revision = swapping.expected
    # Rule 9: neither the loser of a swap nor one whose answer was lost knows what the record is now.
    turn.read_again()
    if swapping.order is not None:
        turn.answer(swapping.order, "the record changed meanwhile, or etcd did not answer: ask again")
    announces = isinstance(facts.handover, Announcing) and swapping.record.succession is not None
    if announces and event.outcome == "unknown":
        turn.end_switchover("etcd did not take the switch: ask again")


def _note_announcement(turn: Turn, record: Leadership, revision: int) -> None:
    """Begin to drain: its own swap named the successor, so no earlier swap of its own can succeed any more."""
    facts, handover = turn.facts, turn.facts.handover
    if not isinstance(handover, Announcing) or record.succession is None:
        return
    if record.succession.region == handover.order.region and facts.etcd.revision == revision:
        turn.move_handover(Draining(order=handover.order, revision=revision))
        turn.stop_serving()
