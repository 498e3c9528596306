"""Settings of the region agent, and their conversion to the settings of its parts."""

import os
import pwd
from pathlib import Path

from pydantic import Field, SecretStr, field_validator, model_validator

from regions.edge import EdgeSettings
from regions.identity import RegionName
from regions.member import Account, MemberSettings
from regions.switcher import LocalSettings
from regions.topology import Topology, parse_address
from services.api.process import ProcessSettings

_LEDGER = (
    "ledger_data",
    "ledger_listen",
    "postgres_bin",
    "ledger_superuser_password",
    "replication_password",
    "writer_password",
)


class WrongSettings(Exception):
    """The settings contradict the topology or this machine; the message is one line."""


class AgentSettings(ProcessSettings):
    """Settings of the region agent; the ledger's settings are absent in a view-only region."""

    etcd_user: str
    etcd_password: SecretStr
    state_dir: Path
    edge_dir: Path
    edge_listen: str
    edge_admin: Path
    edge_read_socket: Path | None = None
    edge_write_socket: Path | None = None
    edge_trusted_hops: int = Field(default=0, ge=0, le=10)
    edge_request_bytes_max: int = Field(default=131_072, ge=1024, le=1_048_576)
    edge_request_s: int = Field(default=30, ge=1, le=300)
    edge_connections_max: int = Field(default=10_000, ge=1)
    edge_client_requests_per_s: int = Field(default=1_000, ge=0)
    edge_client_writes_per_s: int = Field(default=200, ge=0)
    agent_listen: str
    agent_secret: SecretStr = Field(min_length=16)
    ledger_data: Path | None = None
    ledger_listen: str | None = None
    ledger_log: Path | None = None
    postgres_bin: Path | None = None
    os_user: str | None = None
    ledger_superuser_password: SecretStr | None = None
    replication_password: SecretStr | None = None
    writer_password: SecretStr | None = None
    wal_keep_mb: int = Field(default=2048, ge=64)

    @field_validator("edge_listen", "ledger_listen", "agent_listen")
    @classmethod
    def _is_listen_address(cls, value: str | None) -> str | None:
        if value is not None:
            parse_address(value)
        return value

    @model_validator(mode="after")
    def _ledger_is_all_or_nothing(self) -> "AgentSettings":
        given = [name for name in _LEDGER if getattr(self, name) is not None]
        if given and len(given) < len(_LEDGER):
            missing = next(name for name in _LEDGER if name not in given)
            raise ValueError(f"PALAVER_{missing.upper()} is missing beside PALAVER_{given[0].upper()}")
        return self

    def edge(self) -> EdgeSettings:
        """Return the settings of the region's edge."""
        return EdgeSettings(
            folder=self.edge_dir.resolve(),
            listen=parse_address(self.edge_listen),
            admin=self.edge_admin,
            read_socket=self.edge_read_socket,
            write_socket=self.edge_write_socket,
            trusted_hops=self.edge_trusted_hops,
            request_bytes_max=self.edge_request_bytes_max,
            request_s=self.edge_request_s,
            connections_max=self.edge_connections_max,
            client_requests_per_s=self.edge_client_requests_per_s,
            client_writes_per_s=self.edge_client_writes_per_s,
        )

    def local(self) -> LocalSettings:
        """Return the agent's state folder, its heartbeat address, and the agents' secret."""
        return LocalSettings(
            state=self.state_dir.resolve(),
            listen=parse_address(self.agent_listen),
            secret=self.agent_secret.get_secret_value().encode(),
        )

    def member(self, topology: Topology) -> MemberSettings | None:
        """Return the settings of the ledger member; None in a view-only region.

        Raises:
            WrongSettings: A voter lacks the ledger's settings, or a view-only region has them, or PostgreSQL would have
                to run as root.
        """
        if self.ledger_data is None:
            if topology.own.voter:
                raise WrongSettings(f"{topology.region} is a voter: PALAVER_LEDGER_DATA is missing")
            return None
        if not topology.own.voter:
            raise WrongSettings(f"{topology.region} is view-only: PALAVER_LEDGER_DATA must be absent")
        assert self.ledger_listen is not None, "checked together"
        assert self.postgres_bin is not None, "checked together"
        return MemberSettings(
            region=RegionName(topology.region),
            data=self.ledger_data.resolve(),
            state=self.state_dir.resolve(),
            log=(self.ledger_log or self.state_dir / "ledger.log").resolve(),
            programs=self.postgres_bin,
            listen=parse_address(self.ledger_listen),
            account=_account(self.os_user),
            superuser_password=_text(self.ledger_superuser_password),
            replication_password=_text(self.replication_password),
            writer_password=_text(self.writer_password),
            wal_keep_mb=self.wal_keep_mb,
        )


def _account(name: str | None) -> Account | None:
    if os.geteuid() != 0:
        return None
    if name is None:
        raise WrongSettings("PostgreSQL cannot run as root: set PALAVER_OS_USER to another account")
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise WrongSettings(f"PALAVER_OS_USER: there is no account {name}") from None
    if entry.pw_uid == 0:
        raise WrongSettings("PALAVER_OS_USER: PostgreSQL cannot run as root: name another account")
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)


def _text(secret: SecretStr | None) -> str:
    assert secret is not None, "checked together"
    return secret.get_secret_value()
