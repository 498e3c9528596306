"""Readiness probes: each asks the server itself over its own protocol, none sleeps or reads a log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

import httpx

from regions.plain_http import PlainTransport

PROBE_TIMEOUT_S = 2.0

Probe = Callable[[], Awaitable[str | None]]


def http_probe(url: str, *, unix_socket: Path | None = None) -> Probe:
    """Ready when a GET answers 200.

    Args:
        url: What to ask for.
        unix_socket: Connect there instead of to the host of the URL.
    """

    async def ask() -> str | None:
        transport = PlainTransport(uds=unix_socket)
        try:
            async with httpx.AsyncClient(transport=transport, timeout=PROBE_TIMEOUT_S) as client:
                answer = await client.get(url)
        except (httpx.HTTPError, OSError) as error:
            return f"no answer yet ({type(error).__name__})"
        return None if answer.status_code == HTTPStatus.OK else f"answers {answer.status_code}"

    return ask


def postgres_probe(url: str) -> Probe:
    """Ready when a session can be opened and a query answered."""
    import asyncpg  # Late, like redis below: every command imports this module, and only a start probes.

    async def ask() -> str | None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                connection = await asyncpg.connect(url, timeout=PROBE_TIMEOUT_S)
                try:
                    await connection.fetchval("SELECT 1")
                finally:
                    await connection.close()
        except (
            OSError,
            TimeoutError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            # asyncpg's own bookkeeping gives up like this when a connection breaks between two of its messages.
            asyncpg.InternalClientError,
        ) as error:
            return f"no session yet ({type(error).__name__})"
        return None

    return ask


def redis_probe(url: str) -> Probe:
    """Ready when PING is answered."""
    import redis.asyncio
    from redis.exceptions import RedisError

    async def ask() -> str | None:
        client = redis.asyncio.Redis.from_url(url, socket_timeout=PROBE_TIMEOUT_S)  # pyright: ignore[reportUnknownMemberType] - redis-py leaves **kwargs untyped
        try:
            await client.ping()  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues] - the same
        except (OSError, RedisError) as error:
            return f"no answer yet ({type(error).__name__})"
        finally:
            await client.aclose()
        return None

    return ask
