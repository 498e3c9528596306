"""Tests the process of the read API: it starts before its dependencies, and stops in time."""

from pathlib import Path

import pytest

from services import view
from tests import servers
from tests.services.processes import PATIENCE_S, Service, topology
from tests.services.read_api.conftest import Writer
from tests.waiting import eventually

pytestmark = pytest.mark.integration


def test_the_read_api_waits_for_the_schema_and_then_serves(page_cache: servers.RedisServer, tmp_path: Path) -> None:
    with servers.postgres() as fresh:
        fresh.sql("CREATE ROLE palaver_reader LOGIN PASSWORD 'throwaway'")
        environment = {
            "PALAVER_TOPOLOGY": str(topology(tmp_path)),
            "PALAVER_VIEW_URL": fresh.url(user="palaver_reader"),
            "PALAVER_REDIS_URL": page_cache.url,
        }
        writer = Writer(fresh, page_cache)
        with writer.speaking(), Service("read_api", environment) as service:
            assert service.probe("/healthz").status_code == 200
            not_ready = service.probe("/readyz")
            assert not_ready.status_code == 503
            assert "schema" in not_ready.json()["detail"]
            empty = service.call("GET", "/v1/sites/01990d5e-3a00-7c62-9d2b-5a2a6f0c1e11/comments?thread=a")
            assert (empty.status_code, empty.headers["retry-after"]) == (503, "1")
            view.migrate(fresh.url())
            service.until_ready()
            fresh.sql("INSERT INTO sites (id, name, origins, version) VALUES (%s, 'S', '{}', 1)", writer.site)
            writer.thread("a").add()
            path = f"/v1/sites/{writer.site}/comments?thread=a"
            eventually(lambda: service.probe("/status").json()["invalidations_heard"], within_s=PATIENCE_S)
            assert service.call("GET", path).json()["thread"]["count"] == 1
            head = service.call("HEAD", path)
            assert (head.status_code, head.content) == (200, b"")
            assert int(head.headers["content-length"]) > 100
            metrics = service.probe("/metrics").text
            assert 'palaver_http_requests_total{method="GET",route="/v1/sites/{site}/comments",status="200"}' in metrics
            fresh.kill()
            eventually(lambda: service.probe("/readyz").status_code == 503, within_s=PATIENCE_S)
            assert service.call("GET", path).status_code == 200
            fresh.start()
            service.until_ready()
            assert service.stop(f"/v1/sites/{writer.site}/preview") == 0


def test_wrong_settings_are_one_line_and_status_2(tmp_path: Path) -> None:
    environment = {
        "PALAVER_TOPOLOGY": str(topology(tmp_path)),
        "PALAVER_VIEW_URL": "x",
        "PALAVER_PAGE_COMMENTS_MAX": "1",
    }
    with Service("read_api", environment) as service:
        assert service.wait() == 2
        (line,) = service.lines
        assert "PALAVER_PAGE_COMMENTS_MAX" in line
        assert "PALAVER_REDIS_URL" in line
