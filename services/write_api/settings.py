"""Settings of the write API, read from the environment with the prefix PALAVER_."""

from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from regions.topology import parse_address
from services.api.process import ProcessSettings


class WriteSettings(ProcessSettings):
    """Settings of the write API. An answer to a request that exceeds a limit names the limit."""

    listen: str
    unix_listen: Path | None = None
    ledger_url: str
    agent: str
    agent_secret: SecretStr = Field(min_length=16)
    etcd_user: str | None = None
    etcd_password: SecretStr | None = None
    admin_key: SecretStr = Field(min_length=16)
    derivation_secret: SecretStr = Field(min_length=16)
    pool_size: int = Field(default=16, ge=1, le=200)
    body_chars_max: int = Field(default=10_000, ge=1, le=100_000)
    depth_max: int = Field(default=20, ge=0, le=100)
    request_bytes_max: int = Field(default=131_072, ge=1024)
    write_timeout_ms: int = Field(default=5_000, ge=10)

    @field_validator("agent")
    @classmethod
    def _is_agent_address(cls, value: str) -> str:
        parse_address(value)
        return value
