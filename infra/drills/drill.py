"""What a drill is: data, read from a TOML file and checked before anything is hurt.

Decides which actions, targets and expectations there are. Carries nothing out.
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
"""`kill`, `pause`, `resume` and `restart` take a region and perhaps a process of it; `cut` and `delay` take the network
between a region and its `other`s; `promote` is what an operator does by hand to a region that was killed; `clock` and
`drift` take the wall clock of a region; the `-disk` ones take the disk of a region's ledger; the `until-` ones wait,
bounded by `within_s`."""

OFFSET_S_MAX = 7 * 24 * 3600
"""A clock that is a week off is as wrong as one can be."""

RATE_MAX = 0.5

Role = Literal["leader", "follower", "other-follower", "followers", "all"]
"""Who is meant, at the moment of the step; or the name that an earlier step gave with `as`."""

RoleAtStart = Literal["leader", "follower", "other-follower"]
"""Who a region was when the drill began, whoever leads later."""

Phase = Literal["before", "during", "after"]

PHASES: tuple[Phase, ...] = ("before", "during", "after")
"""Of a drill: load alone; from the first step that does something to the end of the last step; load alone again."""

Count = Annotated[int, Field(ge=1)]

Direction = Literal["both", "out", "in"]


class InvalidDrill(Exception):
    """A drill that cannot be carried out as it is written; the message is one line."""


class Step(BaseModel):
    """One thing that is done.

    Attributes:
        do: What.
        target: A role, a region, or a name that an earlier step gave.
        process: Only this process of the region.
        other: The other side of a cut or delay; everybody else when absent.
        direction: Of a cut, seen from the target.
        named: What later steps call the target (`as` in the file).
        label: What the drill's expectations call the step.
        phase: For `until-phase`.
        says: For `until-said`: part of what the agent of each target gives as its trouble.
        seconds: For `sleep` and `drift`.
        within_s: How long to wait at most for the `until-` ones.
        delay_ms: For `delay`, one way.
        loss: For `delay`, the share of packets.
        leads_etcd: For `kill`: etcd's leadership is moved to the region first, and both are lost at once.
        leave_running: For `promote`: its PostgreSQL goes on running, as primary, when the region comes back.
        offset_s: For `clock`: how far the wall clock is off from now on; 0 sets it right.
        rate: For `drift`: seconds that the wall clock gains in each (a share; negative: loses).
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
        """Whether it does nothing but wait."""
        return self.do == "sleep" or self.do.startswith("until-")

    @property
    def needs_clocks(self) -> bool:
        """Whether it can be done only where the clocks of regions can be set."""
        return self.do in ("clock", "drift")

    @property
    def needs_disks(self) -> bool:
        """Whether it can be done only where the ledgers have disks of their own."""
        return self.do in ("fill-disk", "stall-disk", "mend-disk")

    @model_validator(mode="after")
    def _is_complete(self) -> Step:
        if self.do == "until-phase" and self.phase is None:
            raise ValueError("until-phase needs a phase")
        if (self.do == "until-said") != (self.says is not None):
            raise ValueError("until-said needs what it says, and nothing else does")
        if self.do in ("sleep", "drift") and self.seconds == 0:
            raise ValueError(f"{self.do} needs seconds")
        if self.do == "clock" and self.offset_s is None:
            raise ValueError("clock needs offset_s")
        if self.do == "drift" and self.rate == 0:
            raise ValueError("drift needs a rate")
        if self.leads_etcd and (self.do != "kill" or self.process is not None):
            raise ValueError("leads_etcd is for the kill of a whole region")
        if self.needs_disks and self.process is not None:
            raise ValueError(f"{self.do} takes a region, and no process of it")
        if self.stall_ms and self.do != "stall-disk":
            raise ValueError("stall_ms is for stall-disk")
        return self


class Load(BaseModel):
    """Who writes and reads meanwhile.

    Attributes:
        writers: Clients that post one keyed comment after another.
        unkeyed: Clients that post without a key, and never again what they are not sure of.
        readers: Clients that read with `strong` and `session` in turn.
        edges: Whose edge the clients prefer: those of the regions that do not lead at the start, or all.
        pause_ms: Between two writes of one client.
        before_s: Seconds of load before the first step.
        after_s: And after the last one.
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
    """The least number of keyed writes that are acknowledged in each phase, by the region whose edge takes them.

    A region that is not named owes none: it is dead, or no client prefers its edge. During the fault nobody may owe
    any.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    before: Annotated[Mapping[RoleAtStart, Count], Field(min_length=1)]
    during: Mapping[RoleAtStart, Count]
    after: Annotated[Mapping[RoleAtStart, Count], Field(min_length=1)]

    def of(self, phase: Phase) -> Mapping[RoleAtStart, int]:
        """Return what is declared for a phase."""
        declared: Mapping[RoleAtStart, int] = getattr(self, phase)
        return declared


class RefusedWindow(BaseModel):
    """A time in which keyed writers may be refused; what was sent in it may be refused later.

    At each edge it lasts until that edge has acknowledged a write that was sent since the step `until` began, at least
    to the end of that step and at most to the end of the method.

    Attributes:
        since: The label of the step with whose beginning it begins.
        until: The label of the step that brings about its end, such as `until-writes` or the `heal` of a cut.
        edges: Whose edge may refuse.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: str
    until: str
    edges: RoleAtStart | Literal["all"] = "all"


class Expect(BaseModel):
    """What must hold, besides what must hold in every drill.

    Attributes:
        fewest: The least number of acknowledged writes, by phase and region.
        reads_min: The least number of strong reads, and of session reads, before the fault; and as many after it.
        unkeyed_min: The same of answers to writers without a key.
        failovers: Fewest and most epochs that may begin.
        leader_moves: Whether another region must lead at the end; None: either will do.
        stall_s_max: Longest time without an acknowledgement, from the first write that suffered it.
        refused: When a living edge may refuse keyed writes; at no other time.
        refusal: Words that the cell's status must have shown while writes were refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fewest: Fewest
    reads_min: int = Field(default=5, ge=1)
    unkeyed_min: int = Field(default=3, ge=1)
    failovers: tuple[int, int] = (0, 0)
    leader_moves: bool | None = None
    stall_s_max: float = Field(default=5.0, gt=0)
    refused: tuple[RefusedWindow, ...] = ()
    refusal: str | None = None


class Drill(BaseModel):
    """A drill, as its file says it."""

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
        """Whether it can be carried out only where the clocks of regions can be set."""
        return any(step.needs_clocks for step in (*self.method, *self.rollback))

    @property
    def needs_disks(self) -> bool:
        """Whether it can be carried out only where the ledgers have disks of their own."""
        return any(step.needs_disks for step in (*self.method, *self.rollback))

    @model_validator(mode="after")
    def _does_something(self) -> Drill:
        if all(step.waits for step in self.method):
            raise ValueError("no step does anything")
        return self

    @model_validator(mode="after")
    def _windows_are_steps_of_the_method(self) -> Drill:
        labels = [step.label for step in self.method]
        given = [label for label in labels if label is not None]
        if len(set(given)) < len(given):
            raise ValueError("two steps have one label")
        for window in self.expect.refused:
            for label in (window.since, window.until):
                if label not in given:
                    raise ValueError(f"no step is labelled {label!r}")
            if labels.index(window.since) > labels.index(window.until):
                raise ValueError(f"{window.until!r} comes before {window.since!r}")
        return self

    @model_validator(mode="after")
    def _who_is_promoted_was_killed(self) -> Drill:
        """A ledger whose agent lives is the agent's: an operator takes one by hand only where all else is dead."""
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
                    raise ValueError(f"step {number}: nobody is called {name!r}")
            if step.named is not None:
                known.add(step.named)
        return self


def load_drill(path: Path) -> Drill:
    """Read a drill.

    Raises:
        InvalidDrill: The file is not there, no TOML, or says something that no drill says.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidDrill(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidDrill(f"{path} is no TOML: {error}") from error
    try:
        return Drill.model_validate({"name": path.stem, **document})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidDrill(f"{path}: {where or 'drill'}: {first['msg']}") from error


def catalogue() -> dict[str, Drill]:
    """Return the drills that come with the package, by name."""
    return {path.stem: load_drill(path) for path in sorted(CATALOGUE.glob("*.toml"))}


def find_drill(wanted: str) -> Drill:
    """Return a drill by its name in the catalogue or by its file.

    Raises:
        InvalidDrill: There is none.
    """
    path = CATALOGUE / f"{wanted}.toml"
    if path.exists():
        return load_drill(path)
    if wanted.endswith(".toml"):
        return load_drill(Path(wanted))
    raise InvalidDrill(f"there is no drill {wanted!r}; see `palaver drill list`, or name a .toml file")
