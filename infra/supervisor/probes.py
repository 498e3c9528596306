"""Readiness probes. Each one sends a request to the server in the server's own protocol; none sleeps or reads a log."""

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
    """Return a probe that succeeds if a GET is answered with 200.

    Args:
        url: The URL to request.
        unix_socket: Connect to this socket instead of the URL's host.
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
    """Return a probe that succeeds if PostgreSQL accepts a session and answers a query."""
    import asyncpg  # Imported here, like redis below: every command imports this module, and only a start runs probes.

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
            # asyncpg raises this if a connection breaks between two of its messages.
            asyncpg.InternalClientError,
        ) as error:
            return f"no session yet ({type(error).__name__})"
        return None

    return ask


def redis_probe(url: str) -> Probe:
    """Return a probe that succeeds if Redis answers PING."""
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
