"""Creates, lists and edits sites for the holder of the admin key, and shows a site to the holder of its API key.

The write API also answers the reads: the views do not have the keys of sites, and the leader's ledger has a new site
before any view has it. An edit is not conditional: the last edit of a field wins, also if it repeats an earlier one.
The change stream carries an edit to the views, and each process reads the origins of a site again after
`services.api.site_origins.FRESH_S`.
"""

import hashlib
import hmac
from collections.abc import Sequence
from functools import partial
from typing import Final
from urllib.parse import urlencode
from uuid import UUID

import orjson
from fastapi import Request, Response

from regions.identity import CellId
from services import ledger
from services.api import models
from services.api.answers import Header
from services.api.cors import SITE_PREFIX
from services.api.cursor import Cursor, decode_cursor, encode_cursor
from services.api.requests import (
    header,
    parse_bearer,
    parse_count,
    parse_idempotency_key,
    parse_json,
    parse_query,
    read_body,
    require_json,
    unauthorized,
)
from services.telemetry.http_protocol import client_is_gone
from services.telemetry.middleware import Scope
from services.telemetry.tracing import sampled_traceparent
from services.write_api.comments import require_site
from services.write_api.leadership import ATTEMPT_HEADER, EPOCH_HEADER, LeadershipGuard
from services.write_api.outcomes import (
    POST_AGAIN,
    SITE_EDIT_AGAIN,
    UNKEYED_AGAIN,
    Writes,
    ledger_problem,
    position_header,
    refuse,
)
from services.write_api.pool import LedgerError, LedgerPool
from services.write_api.site_keys import derive_api_key, derive_token_secret, hash_api_key, new_site_id

_CREATE = ledger.statement("create_site")
_READ = ledger.statement("read_site")
_LIST = ledger.statement("list_sites")
_EDIT = ledger.statement("edit_site")

LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 200
_NIL: Final = UUID(int=0)
_LIST_PATH: Final = "/v1/sites"


class Sites:
    """Handles the requests for sites."""

    def __init__(  # noqa: PLR0913 - its dependencies, and the secrets by name
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
        self._require_admin(scope)
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
            [*dict.fromkeys(new.origins)],
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
        return _response(_site_document(site, row["name"], row["origins"]))

    async def list(self, request: Request) -> Response:
        """`GET /v1/sites`."""
        scope = request.scope
        self._require_admin(scope)
        query = parse_query(scope, ("limit", "cursor"))
        limit = parse_count("limit", query.get("limit", [None])[0], default=LIMIT_DEFAULT, maximum=LIMIT_MAX)
        after = _NIL
        if "cursor" in query:
            after = decode_cursor(query["cursor"][0], site=_NIL, thread=_LIST_PATH, sort="oldest").after or _NIL
        await self._guard.admit(header(scope, EPOCH_HEADER), header(scope, ATTEMPT_HEADER))
        try:
            # One row more than the page shows whether there is a next page.
            rows = await self._pool.fetch(_LIST, after, limit + 1)
        except LedgerError as error:
            raise ledger_problem(error) from error
        shown = rows[:limit]
        sites = [_site_document(row["id"], row["name"], row["origins"]) for row in shown]
        if len(rows) <= limit:
            return _response({"sites": sites, "next": None})
        cursor = encode_cursor(Cursor(parent=None, after=shown[-1]["id"]), site=_NIL, thread=_LIST_PATH, sort="oldest")
        link = f'<{_LIST_PATH}?{urlencode({"limit": limit, "cursor": cursor})}>; rel="next"'
        return _response({"sites": sites, "next": cursor}, [(b"link", link.encode("ascii"))])

    async def edit(self, request: Request) -> Response:
        """`PATCH /v1/sites/{site}`."""
        scope = request.scope
        self._require_admin(scope)
        site = require_site(request.path_params["site"])
        epoch = await self._guard.admit(header(scope, EPOCH_HEADER), header(scope, ATTEMPT_HEADER))
        require_json(header(scope, b"content-type"))
        changes = parse_json(models.SITE_CHANGES, await read_body(request.receive))
        changed = changes.model_fields_set
        row = await self._writes.call(
            _EDIT,
            epoch,
            site,
            changes.name if "name" in changed else None,
            [*dict.fromkeys(changes.origins)] if "origins" in changed else None,
            sampled_traceparent(),
            gone=partial(client_is_gone, scope),
            again=SITE_EDIT_AGAIN,
        )
        outcome = row["outcome"]
        if outcome != "edited":
            raise refuse(outcome)
        document = _site_document(site, row["site_name"], row["site_origins"])
        return _response(document, [position_header(self._cell, epoch, row["lsn"])])

    def _require_admin(self, scope: Scope) -> None:
        if not hmac.compare_digest(parse_bearer(header(scope, b"authorization")), self._admin_key):
            raise unauthorized("The key is not the deployment's admin key.")

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


def _site_document(site: UUID, name: str, origins: Sequence[str]) -> dict[str, object]:
    return {"id": str(site), "name": name, "origins": origins}


def _response(document: dict[str, object], headers: Sequence[Header] = ()) -> Response:
    response = Response(orjson.dumps(document), 200, media_type="application/json")
    response.raw_headers.extend([(b"cache-control", b"no-store"), *headers])
    return response
