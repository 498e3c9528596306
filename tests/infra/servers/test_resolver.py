"""Tests which binary is chosen, with fake programs that only print a version."""

import errno
import importlib.util
import os
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from infra.servers.resolver import ETCD_3_5_FLAGS, SERVER_NAMES, ServerMissing, resolve, resolve_all


def program(folder: Path, name: str, answer: str, interpreter: str = "/bin/sh") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!{interpreter}\necho '{answer}'\n")
    path.chmod(0o755)
    return path


def postgres_install(folder: Path, version: str) -> Path:
    for name in ("initdb", "pg_basebackup", "pg_rewind", "pg_controldata"):
        program(folder, name, version)
    return program(folder, "postgres", f"postgres (PostgreSQL) {version}")


@pytest.fixture
def no_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.prefix", str(tmp_path / "prefix"))


def test_a_postgresql_18_on_path_is_chosen_even_after_a_15(tmp_path: Path) -> None:
    postgres_install(tmp_path / "15", "15.18 (Debian)")
    wanted = postgres_install(tmp_path / "18", "18.1")
    server = resolve("postgres", search_path=[str(tmp_path / "15"), str(tmp_path / "18")])
    assert (server.path, server.version, server.source) == (wanted, "18.1", "path")
    assert server.bin_dir == tmp_path / "18"


@pytest.mark.parametrize("version", ["17.6", "19.0"])
def test_the_wheel_is_chosen_over_another_postgresql_which_is_named(tmp_path: Path, version: str) -> None:
    postgres_install(tmp_path, version)
    server = resolve("postgres", search_path=[str(tmp_path)])
    assert server.source == "wheel"
    assert version in server.why


def test_a_postgresql_18_without_its_programs_is_refused(tmp_path: Path) -> None:
    program(tmp_path, "postgres", "postgres (PostgreSQL) 18.1")
    assert resolve("postgres", search_path=[str(tmp_path)]).source == "wheel"


@pytest.mark.parametrize(
    ("name", "executable", "answer"),
    [
        ("etcd", "etcd", "etcd Version: 3.7.3"),
        ("etcdctl", "etcdctl", "etcdctl version: 3.6.0"),
        ("redis", "redis-server", "Redis server v=7.2.4 sha=0"),
        ("envoy", "envoy", "envoy  version: 9e55/1.40.1/Clean/RELEASE/BoringSSL"),
    ],
)
def test_a_suitable_server_on_path_is_chosen(tmp_path: Path, name: str, executable: str, answer: str) -> None:
    wanted = program(tmp_path, executable, answer)
    server = resolve(name, search_path=[str(tmp_path)])  # pyright: ignore[reportArgumentType] - names above
    assert (server.path, server.source, server.warning) == (wanted, "path", None)


def test_a_folder_on_path_that_cannot_be_entered_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "closed", "etcd", "etcd Version: 3.6.16")
    program(tmp_path / "open", "etcd", "etcd Version: 3.6.15")
    ask = os.stat

    def stat(path: Any, *arguments: Any, **more: Any) -> os.stat_result:  # root may enter every folder
        if str(path).startswith(str(tmp_path / "closed")):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return ask(path, *arguments, **more)

    monkeypatch.setattr(os, "stat", stat)
    server = resolve("etcd", search_path=[str(tmp_path / "closed"), str(tmp_path / "open")])
    assert (server.path, server.version) == (tmp_path / "open" / "etcd", "3.6.15")


def test_launcher_scripts_of_wheels_are_skipped(tmp_path: Path) -> None:
    program(tmp_path, "envoy", "envoy  version: 9e55/1.40.0/Clean", interpreter="/usr/bin/env python3")
    scripts = sysconfig.get_path("scripts")
    assert resolve("envoy", search_path=[scripts, str(tmp_path), "relative"]).source == "wheel"


def test_a_program_without_a_version_is_refused(tmp_path: Path) -> None:
    program(tmp_path, "redis-server", "hello")
    server = resolve("redis", search_path=[str(tmp_path)])
    assert server.source == "wheel"
    assert "does not say its version" in server.why


@pytest.mark.usefixtures("no_build")
def test_the_old_etcd_of_the_wheel_is_the_last_resort_with_flags_and_a_warning(tmp_path: Path) -> None:
    program(tmp_path, "etcd", "etcd Version: 3.5.1")
    server = resolve("etcd", search_path=[str(tmp_path)])
    assert (server.source, server.version, server.extra_flags) == ("wheel", "3.5.1", ETCD_3_5_FLAGS)
    assert server.warning is not None
    assert "infra.servers prepare" in server.warning


@pytest.mark.parametrize("name", SERVER_NAMES)
@pytest.mark.usefixtures("no_build")
def test_a_missing_server_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def no_package(_name: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", no_package)
    with pytest.raises(ServerMissing) as missing:
        resolve(name, search_path=[])  # pyright: ignore[reportArgumentType] - the parameters are the names
    message = str(missing.value)
    assert "make setup" in message
    assert "\n" not in message


def test_all_servers_are_found_after_setup() -> None:
    assert set(resolve_all()) == set(SERVER_NAMES)
