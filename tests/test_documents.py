"""Compares the documents with the code: confirmations of decisions, settings, metrics, commands, paths and links."""

import importlib
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic_settings import BaseSettings

from infra.cli.main import make_app
from infra.servers.unprivileged import account
from infra.supervisor.environment import DeploymentContext, service_environment
from infra.supervisor.layout import Layout
from infra.supervisor.plan import Plan
from infra.supervisor.records import DEPLOYMENT_VARIABLE
from infra.supervisor.secrets import Secrets
from tests import child_processes

ROOT = Path(__file__).parents[1]
PROCESSES = ("region_agent", "write_api", "read_api", "replicator")
DECISIONS = sorted((ROOT / "adr").glob("[0-9]*.md"))
LINE_OF_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
SETTING_ROW = re.compile(r"^\| `([A-Z][A-Z_]+)` \| ([^|]+) \|", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def ignored_names() -> set[str]:
    """Top-level folders that tools create."""
    lines = (ROOT / ".gitignore").read_text().split()
    return {line.rstrip("/") for line in lines} | {".git"}


def documents() -> list[Path]:
    """Every Markdown file of the repository."""
    skipped = ignored_names()
    return sorted(
        path
        for path in ROOT.rglob("*.md")
        if not any(part in skipped or part.endswith(".egg-info") for part in path.relative_to(ROOT).parts)
    )


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def sections(text: str, level: int) -> dict[str, str]:
    """Return the text below each heading of one level."""
    parts = re.split(rf"^#{{{level}}} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named_paths(text: str) -> Iterator[str]:
    """Return the texts in backticks that are paths of this repository."""
    folders = {path.name for path in ROOT.iterdir()}
    for name in CODE.findall(text):
        if re.fullmatch(r"[\w./-]+(::\w+)?", name) and name.split("/")[0].split("::")[0] in folders:
            yield name


def assert_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert (ROOT / path).exists(), f"{path} is named and not there"
    if test:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE), f"{name} is not there"


@pytest.mark.parametrize("path", DECISIONS, ids=relative)
def test_every_decision_is_confirmed_by_something_that_exists(path: Path) -> None:
    text = path.read_text()
    assert re.match(r"---\nstatus: \w+\ndate: \d{4}-\d\d-\d\d\n---\n# \d{4} ", text), "front matter and a title"
    for heading in ("Context and Problem Statement", "Considered Options", "Decision Outcome"):
        assert f"\n## {heading}\n" in text
    confirmation = sections(text, 3)["Confirmation"]
    names = list(named_paths(confirmation))
    assert names, "the confirmation names no file of the repository"
    for name in names:
        assert_exists(name)


@pytest.mark.parametrize("path", DECISIONS, ids=relative)
def test_a_decision_has_150_to_450_words(path: Path) -> None:
    _, _, body = path.read_text().split("---\n", 2)
    words = [word for word in body.split() if re.search(r"\w", word)]
    assert 150 <= len(words) <= 450


def test_decision_numbers_have_no_gap() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


def test_the_architecture_lists_every_decision_once_by_its_title() -> None:
    listed = sections((ROOT / "ARCHITECTURE.md").read_text(), 2)["Decisions"]
    rows = re.findall(r"^\| \[(\d{4})\]\((adr/[^)]+)\) \| (.+?)(?: \(superseded by \d{4}\))? \|$", listed, re.MULTILINE)
    titled = [(relative(path), LINE_OF_HEADING.findall(path.read_text())[0]) for path in DECISIONS]
    assert sorted((link, f"{number} {title}") for number, link, title in rows) == titled


@pytest.mark.parametrize("path", documents(), ids=relative)
def test_paths_that_a_document_names_exist(path: Path) -> None:
    text = FENCE.sub("", path.read_text())
    generated = ignored_names()
    for name in named_paths(text):
        if name.split("/")[0] not in generated:
            assert_exists(name)


def anchor(heading: str) -> str:
    """Return the fragment of a heading by GitHub's rule."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", documents(), ids=relative)
def test_relative_links_have_a_target(path: Path) -> None:
    for target in LINK.findall(FENCE.sub("", path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, fragment = target.partition("#")
        found = path.parent / file if file else path
        assert found.exists(), f"{target} leads nowhere"
        if fragment:
            headings = LINE_OF_HEADING.findall(FENCE.sub("", found.read_text()))
            assert fragment in map(anchor, headings), f"{target} names no heading"


def test_every_folder_of_the_top_level_is_described() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    tools = ignored_names()
    folders = [
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and path.name not in tools and not path.name.endswith(".egg-info")
    ]
    assert "regions" in folders
    for folder in folders:
        assert f"**`{folder}/`**" in text, f"{folder}/ is not described"


def test_the_readme_names_the_targets_of_make_and_no_others() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    targets = set(re.findall(r"^  make ([a-z-]+)", listed, re.MULTILINE))
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\| `make ([a-z-]+)` \|", text, re.MULTILINE)) == targets
    assert set(re.findall(r"\bmake ([a-z]+)`", text)) <= targets


def commands(group: Any, words: str = "palaver") -> Iterator[tuple[str, Any]]:
    """Return every command of the command line with its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{words} {name}")
        else:
            yield f"{words} {name}", command


def test_the_readme_names_each_command_and_its_options() -> None:
    rows = re.findall(r"^\| (`palaver .+?) \| ", (ROOT / "README.md").read_text(), re.MULTILINE)
    # `palaver failover pause` or `resume`: the row names the second command by its last word.
    missing: list[str] = []
    for words, command in commands(typer.main.get_command(make_app())):
        *group, name = words.split()
        own = [
            row
            for row in rows
            if re.search(rf"{words}(?![\w-])", row) or (f"`{name}`" in row and row.startswith(f"`{' '.join(group)} "))
        ]
        if not own:
            missing.append(words)
        for parameter in command.params:
            names = {*parameter.opts, *parameter.secondary_opts}
            optional = all(one.startswith("-") for one in names) and not names & {"--data", "--help"}
            if own and optional and not any(re.search(rf"{one}(?![\w-])", row) for row in own for one in names):
                missing.append(f"{words} {' '.join(sorted(names))}")
    assert not missing


@cache
def settings_of(process: str) -> dict[str, tuple[bool, object]]:
    """Map each environment name to (required, default), for every settings class of a process."""
    importlib.import_module(f"services.{process}.settings")
    found: dict[str, tuple[bool, object]] = {}
    for kind in _descendants(BaseSettings):
        if kind.__module__.startswith(f"services.{process}."):
            prefix = kind.model_config.get("env_prefix") or ""
            for name, field in kind.model_fields.items():
                default = None if field.is_required() else field.get_default(call_default_factory=False)
                found[f"{prefix}{name}".upper()] = (field.is_required(), default)
    return found


def _descendants(kind: type[BaseSettings]) -> Iterator[type[BaseSettings]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)


@cache
def documented_settings() -> dict[str, dict[str, str]]:
    """Map each documented setting to its default, by section: a process, or `Outside of the services`."""
    found: dict[str, dict[str, str]] = {}
    for heading, text in sections((ROOT / "docs" / "settings.md").read_text(), 2).items():
        for process in CODE.findall(heading) or [heading]:
            found.setdefault(process, {}).update(SETTING_ROW.findall(text))
    return found


@pytest.mark.parametrize("process", PROCESSES)
def test_the_documented_settings_are_those_of_the_processes(process: str) -> None:
    settings = settings_of(process)
    assert settings, f"{process} has no settings class"
    assert set(documented_settings()[process]) == set(settings)


@pytest.mark.parametrize("process", PROCESSES)
def test_documented_defaults_match_the_code(process: str) -> None:
    for name, (required, default) in settings_of(process).items():
        written = documented_settings()[process][name].strip().strip("`")
        assert written == ("required" if required else "none" if default is None else str(default)), name


@pytest.mark.parametrize("process", PROCESSES)
def test_the_supervisor_sets_all_required_and_only_known_settings_of_each_process(process: str) -> None:
    plan = Plan(deployment="documents", regions=("us-east", "eu-west", "ap-south"))
    # The environment of the agent is made for PostgreSQL's account, which must be able to reach the folder.
    with child_processes.folder(account()) as data:
        layout = Layout(data=data)
        context = DeploymentContext(
            plan=plan, secrets=Secrets(), layout=layout, postgres_bin=data / "bin", os_user="nobody"
        )
        given = {name for name in service_environment(context, "eu-west", process) if name.startswith("PALAVER_")}
    settings = settings_of(process)
    assert given - {DEPLOYMENT_VARIABLE} <= set(settings)
    assert {name for name, (required, _) in settings.items() if required} <= given


def test_the_table_of_processes_matches_the_code() -> None:
    assert {path.parent.name for path in (ROOT / "services").glob("*/__main__.py")} == set(PROCESSES)


def test_every_environment_variable_outside_of_the_services_is_documented() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    documented = {name for name, _ in SETTING_ROW.findall(text)}
    used = {
        name
        for folder in ("infra", "loadtests")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"\"(PALAVER_[A-Z_]+)\"", path.read_text())
    }
    assert used
    assert used <= documented


def test_the_listed_metrics_are_those_of_the_code() -> None:
    made = re.compile(r"(?:Gauge|Counter|Histogram|MetricFamily|_gauge|_counter)\(\s*\"(palaver_[a-z_]+?)(?:_total)?\"")
    names = {
        name
        for folder in ("services", "infra")
        for path in (ROOT / folder).rglob("*.py")
        for name in made.findall(path.read_text())
    }
    assert names
    assert set(re.findall(r"`(palaver_[a-z_]+)`", (ROOT / "docs" / "operations.md").read_text())) == names


def test_the_table_of_enforced_rules_names_only_rules_of_the_protocol() -> None:
    text = (ROOT / "docs" / "failover.md").read_text()
    rules = {int(number) for number in re.findall(r"^(\d+)\. \*\*", sections(text, 2)["The rules"], re.MULTILINE)}
    assert rules == set(range(1, 21))
    enforced = sections((ROOT / "ARCHITECTURE.md").read_text(), 3)["Rules that are enforced today"]
    rows = {int(number) for number in re.findall(r"^\| (\d+) ", enforced, re.MULTILINE)}
    assert rows <= rules


@pytest.mark.parametrize(
    ("heading", "example", "folders"),
    [
        ("To add a setting", "page_life_s", ("services/read_api/settings.py",)),
        ("To add a route", "/v1/sites/{site}/counts", ("services",)),
        ("To add a table", "merge_votes", ("services", "sync")),
        ("To add a table", "palaver.votes", ("services", "sync")),
        ("To add an effect of the failover core", "WriteFence", ("regions", "infra", "tests/scenarios")),
        ("To add a drill", '"cut"', ("infra/drills",)),
        ("Worked example: a field of a comment", "author_url", ("services", "sync", "infra")),
    ],
)
def test_contributing_names_each_file_that_an_example_is_in(
    heading: str, example: str, folders: tuple[str, ...]
) -> None:
    named = set(named_paths(sections((ROOT / "CONTRIBUTING.md").read_text(), 3)[heading].split("\n## ")[0]))
    found = {
        relative(path)
        for folder in folders
        for path in [ROOT / folder, *(ROOT / folder).rglob("*")]
        if path.suffix in {".py", ".sql"} and example in path.read_text()
    }
    assert found
    assert found <= named
