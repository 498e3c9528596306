"""Settings of the replicator, read from the environment with the prefix PALAVER_.

Decides names, defaults and the one-line error message. No other module of the replicator reads the environment.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from psycopg import conninfo
from psycopg.errors import ProgrammingError
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.telemetry.http_server import parse_listen

TOKEN_CHARS_MIN = 16
"""A shorter bearer token could be guessed."""


class InvalidSettings(Exception):
    """A setting is missing or invalid; the message is one line for the operator."""


class Settings(BaseSettings):
    """Settings of `python -m services.replicator`. The variable of a field is PALAVER_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="PALAVER_", extra="ignore", hide_input_in_errors=True)

    topology: Path = Field(
        description="JSON file with all regions, and the addresses at which this region reaches them"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    internal_listen: str = Field(description="host:port of /metrics, /healthz, /readyz and /status")
    trace_ratio: float = Field(default=0.01, ge=0, le=1)
    etcd_user: str | None = None
    etcd_password: SecretStr | None = None
    view_url: SecretStr = Field(description="postgresql:// URL of the view, as its owner")
    redis_url: SecretStr = Field(description="redis:// URL of the region's cache")
    ledger_replication: SecretStr | None = Field(
        default=None, description="libpq conninfo of the region's ledger member; absent in a view-only region"
    )
    changes_listen: str = Field(description="host:port of the change stream server")
    changes_token: SecretStr = Field(description="bearer token shared by the regions")
    repair_interval_s: float = Field(
        default=60.0, ge=0, le=86_400, description="seconds between two comparisons with the ledger; 0: only on order"
    )
    scrub_interval_s: float = Field(
        default=21_600.0, ge=0, le=30 * 86_400, description="seconds between two scrubs; 0: only on order"
    )

    @field_validator("internal_listen", "changes_listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        parse_listen(value)
        return value

    @field_validator("view_url")
    @classmethod
    def _check_view_url(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("expected redis://:PASSWORD@HOST:PORT/DATABASE")
        return value

    @field_validator("ledger_replication")
    @classmethod
    def _check_conninfo(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                conninfo.conninfo_to_dict(value.get_secret_value())
            except ProgrammingError as error:
                raise ValueError("expected a libpq conninfo") from error
        return value

    @field_validator("changes_token")
    @classmethod
    def _check_token(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < TOKEN_CHARS_MIN:
            raise ValueError(f"at least {TOKEN_CHARS_MIN} characters")
        return value

    @classmethod
    def load(cls, overrides: Mapping[str, object] | None = None) -> Self:
        """Read the environment; ``overrides`` take precedence over it.

        Raises:
            InvalidSettings: A variable is missing or invalid; the message names the first one.
        """
        try:
            return cls(**dict(overrides or {}))  # pyright: ignore[reportArgumentType] - pydantic checks the types
        except ValidationError as error:
            first = error.errors()[0]
            name = "PALAVER_" + "_".join(str(part) for part in first["loc"]).upper()
            reason = "is not set" if first["type"] == "missing" else first["msg"]
            raise InvalidSettings(f"{name}: {reason}") from error
