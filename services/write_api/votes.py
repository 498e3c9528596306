"""Sets votes with one CALL each, and answers with the counts of the comment.

Decides that a site's API key votes on behalf of the user that the request names. A vote has no Idempotency-Key: the
request states the value that the vote is to have, so a repetition changes nothing. Does not know how votes are counted
(`services/ledger/procedures/070_set_vote.sql`).
"""

from functools import partial
from typing import Final

import orjson
from fastapi import Request, Response

from regions.identity import CellId
from services import ledger
from services.api import models
from services.api.requests import header, parse_bearer, parse_json, read_body, require_json
from services.telemetry.http_protocol import client_is_gone
from services.telemetry.tracing import sampled_traceparent
from services.write_api.comments import complete_response, path_ids
from services.write_api.leadership import ATTEMPT_HEADER, EPOCH_HEADER, LeadershipGuard
from services.write_api.outcomes import VOTE_AGAIN, Writes, position_header, refuse
from services.write_api.site_keys import hash_api_key

_SET: Final = ledger.statement("set_vote")


class Votes:
    """The endpoint of votes: `guard` admits each request, `writes` executes it."""

    def __init__(self, writes: Writes, guard: LeadershipGuard, cell: CellId) -> None:
        self._writes = writes
        self._guard = guard
        self._cell = cell

    async def put(self, request: Request) -> Response:
        """`PUT /v1/sites/{site}/comments/{comment}/vote`."""
        scope = request.scope
        site, comment = path_ids(request)
        epoch = await self._guard.admit(header(scope, EPOCH_HEADER), header(scope, ATTEMPT_HEADER))
        key_hash = hash_api_key(parse_bearer(header(scope, b"authorization")))
        require_json(header(scope, b"content-type"))
        vote = parse_json(models.VOTE, await read_body(request.receive))
        row = await self._writes.call(
            _SET,
            epoch,
            site,
            key_hash,
            comment,
            vote.user,
            vote.value,
            sampled_traceparent(),
            gone=partial(client_is_gone, scope),
            again=VOTE_AGAIN,
        )
        if row["outcome"] not in ("voted", "replayed"):
            raise refuse(row["outcome"])
        up, down = row["up"], row["down"]
        answer = {"up": up, "down": down, "score": up - down, "mine": vote.value}
        return complete_response(200, orjson.dumps(answer), [position_header(self._cell, epoch, row["lsn"])])
