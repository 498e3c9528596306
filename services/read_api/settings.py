"""Settings of the read API, read from the environment with the prefix PALAVER_."""

from pathlib import Path

from pydantic import Field

from services.api.process import ProcessSettings


class ReadSettings(ProcessSettings):
    """Settings of `python -m services.read_api`; docs/settings.md describes them."""

    listen: str
    unix_listen: Path | None = None
    view_url: str
    redis_url: str
    view_pool_size: int = Field(default=8, ge=1, le=100)
    page_limit_default: int = Field(default=50, ge=1, le=200)
    page_replies_max: int = Field(default=20, ge=1, le=200)
    page_comments_max: int = Field(default=500, ge=250, le=5000)
    page_bytes_max: int = Field(default=2**20, ge=16_384)
    body_chars_max: int = Field(default=10_000, ge=1, le=100_000)
    memory_bytes_max: int = Field(default=64 * 2**20, ge=0)
    page_life_s: int = Field(default=60, ge=10, le=3600)
    request_bytes_max: int = Field(default=131_072, ge=1024)
