"""Runs the commands of a transcript, and returns the transcript with the trace under each command.

    # comment
    us-east: dies
    wait 1.2 s
        +1.08 s  eu-west: warning: epoch 1: us-east is silent, and others agree

``pytest tests/scenarios --rewrite-scenarios`` writes the result to the file. ``tests/scenarios/README.md`` lists the
commands.
"""

import re
from collections.abc import Callable
from uuid import UUID

from regions.failover.effects import (
    DrainLedger,
    FreezeLedger,
    LedgerEffect,
    ReadRecord,
    StorePromise,
    SwapRecord,
    WriteFence,
)
from regions.failover.events import (
    Event,
    FenceWritten,
    LedgerDone,
    LedgerDrained,
    LedgerEnded,
    LedgerFailed,
    LedgerFrozen,
    LedgerKind,
    MemberState,
    Order,
    OrderKind,
    Promise,
    PromiseFailed,
    PromiseStored,
    QuorumWaitCancelled,
    ReadFailed,
    RecordRead,
    RecordSeen,
    StandbysStreaming,
    StrongReads,
    SwapAnswered,
)
from regions.identity import RegionName
from regions.leadership import Leadership
from tests.scenarios.words import NAMES, promise_text
from tests.scenarios.world import ScenarioError, World

INDENT = "    "
REFUSED = "NO SUCH STEP: "
"""Precedes the reason under a command that cannot be executed; no transcript may contain it."""


def play(text: str) -> tuple[str, World]:
    """Return the transcript with the traces of its commands, and the world after the last command."""
    player = Player()
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(INDENT):
            continue
        lines.append(line)
        if line and not line.startswith("#"):
            refused = player.command(line)
            lines.extend(INDENT + said for said in player.take_trace())
            if refused is not None:
                lines.append(f"{INDENT}{REFUSED}{refused}")
    return "\n".join(lines) + "\n", player.world


class Player:
    """Parses and executes the commands of one transcript."""

    def __init__(self) -> None:
        self._world: World | None = None

    @property
    def world(self) -> World:
        if self._world is None:
            raise ScenarioError("a transcript begins with its cell")
        return self._world

    def take_trace(self) -> list[str]:
        """Return the lines of the trace since the previous call."""
        trace, self.world.trace = self.world.trace, []
        return trace

    def command(self, line: str) -> str | None:
        """Execute the command in a line; return None, or the reason why it cannot be executed."""
        try:
            self._do(line)
        except ScenarioError as error:
            return str(error)
        return None

    def _do(self, line: str) -> None:
        regions, colon, rest = line.partition(": ")
        if colon:
            for one in rest.split("; "):
                for region in regions.split(", "):
                    _match(_OF_AGENT, one, self.world, RegionName(region))
        elif line.startswith("cell of "):
            self._world = _cell(line)
        else:
            _match(_OF_WORLD, line, self.world, RegionName(""))


Action = Callable[[World, RegionName, re.Match[str]], None]


def _match(table: dict[str, Action], text: str, world: World, region: RegionName) -> None:
    for pattern, action in table.items():
        found = re.fullmatch(pattern, text)
        if found is not None:
            action(world, region, found)
            return
    raise ScenarioError(f"{text!r} is no command")


def _cell(line: str) -> World:
    found = re.fullmatch(r"cell of ([a-z -]+?)(?:, view-only ([a-z -]+?))?(?:, led by ([a-z-]+) at ([0-9,]+))?", line)
    if found is None:
        raise ScenarioError("a cell is `cell of A B C[, view-only D][, led by A at EPOCHS]`")
    voters, view_only = _names(found[1]), _names(found[2] or "")
    world = World(voters, view_only)
    if found[3] is not None:
        _serve(world, RegionName(found[3]), _epochs(found[4]))
    return world


def _serve(world: World, leader: RegionName, ancestry: tuple[int, ...]) -> None:
    """Start all agents in a cell in which the leader serves and the others follow, with no open request."""
    epoch = ancestry[-1]
    world.records.append(
        Leadership(
            epoch=epoch,
            leader=leader,
            phase="serving",
            fence_id=UUID(int=epoch),
            reason="first start",
            since="",
            voters=world.cell.voters,
            ancestry=ancestry,
        )
    )
    for region, agent in world.agents.items():
        votes = region in world.cell.voters
        agent.promise = Promise(epoch=epoch, lineage=epoch) if votes else Promise()
        kind: LedgerKind = "primary" if region == leader else "following"
        world.start(region, MemberState(kind=kind, epoch=epoch) if votes else None)
        _answer(world, region, "done", "read", "")
    _answer(world, leader, "done", "read", "")
    _answer(world, leader, "done", "quorum", "")
    world.tell(leader, StandbysStreaming(regions=frozenset(world.cell.voters) - {leader}))
    world.trace = []


# Commands for the whole cell.


def _wait(world: World, _region: RegionName, found: re.Match[str]) -> None:
    world.wait(float(found[1]))


def _cut(world: World, _region: RegionName, found: re.Match[str]) -> None:
    one, arrow = RegionName(found[1]), found[2]
    for other in world.agents if found[3] == "all" else [RegionName(found[3])]:
        world.agent(one)
        world.agent(other)
        world.cut.add((one, other))
        if arrow == "<->":
            world.cut.add((other, one))


def _heal(world: World, _region: RegionName, _found: re.Match[str]) -> None:
    world.cut.clear()


_OF_WORLD: dict[str, Action] = {
    r"wait ([0-9.]+) s": _wait,
    r"cut ([a-z-]+) (->|<->) ([a-z-]+)": _cut,
    r"heal": _heal,
}


# Commands for an agent.


def _starts(world: World, region: RegionName, found: re.Match[str]) -> None:
    agent = world.agent(region)
    agent.promise = _promise_found(agent.promise, found[3])
    text = found[1]
    kind: LedgerKind = text  # pyright: ignore[reportAssignmentType] - the pattern names the kinds
    world.start(region, None if text == "no ledger" else MemberState(kind=kind, epoch=int(found[2] or 0)))


def _promise_found(kept: Promise | None, words: str | None) -> Promise | None:
    """The promise that an agent finds on its disk when it starts; None if it was lost."""
    if words is None:
        return kept
    if words == ", its disk empty":
        return Promise()
    if words == ", its promise lost":
        return None
    found = re.fullmatch(r", its promise ([0-9]+)", words)
    if found is None:
        raise ScenarioError("a disk is empty, or its promise lost, or its promise EPOCH")
    return Promise(epoch=int(found[1]), lineage=int(found[1]))


def _dies(world: World, region: RegionName, _found: re.Match[str]) -> None:
    world.agent(region).core = None


def _pauses(world: World, region: RegionName, found: re.Match[str]) -> None:
    world.agent(region).paused = found[0] == "pauses"


def _watch(world: World, region: RegionName, found: re.Match[str]) -> None:
    world.agent(region).watches = found[1] == "goes on"


def _commits(world: World, region: RegionName, found: re.Match[str]) -> None:
    world.agent(region).commits = found[1] == "go on"


def _sees(world: World, region: RegionName, found: re.Match[str]) -> None:
    revision = int(found[1] or world.revision)
    world.tell(region, RecordSeen(revision=revision, record=world.records[revision - 1]))


def _ends(world: World, region: RegionName, _found: re.Match[str]) -> None:
    world.tell(region, LedgerEnded())


def _wait_cancelled(world: World, region: RegionName, found: re.Match[str]) -> None:
    world.tell(region, QuorumWaitCancelled(epoch=int(found[1])))


def _standbys(world: World, region: RegionName, found: re.Match[str]) -> None:
    world.tell(region, StandbysStreaming(regions=frozenset(_names(found[1]))))


def _reads(world: World, region: RegionName, found: re.Match[str]) -> None:
    world.tell(region, StrongReads(requests=tuple(map(int, found[1].split()))))


def _order(world: World, region: RegionName, found: re.Match[str]) -> None:
    kind: OrderKind = found[2]  # pyright: ignore[reportAssignmentType] - the pattern names the kinds
    about = RegionName(found[3]) if found[3] else None
    world.tell(region, Order(ticket=int(found[1]), kind=kind, region=about, by="an operator"))


def _answers(world: World, region: RegionName, found: re.Match[str]) -> None:
    _answer(world, region, found[1], found[2], found[3] or "")


def _repeats(world: World, region: RegionName, found: re.Match[str]) -> None:
    agent = world.agent(region)
    if found[1] not in agent.answers:
        raise ScenarioError(f"no {found[1]} was answered")
    world.tell(region, agent.answers[found[1]])


def _disk(world: World, region: RegionName, _found: re.Match[str]) -> None:
    promise = world.agent(region).promise
    world.say(region, "no promise on its disk" if promise is None else f"on its disk: {promise_text(promise)}")


_KIND = "|".join(NAMES.values())
_OF_AGENT: dict[str, Action] = {
    r"starts with (no ledger|absent|stopped|frozen|following|primary)(?: ([0-9]+))?(, .+)?": _starts,
    r"dies": _dies,
    r"pauses|resumes": _pauses,
    r"watch (stops|goes on)": _watch,
    r"commits (stop|go on)": _commits,
    r"sees(?: r([0-9]+))?": _sees,
    r"postgres ends": _ends,
    r"a quorum wait of epoch ([0-9]+) is cancelled": _wait_cancelled,
    r"standbys ([a-z -]+)": _standbys,
    r"strong reads ([0-9 ]+)": _reads,
    r"order ([0-9]+) (switch|pause|resume|drain|undrain|add|remove)(?: ([a-z-]+))?": _order,
    rf"(done|late|unheard|unknown|dropped|failed) ({_KIND})(?: (.+))?": _answers,
    rf"repeat ({_KIND})": _repeats,
    r"disk": _disk,
}


# Answers to open requests.


def _answer(world: World, region: RegionName, how: str, name: str, details: str) -> None:
    agent = world.agent(region)
    asked = [request for request in agent.open if NAMES[type(request)] == name]
    if not asked:
        raise ScenarioError(f"{region} has no open {name}")
    request = asked[0] if how == "late" else asked[-1]
    agent.open.remove(request)
    if isinstance(request, SwapRecord):
        _swap(world, region, request, how)
        return
    event = _event(world, region, request, how, details)
    if how != "unheard":
        agent.answers[name] = event
        world.tell(region, event)


def _swap(world: World, region: RegionName, request: SwapRecord, how: str) -> None:
    applies = request.expected_revision == world.revision and how != "dropped"
    event = SwapAnswered(ticket=request.ticket, outcome="lost")
    if how in ("unknown", "dropped"):
        event = SwapAnswered(ticket=request.ticket, outcome="unknown")
    elif applies:
        event = SwapAnswered(ticket=request.ticket, outcome="applied", revision=world.revision + 1)
    world.agent(region).answers["swap"] = event
    if applies:
        world.write_record(request.record, by=region, answer=None if how == "unheard" else event)
    else:
        world.tell(region, event)


def _event(
    world: World, region: RegionName, request: ReadRecord | StorePromise | LedgerEffect, how: str, details: str
) -> Event:
    if isinstance(request, ReadRecord):
        record = world.records[-1] if world.records else None
        answer = RecordRead(ticket=request.ticket, revision=world.revision, record=record)
        return ReadFailed(ticket=request.ticket) if how == "failed" else answer
    if isinstance(request, StorePromise):
        if how == "failed":
            return PromiseFailed(ticket=request.ticket, reason=details)
        world.agent(region).promise = request.promise
        return PromiseStored(ticket=request.ticket)
    if how == "failed":
        flag = re.fullmatch(r"(.*?)(?:, (diverged|torn))?", details)
        assert flag is not None
        return LedgerFailed(
            ticket=request.ticket, reason=flag[1], diverged=flag[2] == "diverged", torn=flag[2] == "torn"
        )
    if isinstance(request, FreezeLedger):
        return _frozen(request, details)
    if isinstance(request, WriteFence):
        lsn, _, cancelled = details.removeprefix("at ").partition(", ")
        return FenceWritten(
            ticket=request.ticket, fence_id=UUID(int=request.epoch), lsn=int(lsn, 16), confirmed=not cancelled
        )
    if isinstance(request, DrainLedger):
        return LedgerDrained(ticket=request.ticket, lsn=int(details.removeprefix("at "), 16))
    return LedgerDone(ticket=request.ticket)


def _frozen(request: FreezeLedger, details: str) -> LedgerFrozen:
    found = re.fullmatch(r"at ([0-9,]+):([0-9A-F]+)(?:, received ([0-9A-F]+|none))?(, still receiving)?", details)
    if found is None:
        raise ScenarioError("frozen is `freeze at EPOCHS:REPLAYED[, received LSN|none][, still receiving]`")
    replayed, received = int(found[2], 16), found[3]
    return LedgerFrozen(
        ticket=request.ticket,
        receiving=bool(found[4]),
        received=replayed if received is None else None if received == "none" else int(received, 16),
        replayed=replayed,
        ancestry=_epochs(found[1]),
    )


def _names(text: str) -> tuple[RegionName, ...]:
    return tuple(RegionName(name) for name in text.split())


def _epochs(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))
