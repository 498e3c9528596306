"""Prepares the PostgreSQL of a region's view: initialises its data folder once, and writes its settings at each start.

The region agent prepares and runs the ledger's PostgreSQL, because the leadership decides what it may do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from infra.servers.unprivileged import accessible_data_folder, account
from infra.supervisor.errors import PlanMismatch, StartFailed
from infra.supervisor.process import base_environment
from infra.supervisor.secrets import Secrets

POSTGRES_MAJOR = "18"
INITDB_TIMEOUT_S = 120.0

# Sized for several regions on one laptop. A view can be rebuilt from the ledger, but the leader discards WAL up to the
# view's checkpoint, so commits of a view are durable too.
SETTINGS = {
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "max_connections": "40",
    "shared_buffers": "32MB",
    "work_mem": "4MB",
    "maintenance_work_mem": "32MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "min_wal_size": "64MB",
    "autovacuum_naptime": "10s",
    "jit": "off",
    "log_line_prefix": "'%m [%p] %u@%d '",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
}


async def prepare_view(folder: Path, *, postgres_bin: Path, port: int, secrets: Secrets) -> None:
    """Initialise the view's data folder if necessary, and write its settings file. Idempotent.

    An incomplete folder (a crash during the first start) is emptied and initialised again.

    Raises:
        PlanMismatch: The folder belongs to another major version of PostgreSQL.
        StartFailed: initdb or the creation of the roles failed.
    """
    target = accessible_data_folder(folder, account())
    version = target / "PG_VERSION"
    if version.exists() and version.read_text().strip() != POSTGRES_MAJOR:
        raise PlanMismatch(
            f"{folder} holds data of PostgreSQL {version.read_text().strip()}, this is {POSTGRES_MAJOR}; "
            "a view can be rebuilt: move the folder away and start again"
        )
    if not (target / "palaver.initialised").exists():
        await _initialise(target, postgres_bin, secrets)
    lines = [f"{name} = {value}" for name, value in (SETTINGS | {"port": str(port)}).items()]
    _write_as_owner(target / "palaver.conf", "\n".join(lines) + "\n", like=target)


async def _initialise(target: Path, postgres_bin: Path, secrets: Secrets) -> None:
    for entry in target.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    descriptor, name = tempfile.mkstemp(prefix="palaver-")
    password_file = Path(name)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.view_superuser)
        _own(password_file, like=target)
        await _run(
            target,
            [
                str(postgres_bin / "initdb"), "-D", str(target), "-U", "palaver", "--pwfile", name,
                "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync",
            ],
        )  # fmt: skip
    finally:
        password_file.unlink(missing_ok=True)
    with (target / "postgresql.conf").open("a") as file:
        file.write("include 'palaver.conf'\n")
    roles = (
        f"CREATE ROLE palaver_apply LOGIN PASSWORD '{secrets.view_apply}'\n"
        f"CREATE ROLE palaver_reader LOGIN PASSWORD '{secrets.view_reader}'\n"
        "CREATE DATABASE palaver OWNER palaver_apply\n"
    )
    await _run(target, [str(postgres_bin / "postgres"), "--single", "-D", str(target), "postgres"], text=roles)
    _write_as_owner(target / "palaver.initialised", "", like=target)


async def _run(target: Path, argv: list[str], *, text: str = "") -> None:
    runs_as = account()
    identity: dict[str, Any] = (
        {} if runs_as is None else {"user": runs_as.uid, "group": runs_as.gid, "extra_groups": []}
    )
    # Single-user mode reads palaver.conf through the include, so it has to exist before the first start.
    if not (target / "palaver.conf").exists() and (target / "postgresql.conf").exists():
        _write_as_owner(target / "palaver.conf", "", like=target)
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=base_environment(),
        cwd=target,  # so that `records.working_in` finds it if the supervisor is killed
        **identity,
    )
    try:
        async with asyncio.timeout(INITDB_TIMEOUT_S):
            output, _ = await process.communicate(text.encode())
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0 or b"ERROR" in output or b"FATAL" in output:
        # Not the last line, which after an error may be a statement that contains a password.
        lines = output.decode(errors="replace").splitlines()
        reason = next((line for line in lines if "ERROR" in line or "FATAL" in line), f"exit {process.returncode}")
        raise StartFailed(f"{Path(argv[0]).name} for {target} failed: {reason.strip()}")


def _write_as_owner(path: Path, text: str, *, like: Path) -> None:
    path.write_text(text)
    path.chmod(0o600)
    _own(path, like=like)


def _own(path: Path, *, like: Path) -> None:
    if os.geteuid() == 0:
        owner = like.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
