"""Creates sites for whoever holds the deployment's admin key, and shows one to whoever holds a key of its own.

Only ledgers know the keys of sites, and the leader's knows a new site at once: so this read is answered here.
"""

import hashlib
import hmac
from functools import partial
from uuid import UUID

import orjson
from fastapi import Request, Response

from regions.identity import CellId
from services import ledger
from services.api import models
from services.api.cors import SITE_PREFIX
from services.api.requests import (
    header,
    parse_bearer,
    parse_idempotency_key,
    parse_json,
    read_body,
    require_json,
    unauthorized,
)
from services.telemetry.http_protocol import client_is_gone
from services.telemetry.tracing import sampled_traceparent
from services.write_api.comments import require_site
from services.write_api.leadership import ATTEMPT_HEADER, EPOCH_HEADER, LeadershipGuard
from services.write_api.outcomes import POST_AGAIN, UNKEYED_AGAIN, Writes, ledger_problem, position_header, refuse
from services.write_api.pool import LedgerError, LedgerPool
from services.write_api.site_keys import derive_api_key, derive_token_secret, hash_api_key, new_site_id

_CREATE = ledger.statement("create_site")
_READ = ledger.statement("read_site")


class Sites:
    """The operations on sites."""

    def __init__(  # noqa: PLR0913 - what it needs, and the secrets by name
        self,
        pool: LedgerPool,
        writes: Writes,
        guard: LeadershipGuard,
        cell: CellId,
        *,
        admin_key: str,
        derivation_secret: str,
    ) -> None:
        self._pool = pool
        self._writes = writes
        self._guard = guard
        self._cell = cell
        self._admin_key = admin_key.encode()
        self._secret = derivation_secret.encode()

    async def create(self, request: Request) -> Response:
        """`POST /v1/sites`."""
        scope = request.scope
        if not hmac.compare_digest(parse_bearer(header(scope, b"authorization")), self._admin_key):
            raise unauthorized("The key is not the deployment's admin key.")
        epoch = await self._guard.admit(header(scope, EPOCH_HEADER), header(scope, ATTEMPT_HEADER))
        require_json(header(scope, b"content-type"))
        key = parse_idempotency_key(header(scope, b"idempotency-key"))
        body = await read_body(request.receive)
        new = parse_json(models.NEW_SITE, body)
        proposed = new_site_id()
        row = await self._writes.call(
            _CREATE,
            epoch,
            proposed,
            new.name,
            list(dict.fromkeys(new.origins)),
            hash_api_key(derive_api_key(self._secret, proposed).encode()),
            key,
            hashlib.sha256(body).digest() if key is not None else None,
            sampled_traceparent(),
            gone=partial(client_is_gone, scope),
            again=UNKEYED_AGAIN if key is None else POST_AGAIN,
            keyed=key is not None,
        )
        outcome = row["outcome"]
        if outcome not in ("created", "replayed"):
            raise refuse(outcome)
        return self._answer(row["site_id"], new.name, position_header(self._cell, epoch, row["lsn"]))

    async def read(self, request: Request) -> Response:
        """`GET /v1/sites/{site}`."""
        scope = request.scope
        site = require_site(request.path_params["site"])
        key_hash = hash_api_key(parse_bearer(header(scope, b"authorization")))
        await self._guard.admit(header(scope, EPOCH_HEADER), header(scope, ATTEMPT_HEADER))
        try:
            rows = await self._pool.fetch(_READ, site, key_hash)
        except LedgerError as error:
            raise ledger_problem(error) from error
        if not rows:
            raise refuse("no_site")
        row = rows[0]
        if not row["is_its_key"]:
            raise refuse("unauthorized")
        document = orjson.dumps({"id": str(site), "name": row["name"], "origins": row["origins"]})
        return Response(document, 200, media_type="application/json", headers={"cache-control": "no-store"})

    def _answer(self, site: UUID, name: str, position: tuple[bytes, bytes]) -> Response:
        document = {
            "id": str(site),
            "name": name,
            "api_key": derive_api_key(self._secret, site),
            "token_secret": derive_token_secret(self._secret, site),
        }
        response = Response(orjson.dumps(document), 201, media_type="application/json")
        response.raw_headers.extend(
            [
                (b"location", f"{SITE_PREFIX}{site}".encode()),
                (b"cache-control", b"no-store"),
                position,
            ]
        )
        return response
