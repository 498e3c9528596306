"""The failover machine of one cell in one region: an event in, effects out.

``handle`` changes the facts by the event and then asks ``steps.py`` what is to be done, so that it does not
matter in which order news arrives or where a crash has left things. It has no clock, no I/O and no luck: the
same events at the same times give the same effects. Who drives it promises to perform the effects as
``effects.py`` says, to tell ``Tick`` at ``next_deadline``, and to tell ``Started`` first.

This is the only file in which facts change. Source: failover.md; ``rules.py`` has the rules.
"""

import copy
from dataclasses import replace
from typing import Literal, assert_never

from regions.failover import claims, orders, rules, steps
from regions.failover.effects import (
    Acting,
    AnswerOrder,
    AnswerStrongReads,
    CopyLedger,
    DrainLedger,
    Effect,
    FollowLedger,
    FreezeLedger,
    Gossiped,
    InitialiseLedger,
    LedgerEffect,
    PromoteLedger,
    ReadRecord,
    RewindLedger,
    SetQuorum,
    StartServing,
    StopLedger,
    StopServing,
    StorePromise,
    SwapRecord,
    Told,
    WriteFence,
)
from regions.failover.events import (
    Event,
    FenceWritten,
    Gossip,
    GossipHeard,
    Lagged,
    LedgerAnswer,
    LedgerDone,
    LedgerDrained,
    LedgerEnded,
    LedgerFailed,
    LedgerFound,
    LedgerFrozen,
    Order,
    Promise,
    PromiseFailed,
    PromiseStored,
    QuorumCommit,
    ReadFailed,
    RecordRead,
    RecordSeen,
    Release,
    StandbysStreaming,
    Started,
    StrongReads,
    SwapAnswered,
    Tick,
    Ticket,
    Verdict,
    Vote,
    WaitCutShort,
)
from regions.failover.facts import Facts, Reading, Retry, Storing, Swapping, Working
from regions.failover.settings import CellRegions, Settings
from regions.failover.states import TRANSITIONS, State, state_of
from regions.identity import Epoch, RegionName
from regions.leadership import ANCESTRY_MAX, Leadership

STRONG_READS_MAX = 1000
"""Strong reads that may wait for one read of etcd; more are answered as not current at once."""


class Machine:
    """One cell as one region's agent sees it."""

    __slots__ = ("_acting", "_due", "_effects", "_facts", "_gossiped", "state")

    def __init__(self, *, region: RegionName, cell: CellRegions, settings: Settings, first_ticket: Ticket) -> None:
        """Make a machine that waits for ``Started``.

        Args:
            region: Its own region.
            cell: The regions of the cell.
            settings: The numbers.
            first_ticket: Above every ticket that an earlier incarnation of this agent may have used.
        """
        self._facts = Facts(region=region, cell=cell, settings=settings, next_ticket=first_ticket)
        self._effects: list[Effect] = []
        self._gossiped = Gossip()
        self._acting: tuple[RegionName | None, bool] = (None, False)
        self.state: State = "starting"
        self._due: float | None = None

    @property
    def facts(self) -> Facts:
        """What it knows; to be looked at, never to be changed."""
        return self._facts

    @property
    def gossip(self) -> Gossip:
        """What its next heartbeat says about the cell."""
        return self._gossiped

    def clone(self) -> "Machine":
        """Return a machine that goes its own way from here."""
        twin = copy.copy(self)
        twin._facts = copy.copy(self._facts)  # noqa: SLF001 - its own class
        return twin

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Take an event and return what is to be done.

        Args:
            event: What happened. ``Started`` comes first, and once.
            now: Monotonic seconds; never less than at the call before.
        """
        assert self._facts.started != isinstance(event, Started), "Started comes first, and once"
        self._effects = []
        self._take(event, now)
        self._expire(now)
        self._note_agreement(now)
        self._note_majority()
        self._advance(now)
        self._settle()
        self._due = self._deadline()
        return self._effects

    def next_deadline(self) -> float | None:
        """Return when ``Tick`` is due if nothing happens before; None: not at all."""
        return self._due

    def _deadline(self) -> float | None:
        facts = self._facts
        requests = (facts.reading, facts.swapping, facts.storing, facts.working, facts.strong_reading)
        times = [one.until for one in requests if one is not None]
        times += [until for until in (facts.relieved_until, facts.resting_until) if until is not None]
        times += [retry.at for retry in (facts.ledger_retry, facts.etcd_retry) if retry.at is not None]
        if facts.swapping is None and not facts.reread and facts.etcd_retry.at is None:
            due = claims.next_deadline(facts)
            if due is not None:
                times.append(due)
        return min(times, default=None)

    # What an event means for the facts.

    def _take(self, event: Event, now: float) -> None:  # noqa: C901, PLR0912 - one line an event
        match event:
            case Started():
                self._start(event)
            case Tick():
                pass
            case RecordSeen(revision=revision, record=record):
                self._learn(revision, record, now)
            case RecordRead():
                self._take_read(event, now)
            case ReadFailed(ticket=ticket):
                self._take_failed_read(ticket, now)
            case SwapAnswered():
                self._take_swap(event, now)
            case PromiseStored(ticket=ticket):
                self._take_stored(ticket)
            case PromiseFailed(ticket=ticket, reason=reason):
                if self._facts.storing is not None and self._facts.storing.ticket == ticket:
                    self._facts.storing = None
                    self._pause_ledger(now, f"the promise cannot be stored: {reason}")
            case LedgerFrozen() | FenceWritten() | LedgerDrained() | LedgerDone() | LedgerFailed():
                self._take_ledger_answer(event, now)
            case LedgerEnded():
                self._take_end()
            case WaitCutShort(epoch=epoch):
                self._take_cut(epoch)
            case StandbysStreaming(regions=regions):
                self._facts.standbys = regions
            case GossipHeard(sender=sender, gossip=gossip):
                self._take_gossip(sender, gossip, now)
            case Verdict(region=region, suspected=suspected):
                others = self._facts.suspected - {region}
                self._facts.suspected = others | {region} if suspected else others
            case QuorumCommit(lsn=lsn):
                self._facts.commit = max(self._facts.commit, lsn)
            case Lagged():
                # Rule 2: an agent that was away reads the epoch again before it acts.
                self._facts.doubtful = True
                self._read_again()
            case StrongReads(requests=requests):
                self._take_strong_reads(requests)
            case Order():
                self._take_order(event, now)
            case _:
                assert_never(event)

    def _start(self, event: Started) -> None:
        facts = self._facts
        facts.started, facts.promise, facts.ledger = True, event.promise, event.ledger
        if event.promise is None and event.ledger is not None:
            self._refuse("the promise of this member cannot be read: remove its data as well, and it is copied anew")
        if event.promise == Promise():
            # A disk that was replaced has forgotten what it promised. etcd has not, if all of it is asked.
            facts.doubtful = True
            self._read_again()

    def _learn(self, revision: int, record: Leadership, now: float) -> None:
        facts = self._facts
        if revision > facts.revision:
            facts.stored, facts.revision = record, revision
            self._adopt(rules.meaning(record, revision, facts.release), now)

    def _hear_release(self, release: Release | None, now: float) -> None:
        """Take a release: with the record it is the next epoch, as soon as that record is known (rule 20)."""
        facts = self._facts
        if release is None or (facts.release is not None and facts.release.epoch >= release.epoch):
            return
        facts.release = release
        if release.revision > facts.revision:
            self._read_again()
        elif facts.stored is not None:
            self._adopt(rules.meaning(facts.stored, facts.revision, release), now)

    def _adopt(self, record: Leadership, now: float) -> None:
        """Act by another record from now on."""
        facts, known = self._facts, self._facts.record
        assert known is None or record.epoch >= known.epoch, "an epoch in etcd never goes back"
        facts.record = record
        if known is not None and known.voters != record.voters and facts.resize is not None:
            # An earlier swap of its own has taken place after all.
            done = facts.resize[0] == record.voters
            self._end_resize(None if done else "other voters were recorded meanwhile: ask again")
        acts_differently = known is None or (known.epoch, known.phase, known.leader) != (
            record.epoch,
            record.phase,
            record.leader,
        )
        if acts_differently:
            facts.record_at, facts.agreed_at = now, None
            facts.ledger_retry = facts.etcd_retry = Retry()
        if known is not None and record.automatic and not known.automatic:
            # Who was suspected all along is acted upon from here on, so that head starts count from here on.
            facts.agreed_at = None
        if known is None or known.epoch != record.epoch:
            self._begin_epoch(record)
        if record.phase != "promoting" or record.handed_over_at is None:
            facts.resting_until = None
        if record.phase == "promoting" and acts_differently:
            self._tell("info", f"epoch {record.epoch}: {record.leader} was chosen")
        if record.phase == "serving" and acts_differently:
            self._tell("info", f"epoch {record.epoch}: {record.leader} serves")
            if known is not None and known.phase == "promoting" and record.target is None:
                facts.failovers = (*facts.failovers, now)[-facts.settings.failovers_max :]

    def _begin_epoch(self, record: Leadership) -> None:
        facts = self._facts
        if facts.serving_epoch:
            self._close()
        relieved = record.handed_over_at is not None and facts.relieved_until is not None
        working = facts.working
        # What was frozen for the predecessor is frozen, and what is being frozen will be; and so with its quorum.
        if relieved and working is not None and isinstance(working.effect, FreezeLedger | SetQuorum):
            working = facts.working = replace(working, effect=replace(working.effect, epoch=record.epoch))
        if facts.frozen is not None and relieved and (working is None or isinstance(working.effect, SetQuorum)):
            facts.frozen = replace(facts.frozen, epoch=record.epoch)
        else:
            facts.frozen = facts.quorum = None
        facts.relieved_until = None
        facts.fence = None
        facts.diverged = False
        facts.rebuilt = facts.commit = 0
        facts.standbys = frozenset()
        if facts.handover is not None:
            self._end_handover(None if record.target == facts.handover.region else "another epoch began")
        self._end_resize("another epoch began")
        self._tell("info", f"epoch {record.epoch}: {record.leader} {record.phase}: {record.reason}")

    def _take_read(self, event: RecordRead, now: float) -> None:
        facts = self._facts
        if facts.strong_reading is not None and facts.strong_reading.ticket == event.ticket:
            proven = rules.proves_leadership(event.record, facts.serving_epoch, facts.region)
            self._effects.append(AnswerStrongReads(requests=facts.strong_reading.strong, current=proven))
            facts.strong_reading = None
            self._settle_previous_run(event, linearizable=True)
        elif facts.reading is not None and facts.reading.ticket == event.ticket:
            self._settle_previous_run(event, linearizable=facts.reading.linearizable)
            if facts.reading.linearizable:
                facts.reread = facts.doubtful = False
                self._compare_with_promise(event, now)
            facts.reading, facts.record_read = None, True
        else:
            return
        if event.record is not None:
            self._learn(event.revision, event.record, now)

    def _settle_previous_run(self, read: RecordRead, *, linearizable: bool) -> None:
        """Of all that a previous run has asked of etcd, only what expects the newest revision can succeed yet."""
        if self._facts.unsettled is None and rules.shows_newest(linearizable=linearizable):
            self._facts.unsettled = read.revision

    def _compare_with_promise(self, read: RecordRead, now: float) -> None:
        """An etcd that is behind this region's own promise has lost data; it is asked again, slowly.

        It has not when it promised the next epoch, which begins without it: then another soon begins.
        """
        facts = self._facts
        known = 0 if read.record is None else rules.next_epoch(read.record) - 1
        if facts.promise is None or facts.promise.epoch <= known:
            facts.etcd_retry = Retry()
        else:
            self._pause_etcd(
                now, f"etcd knows epoch {known}, but {facts.promise.epoch} was promised: restore etcd's data"
            )

    def _take_failed_read(self, ticket: Ticket, now: float) -> None:
        facts = self._facts
        if facts.strong_reading is not None and facts.strong_reading.ticket == ticket:
            self._effects.append(AnswerStrongReads(requests=facts.strong_reading.strong, current=False))
            facts.strong_reading = None
        elif facts.reading is not None and facts.reading.ticket == ticket:
            facts.reading = None
            self._pause_etcd(now, "etcd does not answer")

    def _take_swap(self, event: SwapAnswered, now: float) -> None:
        facts, swapping = self._facts, self._facts.swapping
        if swapping is None or swapping.ticket != event.ticket:
            return
        facts.swapping = None
        if event.outcome == "applied":
            self._learn(event.revision, swapping.record, now)
            facts.unsettled = 0
            self._note_announcement(swapping.record, event.revision)
            if swapping.order is not None:
                self._answer(swapping.order, None)
            return
        if event.outcome == "unknown" and facts.unsettled is not None:
            facts.unsettled = swapping.expected
        # Rule 9: neither the loser of a swap nor one whose answer was lost knows what the record is now.
        self._read_again()
        if swapping.order is not None:
            self._answer(swapping.order, "the record changed meanwhile, or etcd did not answer: ask again")
        announces = facts.handover is not None and not facts.announced and swapping.record.succession is not None
        if announces and event.outcome == "unknown":
            self._end_handover("etcd did not take the switch: ask again")

    def _note_announcement(self, record: Leadership, revision: int) -> None:
        """Its own swap took place and named the target of the handover: no earlier one of its own can follow."""
        facts = self._facts
        if facts.handover is None or facts.announced or record.succession is None:
            return
        if record.succession.region == facts.handover.region and facts.revision == revision:
            facts.announced = revision
            if facts.serving_epoch:
                self._close()

    def _take_stored(self, ticket: Ticket) -> None:
        facts, storing = self._facts, self._facts.storing
        if storing is not None and storing.ticket == ticket:
            record = facts.record
            if (
                facts.leads
                and record is not None
                and storing.promise.lineage == record.epoch
                and facts.frozen is not None
            ):
                facts.promoting = record.epoch
            facts.storing, facts.promise, facts.ledger_retry = None, storing.promise, Retry()

    def _take_end(self) -> None:
        facts = self._facts
        if facts.ledger is not None and facts.ledger.kind not in ("absent", "stopped"):
            self._tell("warning", f"ledger: PostgreSQL ended, it was {facts.ledger.kind}")
            self._change_ledger(LedgerFound(kind="stopped"))
            facts.working = None

    def _take_cut(self, epoch: Epoch) -> None:
        facts = self._facts
        if not facts.is_primary_of(epoch) or rules.is_spent(facts.cut_short, epoch):
            return
        facts.cut_short = epoch
        self._tell("warning", f"epoch {epoch}: a commit's wait was cut short, so that this leader steps down")
        if facts.serving_epoch:
            self._close()

    def _take_ledger_answer(self, event: LedgerAnswer, now: float) -> None:
        facts, working = self._facts, self._facts.working
        if working is None or working.ticket != event.ticket:
            return
        facts.working = None
        match event:
            case LedgerFailed(reason=reason):
                self._take_failure(event, working.effect)
                self._pause_ledger(now, f"ledger: {reason}")
            case LedgerFrozen():
                self._take_frozen(event, working.effect.epoch, now)
            case FenceWritten():
                self._take_fence(event, working.effect.epoch, now)
            case LedgerDrained(lsn=lsn):
                facts.drained, facts.ledger_retry = lsn, Retry()
            case LedgerDone():
                facts.ledger_retry = Retry()
                self._take_done(working.effect, now)
            case _:
                assert_never(event)

    def _take_failure(self, event: LedgerFailed, effect: LedgerEffect) -> None:
        facts = self._facts
        if event.torn:
            self._change_ledger(LedgerFound(kind="absent"))
            facts.rebuilt = 0
        if event.diverged and isinstance(effect, FollowLedger):
            facts.diverged = True
        if isinstance(effect, DrainLedger):
            self._end_handover(event.reason)
        facts.promoting = 0
        if isinstance(effect, SetQuorum) and self._is_of_resize(effect):
            self._end_resize("the quorum could not be changed: " + event.reason)

    def _is_of_resize(self, effect: SetQuorum) -> bool:
        facts = self._facts
        return facts.resize is not None and effect.standbys == steps.standbys_of(facts.region, facts.resize[0])

    def _take_frozen(self, event: LedgerFrozen, epoch: Epoch, now: float) -> None:
        facts = self._facts
        self._change_ledger(LedgerFound(kind="frozen"))
        if not rules.is_frozen(event):
            self._pause_ledger(now, None)
            return
        facts.ledger_retry = Retry()
        position = rules.frozen_position(event)
        facts.frozen = Vote(epoch=epoch, position=position, ancestry=event.ancestry[-ANCESTRY_MAX:])
        self._tell("info", f"epoch {epoch}: frozen at {position.epoch}:{position.lsn:X}")

    def _take_fence(self, event: FenceWritten, epoch: Epoch, now: float) -> None:
        facts, record = self._facts, self._facts.record
        assert record is not None, "a fence row without a record"
        assert record.epoch == epoch, "a primary of an older epoch is being stopped, which supersedes its fence row"
        if rules.is_on_quorum(event):
            facts.fence, facts.commit, facts.ledger_retry = event, max(facts.commit, event.lsn), Retry()
            self._tell("info", f"epoch {epoch}: its fence row is on a quorum")
        else:
            self._pause_ledger(now, "the fence row's wait for the quorum was cut short")

    def _take_done(self, effect: LedgerEffect, now: float) -> None:
        facts = self._facts
        match effect:
            case InitialiseLedger(epoch=epoch) | PromoteLedger(epoch=epoch):
                quorum = facts.quorum if isinstance(effect, PromoteLedger) else None
                self._change_ledger(LedgerFound(kind="primary", epoch=epoch))
                facts.quorum = quorum
                self._tell("info", f"epoch {epoch}: its ledger is primary here")
            case FollowLedger(epoch=epoch, leader=leader):
                self._change_ledger(LedgerFound(kind="following", epoch=epoch))
                self._tell("info", f"epoch {epoch}: follows {leader}")
            case RewindLedger(epoch=epoch, leader=leader) | CopyLedger(epoch=epoch, leader=leader):
                self._change_ledger(LedgerFound(kind="stopped"))
                facts.rebuilt, facts.diverged = epoch, False
                # The epoch may have waited for this alone, and is now given the time that it gives to others.
                facts.record_at = now
                how = "rewound" if isinstance(effect, RewindLedger) else "copied"
                self._tell("info", f"epoch {epoch}: {how} from {leader}")
            case SetQuorum(standbys=standbys):
                facts.quorum = standbys
            case StopLedger(epoch=epoch):
                self._change_ledger(LedgerFound(kind="stopped"))
                self._give_up(epoch, now)
            case FreezeLedger() | WriteFence() | DrainLedger():
                raise AssertionError(f"{type(effect).__name__} has an answer of its own")
            case _:
                assert_never(effect)

    def _give_up(self, epoch: Epoch, now: float) -> None:
        """Its PostgreSQL was stopped: if that was for a successor, say so."""
        facts, record = self._facts, self._facts.record
        if facts.handover is None or record is None or record.epoch != epoch:
            return
        release = rules.release_of(facts.handover, record, announced=facts.announced, drained=facts.drained)
        if release is not None:
            self._tell("info", f"epoch {epoch}: given up at {release.lsn:X}; the next is {release.successor}'s")
            facts.resting_until = now + facts.settings.rest_s
            self._hear_release(release, now)

    def _take_gossip(self, sender: RegionName, gossip: Gossip, now: float) -> None:
        facts = self._facts
        heard = [one.epoch for one in facts.gossip.values()]
        facts.gossip = {**facts.gossip, sender: gossip}
        self._hear_release(gossip.release, now)
        self._note_relief(sender, gossip, now)
        if facts.record is not None and gossip.epoch > max([facts.record.epoch, *heard]):
            # A watch lags, a heartbeat told first. The member's etcd may lag as well, so it is asked for all. A read
            # that began when somebody else had told of this epoch is new enough.
            self._read_again()

    def _note_relief(self, sender: RegionName, gossip: Gossip, now: float) -> None:
        """The leader of which this region is the successor has drained, or goes on after all."""
        facts, record = self._facts, self._facts.record
        if record is None or record.leader != sender:
            return
        succeeds = record.succession is not None and record.succession.region == facts.region
        if not succeeds or gossip.drained != record.epoch:
            facts.relieved_until = None
        elif facts.relieved_until is None:
            # An agent that dies then leaves its word behind, and its PostgreSQL may lead on.
            facts.relieved_until = now + facts.settings.stall_s

    def _take_strong_reads(self, requests: tuple[int, ...]) -> None:
        facts = self._facts
        room = STRONG_READS_MAX - len(facts.strong)
        if requests[room:]:
            self._effects.append(AnswerStrongReads(requests=requests[room:], current=False))
        facts.strong += requests[:room]

    def _take_order(self, order: Order, now: float) -> None:
        facts = self._facts
        plan = orders.plan(facts, order)
        match plan:
            case orders.Answer(refused=refused):
                self._answer(order, refused)
            case orders.Swap(record=record):
                self._swap(record, order, now)
            case orders.HandOver():
                facts.handover, facts.announced, facts.drained = order, 0, None
                self._tell("info", f"epoch {facts.serving_epoch}: handing over to {order.region}: {order.by}")
            case orders.Resize(voters=voters):
                facts.resize = (voters, order)
            case _:
                assert_never(plan)

    # What time means for the facts.

    def _expire(self, now: float) -> None:
        """Give up what was never answered."""
        facts = self._facts
        facts.ledger_retry = facts.ledger_retry.at_time(now)
        facts.etcd_retry = facts.etcd_retry.at_time(now)
        if facts.reading is not None and now >= facts.reading.until:
            self._take_failed_read(facts.reading.ticket, now)
        if facts.strong_reading is not None and now >= facts.strong_reading.until:
            self._take_failed_read(facts.strong_reading.ticket, now)
        if facts.swapping is not None and now >= facts.swapping.until:
            self._take_swap(SwapAnswered(ticket=facts.swapping.ticket, outcome="unknown"), now)
        if facts.storing is not None and now >= facts.storing.until:
            facts.storing = None
        if facts.relieved_until is not None and now >= facts.relieved_until:
            facts.relieved_until = None
        if facts.resting_until is not None and now >= facts.resting_until:
            facts.resting_until = None
        if facts.working is not None and now >= facts.working.until:
            effect, facts.working = facts.working.effect, None
            facts.promoting = 0
            if isinstance(effect, DrainLedger):
                self._end_handover("the target did not catch up in time")

    def _pause_ledger(self, now: float, why: str | None) -> None:
        self._facts.ledger_retry = self._pause(self._facts.ledger_retry, now, why)

    def _pause_etcd(self, now: float, why: str) -> None:
        self._facts.etcd_retry = self._pause(self._facts.etcd_retry, now, why)

    def _pause(self, last: Retry, now: float, why: str | None) -> Retry:
        settings = self._facts.settings
        pause_s = min(max(2 * last.pause_s, settings.retry_s), settings.retry_s_max)
        if why is not None:
            self._tell("warning", f"{why}; again in {pause_s:.2f} s")
        return Retry(at=now + pause_s, pause_s=pause_s)

    def _note_agreement(self, now: float) -> None:
        """Note since when enough regions suspect the one that acts."""
        facts, record = self._facts, self._facts.record
        agreed = record is not None and steps.observers(facts, record) >= facts.settings.observers_min
        if not agreed:
            facts.agreed_at = None
        elif facts.agreed_at is None:
            assert record is not None, "agreed about nobody"
            facts.agreed_at = now
            self._tell("warning", f"epoch {record.epoch}: {record.leader} is silent, and others agree")

    def _note_majority(self) -> None:
        """Rule 1: who cannot hear a majority of the voters guesses nothing, and says so."""
        facts, record = self._facts, self._facts.record
        alone = record is not None and facts.votes_here and not steps.may_be_heard(facts, record)
        if alone == facts.alone:
            return
        facts.alone = alone
        if record is not None and alone:
            heard, needed = ", ".join(steps.heard(facts, record)), rules.majority(record.voters)
            self._tell("error", f"epoch {record.epoch}: hears only {heard}; nobody takes over until {needed} can agree")
        else:
            self._tell("info", "hears a majority of the voters again")

    # What is to be done.

    def _advance(self, now: float) -> None:
        facts = self._facts
        self._read(now)
        if facts.promise is not None:
            self._refuse(claims.refusal(facts))
        if facts.unable is not None:
            return
        self._ask_for_strong_reads(now)
        step = steps.ledger_step(facts)
        self._act_on(step, now)
        self._open_if_established()
        self._change_record(now)

    def _read(self, now: float) -> None:
        facts = self._facts
        stale = facts.record is not None and facts.promise is not None and facts.record.epoch < facts.promise.epoch
        missing = not facts.record_read and facts.record is None
        linearizable = facts.reread or stale or steps.needs_newest_record(facts)
        if facts.reading is None and facts.etcd_retry.at is None and (linearizable or missing):
            facts.reading = Reading(
                ticket=self._ticket(), linearizable=linearizable, until=now + facts.settings.request_s_max
            )
            self._effects.append(ReadRecord(ticket=facts.reading.ticket, linearizable=linearizable))

    def _ask_for_strong_reads(self, now: float) -> None:
        facts = self._facts
        if facts.strong and facts.strong_reading is None:
            # Rule 10: the read of etcd begins after the reads that wait for it have arrived.
            until = now + facts.settings.request_s_max
            facts.strong_reading = Reading(ticket=self._ticket(), linearizable=True, until=until, strong=facts.strong)
            facts.strong = ()
            self._effects.append(ReadRecord(ticket=facts.strong_reading.ticket, linearizable=True))

    def _act_on(self, step: steps.Step, now: float) -> None:
        facts = self._facts
        if step is None:
            return
        if isinstance(step, Promise):
            self._store(step, now)
            return
        if facts.working is not None and facts.working.effect == step:
            return
        # A demotion does not wait for anything; what a later epoch needs does not either, whose record ends the pause.
        if facts.ledger_retry.at is not None and not isinstance(step, StopLedger):
            return
        ticket = self._ticket()
        facts.working = Working(ticket=ticket, effect=step, until=now + self._patience_s(step))
        if isinstance(step, StopLedger) and facts.serving_epoch:
            self._close()
        if isinstance(step, SetQuorum | FreezeLedger):
            # Until it is answered nobody knows which quorum is in force; what is frozen anew has none.
            facts.quorum = None
        self._effects.append(replace(step, ticket=ticket))

    def _store(self, promise: Promise, now: float) -> None:
        facts = self._facts
        assert facts.promise is not None, "nothing is promised over a promise that cannot be read"
        assert promise.epoch >= facts.promise.epoch, "a promise only grows"
        assert promise.lineage >= facts.promise.lineage, "a lineage only grows"
        assert promise.floor >= facts.promise.floor, "a floor only grows"
        # A write that was given up may have taken place, or may yet: the next one must not go below it.
        promise = rules.joined(promise, facts.asked)
        if facts.ledger_retry.at is not None or (facts.storing is not None and facts.storing.promise == promise):
            return
        facts.asked = promise
        facts.storing = Storing(ticket=self._ticket(), promise=promise, until=now + facts.settings.request_s_max)
        self._effects.append(StorePromise(ticket=facts.storing.ticket, promise=promise))

    def _patience_s(self, effect: LedgerEffect) -> float:
        settings = self._facts.settings
        if isinstance(effect, DrainLedger):
            return settings.target_s_max
        if isinstance(effect, CopyLedger | RewindLedger | InitialiseLedger):
            return settings.rebuild_s_max
        return settings.ledger_s_max

    def _open_if_established(self) -> None:
        facts, record = self._facts, self._facts.record
        if record is None or not facts.leads or not facts.is_primary_of(record.epoch) or facts.handover is not None:
            return
        # The fence row on a quorum is what opens; a cell's first epoch was not safe to start again before it served.
        established = record.phase == "serving" or (record.phase == "promoting" and facts.fence is not None)
        spent = facts.doubtful or rules.is_spent(facts.cut_short, record.epoch)
        if established and facts.serving_epoch != record.epoch and not spent:
            facts.serving_epoch = record.epoch
            self._effects.append(StartServing(epoch=record.epoch))
            self._tell("info", f"epoch {record.epoch}: takes writes")

    def _change_record(self, now: float) -> None:
        facts = self._facts
        if facts.swapping is not None or facts.reread or facts.etcd_retry.at is not None:
            return
        proposal = claims.proposal(facts, now)
        if proposal is None:
            return
        order = None
        if facts.resize is not None and proposal.voters == facts.resize[0]:
            order, facts.resize = facts.resize[1], None
        self._swap(proposal, order, now)

    def _refuse(self, why: str | None) -> None:
        facts = self._facts
        if why is not None and why != facts.unable:
            self._tell("error", why)
        facts.unable = why

    def _swap(self, record: Leadership, order: Order | None, now: float) -> None:
        facts = self._facts
        ticket, until = self._ticket(), now + facts.settings.request_s_max
        expected = rules.expected_revision(facts.revision)
        facts.swapping = Swapping(ticket=ticket, record=record, expected=expected, until=until, order=order)
        self._effects.append(SwapRecord(ticket=ticket, expected_revision=expected, record=record))

    # Small changes that are made in several places.

    def _change_ledger(self, found: LedgerFound) -> None:
        """The member is something else now, so what depended on what it was is void."""
        facts = self._facts
        if facts.ledger == found:
            return
        facts.ledger, facts.frozen, facts.quorum, facts.promoting = found, None, None, 0
        if facts.serving_epoch:
            self._close()

    def _read_again(self) -> None:
        """Swap nothing before a linearizable read that begins now; one under way may have begun too early."""
        self._facts.reread, self._facts.reading = True, None

    def _close(self) -> None:
        facts = self._facts
        self._effects.append(StopServing(epoch=facts.serving_epoch))
        facts.serving_epoch = 0

    def _end_handover(self, refused: str | None) -> None:
        facts = self._facts
        assert facts.handover is not None, "nothing is handed over"
        self._answer(facts.handover, refused)
        facts.handover, facts.announced, facts.drained = None, 0, None

    def _end_resize(self, refused: str | None) -> None:
        facts = self._facts
        if facts.resize is not None:
            self._answer(facts.resize[1], refused)
            facts.resize = None

    def _answer(self, order: Order, refused: str | None) -> None:
        self._effects.append(AnswerOrder(ticket=order.ticket, refused=refused))

    def _tell(self, level: Literal["info", "warning", "error"], text: str) -> None:
        self._effects.append(Told(level=level, text=text))

    def _ticket(self) -> Ticket:
        self._facts.next_ticket += 1
        return self._facts.next_ticket

    # What others hear.

    def _settle(self) -> None:
        facts, record = self._facts, self._facts.record
        state = state_of(facts)
        if state != self.state:
            assert (self.state, state) in TRANSITIONS, f"no transition from {self.state} to {state}"
            self.state = state
        acting = _acting(facts, record)
        if acting != self._acting:
            self._acting = acting
            self._effects.append(Acting(region=acting[0], needs_commits=acting[1]))
        epoch: Epoch = 0 if record is None else record.epoch
        suspects = epoch if record is not None and record.leader in facts.suspected else 0
        commit = facts.commit if facts.reigns else 0
        vote, release = steps.published_vote(facts), steps.published_release(facts)
        drained = epoch if facts.drained is not None else 0
        gossip = Gossip(epoch=epoch, commit=commit, suspects=suspects, vote=vote, release=release, drained=drained)
        said, self._gossiped = self._gossiped, gossip
        if replace(said, commit=commit) != gossip:
            self._effects.append(Gossiped(gossip=gossip))


def _acting(facts: Facts, record: Leadership | None) -> tuple[RegionName | None, bool]:
    if record is None or record.leader == facts.region or record.phase == "bootstrapping":
        return None, False
    return record.leader, record.phase == "serving"
