"""One event being handled: the facts, the time, and the effects so far; and the changes that several events share.

``machine.py`` makes a ``Turn`` for each event and passes it to the modules that change facts. Functions that only read
facts (``steps.py``, ``claims.py``, ``orders.py``, ``rules.py``, ``states.py``) never get one.
"""

from dataclasses import dataclass, field
from typing import Literal

from regions.failover import handover
from regions.failover.effects import AnswerOrder, Effect, Log, StopServing
from regions.failover.events import MemberState, Order, Ticket
from regions.failover.facts import Facts, Retry
from regions.failover.handover import HandOver


@dataclass(slots=True, kw_only=True)
class Turn:
    """One event being handled.

    Attributes:
        facts: What the agent knows.
        now: Monotonic seconds.
        effects: What the driver is to do, in order.
    """

    facts: Facts
    now: float
    effects: list[Effect] = field(default_factory=list[Effect])

    def log(self, level: Literal["info", "warning", "error"], text: str) -> None:
        """Log a line of the failover's story."""
        self.effects.append(Log(level=level, text=text))

    def answer(self, order: Order, refused: str | None) -> None:
        """Answer an operator's order; ``refused`` None: it is carried out."""
        self.effects.append(AnswerOrder(ticket=order.ticket, refused=refused))

    def ticket(self) -> Ticket:
        """Return a ticket that was never used."""
        self.facts.requests.last_ticket += 1
        return self.facts.requests.last_ticket

    def pause_ledger(self, why: str | None) -> None:
        """Ask the member for nothing for a while; ``why`` None: without a log line."""
        requests = self.facts.requests
        requests.ledger_retry = self._longer(requests.ledger_retry, why)

    def pause_etcd(self, why: str) -> None:
        """Ask etcd for nothing for a while."""
        requests = self.facts.requests
        requests.etcd_retry = self._longer(requests.etcd_retry, why)

    def _longer(self, last: Retry, why: str | None) -> Retry:
        settings = self.facts.settings
        pause_s = min(max(2 * last.pause_s, settings.retry_s), settings.retry_s_max)
        if why is not None:
            self.log("warning", f"{why}; again in {pause_s:.2f} s")
        return Retry(at=self.now + pause_s, pause_s=pause_s)

    def read_again(self) -> None:
        """Swap nothing before a linearizable read that begins now; one under way may have begun too early."""
        self.facts.etcd.must_read, self.facts.requests.reading = True, None

    def change_ledger(self, found: MemberState) -> None:
        """Note what the member is now; what depended on its former kind is void."""
        member = self.facts.member
        if member.ledger == found:
            return
        member.ledger, member.frozen_vote, member.quorum, member.promoting_epoch = found, None, None, 0
        self.stop_serving()

    def stop_serving(self) -> None:
        """Stop serving, if it serves: prove no more strong reads."""
        member = self.facts.member
        if member.serving_epoch:
            self.effects.append(StopServing(epoch=member.serving_epoch))
            member.serving_epoch = 0

    def move_handover(self, new: HandOver | None) -> None:
        """Enter another sub-state of the hand-over."""
        self.facts.handover = handover.moved(self.facts.handover, new)

    def end_switchover(self, refused: str | None) -> None:
        """End the hand-over that this region carries out as the leader, and answer its order."""
        switchover = self.facts.switchover
        assert switchover is not None, "nothing is handed over"
        self.answer(switchover.order, refused)
        self.move_handover(None)

    def end_resize(self, refused: str | None) -> None:
        """Answer the order that changes the voters, if there is one."""
        if self.facts.resize is not None:
            self.answer(self.facts.resize[1], refused)
            self.facts.resize = None

    def refuse(self, why: str | None) -> None:
        """Take no part, for this reason; None: take part."""
        if why is not None and why != self.facts.unable:
            self.log("error", why)
        self.facts.unable = why
