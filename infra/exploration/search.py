"""Searches all states breadth first, each once, so the first violation found has a shortest path."""

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from infra.exploration.moves import successors
from infra.exploration.node import Violation
from infra.exploration.state_space import Label, Move, State, StateSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterexample:
    """The path from the start to a violation.

    Attributes:
        path: The moves before the violation, each with the state after it.
        label: The label of the move that violated an invariant.
        what: The violation, in words.
    """

    path: tuple[Move, ...]
    label: Label
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The result of a search.

    Attributes:
        states: Number of distinct states that were found, including the start.
        moves: Number of moves that were tried.
        depth: Number of steps from the start to the farthest state.
        complete: Whether every state within the bounds was found.
        counterexample: The first violation; None if there is none.
        reached: The moves to the first state that fits the goal; None if there is no goal, or no state fits it.
    """

    states: int
    moves: int
    depth: int
    complete: bool
    counterexample: Counterexample | None = None
    reached: tuple[Move, ...] | None = None


class Search:
    """One search. It stores the predecessor of each state and the ordinal of the move that led to it."""

    def __init__(self, space: StateSpace, start: State, until: Callable[[State], bool] | None = None) -> None:
        """Prepare a search from ``start`` within the bounds of ``space``, up to the first state that fits ``until``."""
        self._world = space
        self._start = start
        self._until = until
        self._seen = {space.canonical(start)}
        self._parents = array("q", [-1])
        self._ordinals = array("l", [-1])
        self._moves = 0

    def run(self) -> SearchResult:
        """Search, and return the result."""
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
            except Violation as violated:
                path = tuple(self._path(number))
                found = Counterexample(path=path, label=violated.label, what=str(violated))
                return self._report(depth + 1, complete=False, counterexample=found)
        return self._report(depth, complete=True)

    def _new(self, number: int, state: State) -> Iterator[State]:
        """Try every move from a state, and yield each new state, right after it was stored as the newest."""
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
    ) -> SearchResult:  # fmt: skip
        return SearchResult(
            states=len(self._parents), moves=self._moves, depth=depth, complete=complete,
            counterexample=counterexample, reached=reached,
        )  # fmt: skip
