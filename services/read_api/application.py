"""Builds the routes of the read API."""

from collections.abc import Callable, Sequence

from regions.identity import CellId
from services.api.application import add_endpoint, fastapi_application, public_application
from services.api.markdown import HtmlCache
from services.api.previews import PREVIEW_TEMPLATE, Previews
from services.api.site_origins import SiteOrigins
from services.read_api.freshness import Freshness
from services.read_api.memory import PageMemory
from services.read_api.pages import Pages
from services.read_api.reads import Reads, docs_page, openapi
from services.read_api.settings import ReadSettings
from services.read_api.shared_cache import SharedCache
from services.read_api.strong import Prover
from services.read_api.view_reader import ViewReader
from services.telemetry.middleware import AsgiApp
from services.telemetry.tracing import Tracing


def read_application(  # noqa: PLR0913 - the composition root hands over what it built, by name
    *,
    settings: ReadSettings,
    cell: CellId,
    view: ViewReader,
    shared: SharedCache,
    memory: PageMemory,
    freshness: Freshness,
    origins: SiteOrigins,
    prover: Prover,
    tracing: Tracing,
    missing: Callable[[], Sequence[str]],
) -> AsgiApp:
    """Return the public application of the read API."""
    html = HtmlCache()
    pages = Pages(
        view=view,
        shared=shared,
        memory=memory,
        freshness=freshness,
        html=html,
        cell=cell,
        prover=prover,
        settings=settings,
    )
    reads = Reads(view=view, freshness=freshness, html=html, cell=cell, prover=prover)
    app = fastapi_application("Palaver read API", missing)
    add_endpoint(app, "GET", "/v1/sites/{site}/comments/{comment}", reads.comment)
    add_endpoint(app, "GET", "/v1/sites/{site}/counts", reads.counts)
    add_endpoint(app, "POST", PREVIEW_TEMPLATE, Previews(body_chars_max=settings.body_chars_max).preview)
    add_endpoint(app, "GET", "/v1/openapi.json", openapi)
    add_endpoint(app, "GET", "/docs", docs_page)
    return public_application(
        pages.in_front_of(app),
        tracing=tracing,
        origins_of=origins,
        body_bytes_max=settings.request_bytes_max,
    )
