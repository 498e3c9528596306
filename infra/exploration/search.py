"""Breadth first through all states, each once; the first violation found is one of the shortest."""

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from infra.exploration.moves import successors
from infra.exploration.node import Violated
from infra.exploration.world import Label, Move, State, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterexample:
    """How to get from the start to where something went wrong.

    Attributes:
        path: The moves, with the state that each led to.
        label: The move that went wrong.
        what: What went wrong.
    """

    path: tuple[Move, ...]
    label: Label
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """What came of a search.

    Attributes:
        states: Distinct states that were found, the start among them.
        moves: Moves that were tried.
        depth: Steps from the start to the farthest state.
        complete: Whether every state within the bounds was found.
        counterexample: The first violation; None when there is none.
        reached: Moves to a state that was looked for; None when it was not found, or none was.
    """

    states: int
    moves: int
    depth: int
    complete: bool
    counterexample: Counterexample | None = None
    reached: tuple[Move, ...] | None = None


class Search:
    """One search, with what it remembers of each state: where it came from, and by which move."""

    def __init__(self, world: World, start: State, until: Callable[[State], bool] | None = None) -> None:
        """Prepare a search from ``start`` within the world's bounds, or until a state fits ``until``."""
        self._world = world
        self._start = start
        self._until = until
        self._seen = {world.canonical(start)}
        self._parents = array("q", [-1])
        self._ordinals = array("l", [-1])
        self._moves = 0

    def run(self) -> Explored:
        """Search."""
        if self._until is not None and self._until(self._start):
            return self._report(0, complete=False, reached=())
        frontier = deque([(0, self._start)])
        depth, level_ends, bounds = 0, 1, self._world.bounds
        while frontier:
            number, state = frontier.popleft()
            if number >= level_ends:
                depth, level_ends = depth + 1, len(self._parents)
            if depth == bounds.depth_max or (bounds.states_max and len(self._parents) >= bounds.states_max):
                return self._report(depth, complete=False)
            try:
                for after in self._new(number, state):
                    frontier.append((len(self._parents) - 1, after))
                    if self._until is not None and self._until(after):
                        path = tuple(self._path(len(self._parents) - 1))
                        return self._report(depth + 1, complete=False, reached=path)
            except Violated as violated:
                path = tuple(self._path(number))
                found = Counterexample(path=path, label=violated.label, what=str(violated))
                return self._report(depth + 1, complete=False, counterexample=found)
        return self._report(depth, complete=True)

    def _new(self, number: int, state: State) -> Iterator[State]:
        """Take every move, and give the states that were not known; each is the newest in memory."""
        canonical, seen = self._world.canonical, self._seen
        for ordinal, (_, after) in enumerate(successors(self._world, state)):
            self._moves += 1
            key = canonical(after)
            if key not in seen:
                seen.add(key)
                self._parents.append(number)
                self._ordinals.append(ordinal)
                yield after

    def _path(self, number: int) -> Iterator[Move]:
        ordinals: list[int] = []
        while number:
            ordinals.append(self._ordinals[number])
            number = self._parents[number]
        state = self._start
        for wanted in reversed(ordinals):
            label, state = next(
                move for ordinal, move in enumerate(successors(self._world, state)) if ordinal == wanted
            )  # fmt: skip
            yield label, state

    def _report(
        self, depth: int, *, complete: bool, counterexample: Counterexample | None = None,
        reached: tuple[Move, ...] | None = None,
    ) -> Explored:  # fmt: skip
        return Explored(
            states=len(self._parents), moves=self._moves, depth=depth, complete=complete,
            counterexample=counterexample, reached=reached,
        )  # fmt: skip
