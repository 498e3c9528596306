"""Runs tests against mutants, each in a fork of a process that has collected the tests once.

A mutant exists only in the memory of its fork; no file is written. A mutant inside a function replaces the function's
code. A mutant outside functions runs in a process that imports the changed source.

A mutant counts as detected if a test fails, if it cannot be imported, if its process ends, or if it exceeds the time
limit. Any other failure shows nothing about the mutant, and stops the campaign.
"""

import ast
import inspect
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Literal, cast

import pytest
from _pytest.runner import runtestprotocol

from tests.mutants.operators import Mutant, mutated

PACKAGE = "regions.failover"
SOURCES = Path(__file__).parents[2] / "regions" / "failover"
TESTS = ("tests/regions/failover", "tests/scenarios")

MUTANT_S_MAX = 120
"""Time limit of a mutant: above it the mutant loops, because the slowest test of the core takes a second."""

BASELINE_S_MAX = 600
"""Time limit of the tests without a mutant."""
SLOWER_MAX = 5
"""Time limit of a mutant that needs its own process, as a multiple of the time of the tests without a mutant."""

TOO_LONG = "took too long"


class CampaignBroken(Exception):
    """A failure that the mutant did not cause; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a fork ended.

    Attributes:
        how: Whether its preparation failed, it returned, it raised, it ended without an answer, or it exceeded its time
            limit.
        answer: The value that it returned, or a text.
    """

    how: Literal["unprepared", "returned", "raised", "ended", "late"]
    answer: Any = None


class Plugin:
    """Replaces pytest's loop over the tests."""

    def __init__(self, mutants: list[Mutant], tell: Callable[[Mutant, str | None], None]) -> None:
        """Prepare to run the tests against the mutants; ``tell`` is called with each mutant and what detected it."""
        self._mutants = mutants
        self._tell = tell

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all tests once to record which functions each enters, then the tests of each mutant."""
        entered = in_fork(lambda: _entered(session.items), BASELINE_S_MAX)
        if entered.how != "returned":
            raise CampaignBroken(f"the tests fail without a mutant: {entered.answer}")
        tests = sorted(cast("list[Entered]", entered.answer))
        for mutant in self._mutants:
            wanted = [at for _, at, functions in tests if (mutant.file, mutant.function) in functions]
            ended = in_fork(partial(_noticed, session.items, wanted), prepare=partial(install, mutant))
            self._tell(mutant, by_what(mutant, ended))
        return True


Entered = tuple[float, int, set[tuple[str, str]]]
"""The processor seconds of a test, its index, and the (file, function) pairs of the core that it enters."""


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


def _noticed(items: list[pytest.Item], tests: list[int]) -> str | None:
    for number, at in enumerate(tests):
        following = items[tests[number + 1]] if number + 1 < len(tests) else None
        if _fails(items[at], following):
            return items[at].nodeid
    return None


def by_what(mutant: Mutant, ended: Ended) -> str | None:
    """Return what detected a mutant; None if nothing did.

    Raises:
        CampaignBroken: The mutant was not installed, or running the tests failed.
    """
    match ended.how:
        case "returned":
            return cast("str | None", ended.answer)
        case "late":
            return TOO_LONG
        case "ended" if ended.answer != f"killed by signal {int(signal.SIGKILL)}":
            return f"its process ended: {ended.answer}"
        case _:
            raise CampaignBroken(f"{mutant.key}: {ended.how}: {ended.answer}")


def in_fork(
    what: Callable[[], Any], seconds: float = MUTANT_S_MAX, *, prepare: Callable[[], None] | None = None
) -> Ended:
    """Call ``prepare`` and then ``what`` in a fork of this process, and return how the fork ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        how = "unprepared"
        try:
            if prepare is not None:
                prepare()
            how = "raised"
            answer = repr(("returned", what()))
        except BaseException:  # noqa: BLE001 - the parent process receives any error
            answer = repr((how, traceback.format_exc().strip().splitlines()[-1]))
        _write_all(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    told = _read(reader, time.monotonic() + seconds)
    os.close(reader)
    if told != b"":
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if told is None:
        return Ended(how="late", answer=f"more than {seconds:.0f} s")
    if not told:
        code = os.waitstatus_to_exitcode(status)
        return Ended(how="ended", answer=f"exit code {code}" if code >= 0 else f"killed by signal {-code}")
    how, answer = ast.literal_eval(told.decode())
    return Ended(how=how, answer=answer)


def _write_all(writer: int, answer: bytes) -> None:
    while answer:
        answer = answer[os.write(writer, answer) :]


def _read(reader: int, until: float) -> bytes | None:
    """Everything that is written before the pipe is closed; None if it is not closed in time."""
    told = b""
    while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            return told
        told += part
    return None


# Mutants outside functions.


class _Collection:
    """Records whether pytest failed to collect a file of tests."""

    def __init__(self) -> None:
        self.failed = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.failed = self.failed or report.failed


def all_tests() -> str | None:
    """Run all tests in this process, up to the first failure; return a text that names what failed, or None.

    Raises:
        CampaignBroken: Pytest itself failed.
    """
    collection = _Collection()
    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *TESTS], plugins=[collection])
    if code == pytest.ExitCode.OK:
        return None
    if code == pytest.ExitCode.TESTS_FAILED:
        return "some test"
    if collection.failed:
        return "a file of tests that cannot be imported"
    raise CampaignBroken(f"pytest ended with {code!r}")


def baseline() -> float:
    """Run all tests without a mutant, in the same way as with one; return their duration in seconds.

    Raises:
        CampaignBroken: A test failed.
    """
    began = time.monotonic()
    ended = in_fork(all_tests, BASELINE_S_MAX)
    if ended != Ended(how="returned"):
        raise CampaignBroken(f"the tests fail without a mutant: {ended.how} {ended.answer}")
    return time.monotonic() - began


def in_process_of_its_own(mutant: Mutant, seconds: float) -> str | None:
    """Run all tests in a process that imports the mutant instead of its source; return what detected it, or None.

    Raises:
        CampaignBroken: The mutant was not installed, or running the tests failed.
    """
    finder = Finder(mutant)
    return by_what(mutant, in_fork(partial(_imported_and_tested, finder), seconds, prepare=finder.put_in_place))


def _imported_and_tested(finder: "Finder") -> str | None:
    try:
        module = import_module(finder.module)
    except Exception as error:  # noqa: BLE001 - the source compiles, so the mutant causes the error
        return f"its import: {type(error).__name__}"
    if not isinstance(module.__loader__, _Loader):
        raise CampaignBroken("another module was imported")
    return all_tests()


# Installing a mutant.


def install(mutant: Mutant) -> None:
    """Replace the code of a function in this process by its mutant."""
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
    """An import hook that imports a mutant instead of its source."""

    def __init__(self, mutant: Mutant) -> None:
        """Compile one mutant."""
        self.module = f"{PACKAGE}.{mutant.file.removesuffix('.py')}"
        path = SOURCES / mutant.file
        self._code = compile(mutated(path.read_text(), mutant), str(path), "exec")

    def put_in_place(self) -> None:
        """Install the hook in this process, before any module imports the source.

        Raises:
            CampaignBroken: The source was imported already.
        """
        if any(name.startswith(PACKAGE) for name in sys.modules):
            raise CampaignBroken("its source was imported before it")
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of the mutant's module; None for any other module."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == self.module else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
            spec.loader.code = self._code
        return spec


class _Loader(SourceFileLoader):
    code: CodeType

    def get_code(self, fullname: str) -> CodeType:
        del fullname
        return self.code
