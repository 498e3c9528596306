"""`palaver logs`: finds the logs of a deployment, merges them in order of time, and follows them."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import orjson

from infra.supervisor.errors import UnknownTarget
from infra.supervisor.layout import Layout
from infra.supervisor.plan import Plan

FOLLOW_POLL_S = 0.2
ISO = "%Y-%m-%dT%H:%M:%S.%fZ"
HIDDEN = frozenset({"ts", "level", "msg", "process", "region", "logger", "cell"})


def find_logs(layout: Layout, plan: Plan, region: str | None, process: str | None) -> dict[str, Path]:
    """Return the log files of a region and process (None: all), by `region/process`.

    Raises:
        UnknownTarget: There is no such region or log.
    """
    if region is not None and region not in plan.all_regions:
        raise UnknownTarget(f"unknown region {region!r}; there are {', '.join(plan.all_regions)}")
    folders = {name: layout.region(name) / "logs" for name in plan.all_regions if region in (None, name)}
    found = {f"{name}/{path.stem}": path for name, folder in folders.items() for path in sorted(folder.glob("*.log"))}
    if region is None:
        found |= {path.stem: path for path in sorted(layout.deployment_logs.glob("*.log"))}
    if process is None:
        return found
    chosen = {name: path for name, path in found.items() if name.rpartition("/")[2] == process}
    if not chosen:
        known = sorted({name.rpartition("/")[2] for name in found})
        raise UnknownTarget(f"no log of {process!r}; there are {', '.join(known)}")
    return chosen


def merged(files: dict[str, Path], *, as_json: bool) -> Iterator[str]:
    """Yield all lines of all files in order of time; a line without a time follows its predecessor."""
    show = json_line if as_json else render
    streams = [_timed_lines(name, path) for name, path in files.items()]
    for _, name, line in heapq.merge(*streams, key=lambda entry: entry[0]):
        yield show(name, line)


def follow(files: dict[str, Path], *, as_json: bool, emit: Callable[[str], None]) -> None:
    """Print lines that are appended to the files, until interrupted."""
    show = json_line if as_json else render
    offsets = {name: path.stat().st_size for name, path in files.items()}
    while True:
        for name, path in files.items():
            size = path.stat().st_size
            if size < offsets[name]:
                offsets[name] = 0  # It was rotated.
            with path.open("rb") as file:
                file.seek(offsets[name])
                chunk = file.read()
            complete = chunk[: chunk.rfind(b"\n") + 1]
            offsets[name] += len(complete)
            for line in complete.decode(errors="replace").splitlines():
                emit(show(name, line))
        time.sleep(FOLLOW_POLL_S)


def render(name: str, line: str) -> str:
    """Return a line for a person: time, source, level, message, other fields. Other formats stay as they are."""
    try:
        fields = orjson.loads(line)
        head = f"{fields['ts']} {name} {str(fields.get('level', '')).upper()} {fields['msg']}"
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"{name} {line}"
    rest = " ".join(f"{key}={value}" for key, value in fields.items() if key not in HIDDEN and value is not None)
    return f"{head} {rest}".rstrip()


def json_line(name: str, line: str) -> str:
    """Return a line as a JSON object with its region and process; lines of PostgreSQL and Redis are put into `msg`."""
    region, _, process = name.rpartition("/")
    source: dict[str, Any] = ({"region": region} if region else {}) | {"process": process}
    try:
        fields = orjson.loads(line)
        if isinstance(fields, dict):
            return orjson.dumps(source | cast("dict[str, Any]", fields)).decode()
    except orjson.JSONDecodeError:
        pass
    return orjson.dumps(source | {"ts": _time_of(line), "msg": line}).decode()


def _timed_lines(name: str, path: Path) -> Iterator[tuple[str, str, str]]:
    last = ""
    with path.open(errors="replace") as file:
        for line in file:
            text = line.rstrip("\n")
            last = max(last, _time_of(text) or last)
            yield last, name, text


def _time_of(line: str) -> str | None:
    if line.startswith("{"):
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError:
            return None
        return str(fields.get("ts") or "") or None
    if line[:4].isdigit() and line[4:5] == "-":
        return f"{line[:10]}T{line[11:23]}Z"  # PostgreSQL
    try:
        words = line.split(" ", 5)  # Redis: pid:role, day, month, year, time of day, message
        return datetime.strptime(" ".join(words[1:5]), "%d %b %Y %H:%M:%S.%f").replace(tzinfo=UTC).strftime(ISO)
    except ValueError:
        return None
