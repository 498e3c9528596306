"""Builds the routes of the write API."""

from collections.abc import Callable, Sequence
from uuid import UUID

from regions.identity import CellId
from services import ledger
from services.api.application import add_endpoint, fastapi_application, public_application
from services.api.leader_port import STRONG_POSITION_PATH
from services.api.previews import PREVIEW_TEMPLATE, Previews
from services.api.site_origins import SiteOrigins
from services.telemetry.middleware import AsgiApp
from services.telemetry.tracing import Tracing
from services.write_api.agent_link import Verifier
from services.write_api.comments import Comments
from services.write_api.leadership import LeadershipGuard
from services.write_api.outcomes import Writes
from services.write_api.pool import LedgerPool
from services.write_api.settings import WriteSettings
from services.write_api.sites import Sites
from services.write_api.strong_position import StrongPosition
from services.write_api.votes import Votes

_ORIGINS = ledger.statement("site_origins")


def write_application(  # noqa: PLR0913 - the composition root hands over what it built, by name
    *,
    settings: WriteSettings,
    cell: CellId,
    pool: LedgerPool,
    guard: LeadershipGuard,
    agent: Verifier,
    tracing: Tracing,
    missing: Callable[[], Sequence[str]],
) -> AsgiApp:
    """Return the public application of the write API."""
    writes = Writes(pool)
    comments = Comments(writes, guard, cell, body_chars_max=settings.body_chars_max, depth_max=settings.depth_max)
    sites = Sites(
        pool,
        writes,
        guard,
        cell,
        admin_key=settings.admin_key.get_secret_value(),
        derivation_secret=settings.derivation_secret.get_secret_value(),
    )
    votes = Votes(writes, guard, cell)
    strong = StrongPosition(pool, guard, agent, cell)
    app = fastapi_application("Palaver write API", missing)
    add_endpoint(app, "GET", STRONG_POSITION_PATH, strong.get)
    add_endpoint(app, "POST", "/v1/sites", sites.create)
    add_endpoint(app, "GET", "/v1/sites", sites.list)
    add_endpoint(app, "GET", "/v1/sites/{site}", sites.read)
    add_endpoint(app, "PATCH", "/v1/sites/{site}", sites.edit)
    add_endpoint(app, "PATCH", "/v1/sites/{site}/comments/{comment}", comments.edit)
    add_endpoint(app, "DELETE", "/v1/sites/{site}/comments/{comment}", comments.delete)
    add_endpoint(app, "PUT", "/v1/sites/{site}/comments/{comment}/vote", votes.put)
    # Edges of the previous release send previews here. The next release removes this route.
    add_endpoint(app, "POST", PREVIEW_TEMPLATE, Previews(body_chars_max=settings.body_chars_max).preview)

    async def load_origins(site: UUID) -> Sequence[str] | None:
        rows = await pool.fetch(_ORIGINS, site)
        return rows[0]["origins"] if rows else None

    return public_application(
        comments.in_front_of(app),
        tracing=tracing,
        origins_of=SiteOrigins(load_origins),
        body_bytes_max=settings.request_bytes_max,
    )
