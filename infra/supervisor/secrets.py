"""Passwords, tokens and keys of a deployment: made at the first start, kept in one file of mode 0600.

`environment.py` decides which process gets which secret.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING

import orjson

from infra.supervisor.errors import PlanMismatch

if TYPE_CHECKING:
    from pathlib import Path

SECRET_BYTES = 24  # 192 random bits (NIST SP 800-63B requires 112)


def _new_secret() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Every secret of one deployment, as text that is safe in URLs."""

    etcd: str = field(default_factory=_new_secret)
    ledger_superuser: str = field(default_factory=_new_secret)
    ledger_replication: str = field(default_factory=_new_secret)
    ledger_writer: str = field(default_factory=_new_secret)
    view_superuser: str = field(default_factory=_new_secret)
    view_apply: str = field(default_factory=_new_secret)
    view_reader: str = field(default_factory=_new_secret)
    redis: str = field(default_factory=_new_secret)
    changes_token: str = field(default_factory=_new_secret)
    relay_token: str = field(default_factory=_new_secret)
    control_token: str = field(default_factory=_new_secret)
    admin_key: str = field(default_factory=lambda: f"padm_{_new_secret()}")
    derivation: str = field(default_factory=_new_secret)
    agent: str = field(default_factory=_new_secret)


LATER = frozenset({"agent"})
"""Secrets that earlier versions did not have; they are made if they are missing."""


def load_or_create_secrets(path: Path) -> Secrets:
    """Read the secrets of a deployment; make them if the file does not exist.

    Raises:
        PlanMismatch: The file exists and does not contain the secrets of this version.
    """
    try:
        stored: dict[str, str] = dict(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        made = Secrets()
        write_private(path, orjson.dumps(asdict(made), option=orjson.OPT_INDENT_2))
        return made
    except (OSError, TypeError, ValueError) as error:
        raise PlanMismatch(f"{path} is not readable as the secrets of a deployment: {error}") from error
    names = {entry.name for entry in fields(Secrets)}
    if set(stored) | LATER != names:
        raise PlanMismatch(f"{path} does not hold the secrets of this version; restore it or use another --data")
    found = Secrets(**stored)
    if set(stored) != names:
        write_private(path, orjson.dumps(asdict(found), option=orjson.OPT_INDENT_2))
    return found


def write_private(path: Path, content: bytes) -> None:
    """Write a file atomically (temporary name, fsync, rename), readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
