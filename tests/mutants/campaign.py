"""Runs tests against mutants, each in a fork of a process that has collected the tests once.

A mutant lives in the memory of its fork: no file is written. What is inside of a function takes the place of the
function's code; what is outside of functions needs a process that imports the mutant from the start.
"""

import ast
import inspect
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, cast

import pytest
from _pytest.runner import runtestprotocol

from tests.mutants.operators import Mutant, mutated

PACKAGE = "regions.failover"
SOURCES = Path(__file__).parents[2] / "regions" / "failover"
TESTS = ("tests/regions/failover", "tests/scenarios")

MUTANT_S_MAX = 120
"""Then a mutant counts as noticed: it loops. The slowest test of the core takes a second."""


class Plugin:
    """Stands in the place of pytest's loop over its tests."""

    def __init__(self, mutants: list[Mutant], tell: Callable[[Mutant, str | None], None]) -> None:
        """Prepare to run the tests against mutants, and to tell of each what noticed it."""
        self._mutants = mutants
        self._tell = tell

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all tests once to see which functions each enters, then those of each mutant."""
        entered = in_fork(lambda: _entered(session.items), 600)
        assert isinstance(entered, list), f"the tests fail without a mutant: {entered}"
        tests = sorted(cast("list[Entered]", entered))
        for mutant in self._mutants:
            wanted = [at for _, at, functions in tests if (mutant.file, mutant.function) in functions]
            self._tell(mutant, in_fork(partial(_noticed, mutant, session.items, wanted)))
        return True


Entered = tuple[float, int, set[tuple[str, str]]]
"""How long a test takes, its number, and the functions of the core that it enters."""


def _entered(items: list[pytest.Item]) -> list[Entered]:
    found: list[Entered] = []
    for at, item in enumerate(items):
        functions: set[tuple[str, str]] = set()

        def note(frame: FrameType, event: str, _argument: object, seen: set[tuple[str, str]] = functions) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(str(SOURCES)):
                name = frame.f_code.co_qualname.split(".<locals>")[0]
                seen.add((Path(frame.f_code.co_filename).name, name))

        begun = time.process_time()
        sys.setprofile(note)
        failed = _fails(item, items[at + 1] if at + 1 < len(items) else None)
        sys.setprofile(None)
        assert not failed, item.nodeid
        found.append((time.process_time() - begun, at, functions))
    return found


def _fails(item: pytest.Item, following: pytest.Item | None) -> bool:
    return any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def _noticed(mutant: Mutant, items: list[pytest.Item], tests: list[int]) -> str | None:
    install(mutant)
    for number, at in enumerate(tests):
        following = items[tests[number + 1]] if number + 1 < len(tests) else None
        if _fails(items[at], following):
            return items[at].nodeid
    return None


def in_fork(what: Callable[[], Any], seconds: int = MUTANT_S_MAX) -> Any:
    """What a function returns in a fork of this process; a text when it ends otherwise, or takes too long."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            answer = repr(what())
        except BaseException:  # noqa: BLE001 - whatever ends a mutant has noticed it
            answer = repr("raised " + traceback.format_exc().strip().splitlines()[-1])
        _write_all(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    told = b"".join(_read(reader, time.monotonic() + seconds))
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return ast.literal_eval(told.decode()) if told else "ended, or took too long"


def _write_all(writer: int, answer: bytes) -> None:
    while answer:
        answer = answer[os.write(writer, answer) :]


def _read(reader: int, until: float) -> Iterator[bytes]:
    while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            return
        yield part


# Putting a mutant in its place.


def install(mutant: Mutant) -> None:
    """Let a function of this process do what its mutant does."""
    module = import_module(f"{PACKAGE}.{mutant.file.removesuffix('.py')}")
    path = SOURCES / mutant.file
    code = _code(compile(mutated(path.read_text(), mutant), str(path), "exec"), mutant.function)
    assert code is not None, f"no function {mutant.function} in {mutant.file}"
    owner: Any = module
    *classes, name = mutant.function.split(".")
    for one in classes:
        owner = getattr(owner, one)
    function: Any = inspect.getattr_static(owner, name)
    if isinstance(function, property):
        function = cast("Any", function.fget)
    elif isinstance(function, staticmethod | classmethod):
        function = cast("Any", function).__func__
    elif not isinstance(function, FunctionType):
        function.cache_clear()
        function = function.__wrapped__
    function.__code__ = code


def _code(code: CodeType, name: str) -> CodeType | None:
    for one in code.co_consts:
        if isinstance(one, CodeType):
            if one.co_qualname == name:
                return one
            found = _code(one, name)
            if found is not None:
                return found
    return None


class Finder(MetaPathFinder):
    """Imports a mutant in the place of its source."""

    def __init__(self, mutant: Mutant) -> None:
        """Prepare for one mutant, before anything imports its source."""
        self._mutant = mutant
        self._module = f"{PACKAGE}.{mutant.file.removesuffix('.py')}"

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module with the mutant's code."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == self._module else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
            spec.loader.mutant = self._mutant
        return spec


class _Loader(SourceFileLoader):
    mutant: Mutant

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return compile(mutated(Path(path).read_text(), self.mutant), path, "exec")
