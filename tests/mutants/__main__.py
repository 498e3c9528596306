"""`python -m tests.mutants`: runs the tests against all mutants, and reports those that survive.

Exits with 1 if a mutant survives that `equivalent.toml` does not name, or if it names one that is detected or gone.
"""

import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated

import pytest
import typer

from tests.mutants.campaign import SLOWER_MAX, SOURCES, TESTS, TOO_LONG, Plugin, baseline, in_process_of_its_own
from tests.mutants.operators import Mutant, mutants_of

LIST = Path(__file__).parent / "equivalent.toml"


def main(
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this source, such as rules.py; repeat for several.")
    ] = None,
    matching: Annotated[str, typer.Option("--matching", help="Only mutants whose key contains this text.")] = "",
    all_lines: Annotated[bool, typer.Option("--all-lines", help="Print a line for each mutant.")] = False,
) -> None:
    """Run the pure tests of the failover core against all mutants of it."""
    sources = only or tomllib.loads(LIST.read_text())["judged"]
    mutants = [
        mutant
        for path in sorted(SOURCES.glob("*.py"))
        if path.name in sources
        for mutant in mutants_of(path.name, path.read_text())
        if matching in mutant.key
    ]
    noticed: dict[str, str | None] = {}

    def tell(mutant: Mutant, by: str | None) -> None:
        noticed[mutant.key] = by
        if by is None or all_lines or by == TOO_LONG:
            verdict = "SURVIVES" if by is None else "TOO LONG" if by == TOO_LONG else "noticed "
            typer.echo(f"{verdict}  {mutant.key}  (line {mutant.line}){f'  by {by}' if by and all_lines else ''}")

    outside = [one for one in mutants if not one.function]
    seconds = SLOWER_MAX * baseline() if outside else 0.0
    for mutant in outside:
        tell(mutant, in_process_of_its_own(mutant, seconds))
    inside = [one for one in mutants if one.function]
    if inside:
        code = pytest.main(["-q", "-s", "-p", "no:cacheprovider", *TESTS], plugins=[Plugin(inside, tell)])
        assert code == pytest.ExitCode.OK, f"pytest ended with {code}"
    raise typer.Exit(_judged(mutants, noticed, whole=not only and not matching))


def _judged(mutants: list[Mutant], noticed: dict[str, str | None], *, whole: bool) -> int:
    survivors = {key for key, by in noticed.items() if by is None}
    known = {
        key: group["because"] for group in tomllib.loads(LIST.read_text())["equivalent"] for key in group["mutants"]
    }
    files = Counter(mutant.file for mutant in mutants)
    for file, count in files.items():
        left = [one.key for one in mutants if one.file == file and one.key in survivors]
        typer.echo(
            f"{file:16} {count:5} mutants {len(left):4} survive, {sum(one in known for one in left):4} of them known"
        )
    new = sorted(survivors - known.keys())
    stale = sorted(key for key in known if key not in survivors and (whole or key in noticed))
    late = sum(by == TOO_LONG for by in noticed.values())
    if late:
        typer.echo(f"{late} count as detected because they exceeded the time limit")
    typer.echo(f"{len(mutants)} mutants, {len(survivors)} survive, {len(survivors) - len(new)} of them known")
    for key in new:
        typer.echo(f"survives, but is not in {LIST.name}: {key}")
    for key in stale:
        typer.echo(f"is in {LIST.name}, but does not survive: {key}")
    return 1 if new or stale else 0


if __name__ == "__main__":
    typer.run(main)
