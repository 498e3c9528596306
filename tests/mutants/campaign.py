"""Runs tests against mutants, each in a fork of a process that has collected the tests once.

A mutant lives in the memory of its fork: no file is written. What is inside of a function takes the place of the
function's code; what is outside of functions needs a process that imports the mutant from the start.

A mutant counts as noticed when a test fails, when it cannot be imported, when its process ends, or when it takes too
long. Whatever else goes wrong says nothing about the mutant, and ends the campaign.
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
"""Then a mutant counts as noticed: it loops. The slowest test of the core takes a second."""

BASELINE_S_MAX = 600
SLOWER_MAX = 5
"""A mutant that needs a process of its own may take so many times as long as the tests without a mutant."""

TOO_LONG = "took too long"


class CampaignBroken(Exception):
    """Something failed that is not the mutant; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a fork ended.

    Attributes:
        how: It could not be prepared, returned, raised, ended without an answer, or took too long.
        answer: What it returned, or a text.
    """

    how: Literal["unprepared", "returned", "raised", "ended", "late"]
    answer: Any = None


class Plugin:
    """Stands in the place of pytest's loop over its tests."""

    def __init__(self, mutants: list[Mutant], tell: Callable[[Mutant, str | None], None]) -> None:
        """Prepare to run the tests against mutants, and to tell of each what noticed it."""
        self._mutants = mutants
        self._tell = tell

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all tests once to see which functions each enters, then those of each mutant."""
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


def _noticed(items: list[pytest.Item], tests: list[int]) -> str | None:
    for number, at in enumerate(tests):
        following = items[tests[number + 1]] if number + 1 < len(tests) else None
        if _fails(items[at], following):
            return items[at].nodeid
    return None


def by_what(mutant: Mutant, ended: Ended) -> str | None:
    """What noticed a mutant; None when nothing did.

    Raises:
        CampaignBroken: It was not in its place, or what runs the tests failed.
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
    """Call a function in a fork of this process, after what prepares it; tell how that ended."""
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
        except BaseException:  # noqa: BLE001 - whatever it is, it is told
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
    """Everything up to the end; None when that does not come in time."""
    told = b""
    while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            return told
        told += part
    return None


# Changes outside of functions.


class _Collection:
    """Notes whether a file of tests could be collected."""

    def __init__(self) -> None:
        self.failed = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.failed = self.failed or report.failed


def all_tests() -> str | None:
    """Run all tests in this process, up to the first that fails; return what failed, or None.

    Raises:
        CampaignBroken: Pytest itself did.
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
    """Run all tests without a mutant, as a mutant is run; return how long they take, seconds.

    Raises:
        CampaignBroken: They fail.
    """
    began = time.monotonic()
    ended = in_fork(all_tests, BASELINE_S_MAX)
    if ended != Ended(how="returned"):
        raise CampaignBroken(f"the tests fail without a mutant: {ended.how} {ended.answer}")
    return time.monotonic() - began


def in_process_of_its_own(mutant: Mutant, seconds: float) -> str | None:
    """Run all tests in a process that imports a mutant from the start; return what noticed it.

    Raises:
        CampaignBroken: It was not in its place, or what runs the tests failed.
    """
    finder = Finder(mutant)
    return by_what(mutant, in_fork(partial(_imported_and_tested, finder), seconds, prepare=finder.put_in_place))


def _imported_and_tested(finder: "Finder") -> str | None:
    try:
        module = import_module(finder.module)
    except Exception as error:  # noqa: BLE001 - its source was compiled before: this is the mutant's
        return f"its import: {type(error).__name__}"
    if not isinstance(module.__loader__, _Loader):
        raise CampaignBroken("another module was imported")
    return all_tests()


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
        """Compile one mutant."""
        self.module = f"{PACKAGE}.{mutant.file.removesuffix('.py')}"
        path = SOURCES / mutant.file
        self._code = compile(mutated(path.read_text(), mutant), str(path), "exec")

    def put_in_place(self) -> None:
        """Let this process import the mutant, before anything imports its source."""
        if any(name.startswith(PACKAGE) for name in sys.modules):
            raise CampaignBroken("its source was imported before it")
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module with the mutant's code."""
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
