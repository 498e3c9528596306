"""Reads a drill from a TOML file, and checks it before any fault is injected.

Decides which actions, targets and expectations a drill can have. Executes nothing (`runner.py`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

CATALOGUE = Path(__file__).parent / "catalogue"

Action = Literal[
    "kill", "pause", "resume", "restart", "cut", "heal", "delay", "switch", "promote", "clock", "drift",
    "fill-disk", "stall-disk", "mend-disk", "sleep",
    "until-phase", "until-writes", "until-refused", "until-said", "until-healthy",
]  # fmt: skip
"""`kill`, `pause` and `resume` act on a region or on one process of it; `restart` starts a killed region. `cut` and
`delay` change the network between a region and `other`; `heal` resets all of it. `switch` orders a switchover;
`promote` promotes the ledger of a killed region by hand. `clock` and `drift` change the wall clock of a region. The
`-disk` actions change the disk of a region's ledger. The `until-` actions wait, for at most `within_s`."""

OFFSET_S_MAX = 7 * 24 * 3600
"""One week; a larger offset would show nothing else."""

RATE_MAX = 0.5

Role = Literal["leader", "follower", "other-follower", "followers", "all"]
"""A target of a step, resolved when the step begins. A step can also name a target that an earlier step named with
`as`."""

RoleAtStart = Literal["leader", "follower", "other-follower"]
"""The role of a region when the drill began, whichever region leads later."""

Phase = Literal["before", "during", "after"]

PHASES: tuple[Phase, ...] = ("before", "during", "after")
"""The phases of a drill: load alone; from the first step that changes something to the end of the last step; load alone
again."""

Count = Annotated[int, Field(ge=1)]

Direction = Literal["both", "out", "in"]


class InvalidDrill(Exception):
    """A drill cannot be executed as it is written; the message is one line."""


class Step(BaseModel):
    """One step of a drill.

    Attributes:
        do: The action.
        target: A role, a region, or a name that an earlier step gave with `as`.
        process: Act on this process of the region only.
        other: The other end of a cut or delay; None: all other regions.
        direction: Of a cut or delay, seen from the target.
        named: Name of the target for later steps (`as` in the file).
        label: Name of the step for the windows of `refused`.
        phase: For `until-phase`.
        says: For `until-said`: text that the agent of each target must report as its trouble.
        seconds: Duration of `sleep` and `drift`.
        within_s: Longest wait of the `until-` actions.
        delay_ms: For `delay`, one way.
        loss: For `delay`, the share of packets that is lost.
        leads_etcd: For `kill`: move etcd's leadership to the region first, so that both leaders are lost at once.
        leave_running: For `promote`: leave its PostgreSQL running as a primary, also while the region restarts.
        offset_s: For `clock`: offset of the wall clock from now on; 0 resets it.
        rate: For `drift`: seconds that the wall clock gains per second (negative: loses).
        stall_ms: For `stall-disk`, how long each write to the disk waits; 0: until the disk is mended.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    do: Action
    target: str = "leader"
    process: str | None = None
    other: str | None = None
    direction: Direction = "both"
    named: str | None = Field(default=None, alias="as")
    label: str | None = Field(default=None, min_length=1)
    phase: str | None = None
    says: str | None = Field(default=None, min_length=1)
    seconds: float = Field(default=0.0, ge=0, le=600)
    within_s: float = Field(default=30.0, gt=0, le=600)
    delay_ms: float = Field(default=0.0, ge=0, le=10_000)
    loss: float = Field(default=0.0, ge=0, lt=1)
    leads_etcd: bool = False
    leave_running: bool = False
    offset_s: float | None = Field(default=None, ge=-OFFSET_S_MAX, le=OFFSET_S_MAX)
    rate: float = Field(default=0.0, ge=-RATE_MAX, le=RATE_MAX)
    stall_ms: float = Field(default=0.0, ge=0, le=10_000)

    @property
    def waits(self) -> bool:
        """Whether the step only waits."""
        return self.do == "sleep" or self.do.startswith("until-")

    @property
    def needs_clocks(self) -> bool:
        """Whether the step needs a deployment in which the clocks of regions can be set."""
        return self.do in ("clock", "drift")

    @property
    def needs_disks(self) -> bool:
        """Whether the step needs a deployment in which the ledgers have disks of their own."""
        return self.do in ("fill-disk", "stall-disk", "mend-disk")

    @model_validator(mode="after")
    def _is_complete(self) -> Step:
        if self.do == "until-phase" and self.phase is None:
            raise ValueError("until-phase needs a phase")
        if (self.do == "until-said") != (self.says is not None):
            raise ValueError("until-said needs `says`, and no other action has it")
        if self.do in ("sleep", "drift") and self.seconds == 0:
            raise ValueError(f"{self.do} needs seconds")
        if self.do == "clock" and self.offset_s is None:
            raise ValueError("clock needs offset_s")
        if self.do == "drift" and self.rate == 0:
            raise ValueError("drift needs a rate")
        if self.leads_etcd and (self.do != "kill" or self.process is not None):
            raise ValueError("leads_etcd is only for the kill of a whole region")
        if self.needs_disks and self.process is not None:
            raise ValueError(f"{self.do} acts on a region, not on one process of it")
        if self.stall_ms and self.do != "stall-disk":
            raise ValueError("stall_ms is only for stall-disk")
        return self


class Load(BaseModel):
    """The clients that write and read during a drill.

    Attributes:
        writers: Clients that post one keyed comment after another.
        unkeyed: Clients that post without a key and never repeat a write.
        readers: Clients that read with `strong`, `session` and `eventual` in turn.
        edges: Edges that the clients prefer: those of the regions that do not lead at the start, or all.
        pause_ms: Average pause between two writes of one client.
        before_s: Seconds of load before the first step.
        after_s: Seconds of load after the last step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    writers: int = Field(default=16, ge=1, le=256)
    unkeyed: int = Field(default=1, ge=0, le=64)
    readers: int = Field(default=3, ge=0, le=64)
    edges: Literal["followers", "all"] = "followers"
    pause_ms: float = Field(default=20.0, ge=0, le=10_000)
    before_s: float = Field(default=3.0, ge=0, le=600)
    after_s: float = Field(default=3.0, ge=0, le=600)


class Fewest(BaseModel):
    """The least numbers of acknowledged keyed writes, by phase and by the region whose edge accepts them.

    A region that is not named needs no write: it was killed, or no client prefers its edge. The second phase may name
    no region.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    before: Annotated[Mapping[RoleAtStart, Count], Field(min_length=1)]
    during: Mapping[RoleAtStart, Count]
    after: Annotated[Mapping[RoleAtStart, Count], Field(min_length=1)]

    def of(self, phase: Phase) -> Mapping[RoleAtStart, int]:
        """Return the least numbers of a phase."""
        declared: Mapping[RoleAtStart, int] = getattr(self, phase)
        return declared


class AllowedRefusals(BaseModel):
    """A window in which edges may refuse keyed writes; a write that was sent in it may be refused later.

    The window ends at each edge separately: when the edge has acknowledged a write that was sent after the step `until`
    began, but not before that step ends and not after the end of the method.

    Attributes:
        since: Label of the step; the window begins with it.
        until: Label of the step after which edges accept writes again, such as `until-writes` or the `heal` of a cut.
        edges: The edges that may refuse.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: str
    until: str
    edges: RoleAtStart | Literal["all"] = "all"


class Expect(BaseModel):
    """The expectations of one drill, in addition to the checks of every drill.

    Attributes:
        fewest: Least numbers of acknowledged keyed writes, by phase and region.
        reads_min: Least number of strong reads, and of session reads, before the fault; the same after it.
        unkeyed_min: Least number of outcomes of writes without a key before the fault; the same after it.
        failovers: Least and greatest number of epochs that begin.
        leader_moves: Whether another region must lead at the end; None allows both.
        stall_s_max: Longest write outage, from the first delayed write to the next acknowledgement.
        refused: Windows in which a running edge may refuse keyed writes; it may not outside of them.
        refusal: Text that the cell's status must show while writes are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fewest: Fewest
    reads_min: int = Field(default=5, ge=1)
    unkeyed_min: int = Field(default=3, ge=1)
    failovers: tuple[int, int] = (0, 0)
    leader_moves: bool | None = None
    stall_s_max: float = Field(default=5.0, gt=0)
    refused: tuple[AllowedRefusals, ...] = ()
    refusal: str | None = None


class Drill(BaseModel):
    """A drill as its file describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,60}$")
    title: str
    hypothesis: str
    load: Load = Load()
    method: Annotated[tuple[Step, ...], Field(min_length=1)]
    expect: Expect
    rollback: tuple[Step, ...] = ()
    short: bool = False

    @property
    def needs_clocks(self) -> bool:
        """Whether a step needs a deployment in which the clocks of regions can be set."""
        return any(step.needs_clocks for step in (*self.method, *self.rollback))

    @property
    def needs_disks(self) -> bool:
        """Whether a step needs a deployment in which the ledgers have disks of their own."""
        return any(step.needs_disks for step in (*self.method, *self.rollback))

    @model_validator(mode="after")
    def _does_something(self) -> Drill:
        if all(step.waits for step in self.method):
            raise ValueError("every step only waits")
        return self

    @model_validator(mode="after")
    def _windows_are_steps_of_the_method(self) -> Drill:
        labels = [step.label for step in self.method]
        given = [label for label in labels if label is not None]
        if len(set(given)) < len(given):
            raise ValueError("two steps have the same label")
        for window in self.expect.refused:
            for label in (window.since, window.until):
                if label not in given:
                    raise ValueError(f"no step is labelled {label!r}")
            if labels.index(window.since) > labels.index(window.until):
                raise ValueError(f"{window.until!r} comes before {window.since!r}")
        return self

    @model_validator(mode="after")
    def _promoted_regions_were_killed(self) -> Drill:
        """A running agent controls its ledger, so an operator can promote only the ledger of a killed region."""
        dead: set[str] = set()
        for number, step in enumerate((*self.method, *self.rollback), start=1):
            if step.do == "promote" and step.target not in dead:
                raise ValueError(f"step {number}: promote needs the name of a region that was killed")
            if step.do == "kill" and step.process is None and step.named is not None:
                dead.add(step.named)
            if step.do == "restart":
                dead.discard(step.target)
        return self

    @model_validator(mode="after")
    def _names_are_given_before_they_are_used(self) -> Drill:
        known = {"leader", "follower", "other-follower", "followers", "all"}
        for number, step in enumerate((*self.method, *self.rollback), start=1):
            for name in (step.target, step.other):
                if name is not None and name not in known and not name.startswith("region:"):
                    raise ValueError(f"step {number}: {name!r} is no role, and no earlier step named it")
            if step.named is not None:
                known.add(step.named)
        return self


def load_drill(path: Path) -> Drill:
    """Read a drill from a file.

    Raises:
        InvalidDrill: The file is missing, is not TOML, or is not a valid drill.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidDrill(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidDrill(f"{path} is not TOML: {error}") from error
    try:
        return Drill.model_validate({"name": path.stem, **document})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidDrill(f"{path}: {where or 'drill'}: {first['msg']}") from error


def catalogue() -> dict[str, Drill]:
    """Return the drills that come with Palaver, by name."""
    return {path.stem: load_drill(path) for path in sorted(CATALOGUE.glob("*.toml"))}


def find_drill(wanted: str) -> Drill:
    """Return a drill by its name in the catalogue or by its file.

    Raises:
        InvalidDrill: There is no such drill, or it is invalid.
    """
    path = CATALOGUE / f"{wanted}.toml"
    if path.exists():
        return load_drill(path)
    if wanted.endswith(".toml"):
        return load_drill(Path(wanted))
    raise InvalidDrill(f"there is no drill {wanted!r}; see `palaver drill list`, or name a .toml file")
