"""Tests the example page: a browser allows its requests, it shows its own posts at once, and it works in Chromium."""

import html
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import orjson
import pytest

from tests.integration.stack import Stack

pytestmark = [pytest.mark.integration, pytest.mark.stack]

PAGE = (Path(__file__).parents[2] / "examples" / "page.html").read_text()
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SEEN_WITHIN_S = 60.0

VISITOR = """
<script type="module">
const until = async (find) => {
  for (;;) {
    const found = find();
    if (found) return found;
    await new Promise((resume) => setTimeout(resume, 20));
  }
};
const post = (text) => { form.body.value = text; form.requestSubmit(); };
form.elements.name.value = "Ann <i>";
post("Hello, *world*");
(await until(() => list.querySelector("li button"))).click();
post("A *reply*");
await until(() => list.querySelector("li li em"));
await fetch("/seen", { method: "POST", body: list.innerHTML });
</script>
"""


class Website:
    """A server of one page; the page reports its content to the server."""

    def __init__(self) -> None:
        self.page = ""
        self.seen = ""
        self.reported = threading.Event()
        website = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(website.page.encode())

            def do_POST(self) -> None:
                website.seen = self.rfile.read(int(self.headers["content-length"])).decode()
                self.send_response(204)
                self.end_headers()
                website.reported.set()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
                """Log nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def website() -> Iterator[Website]:
    made = Website()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def site_for(stack: Stack, origin: str) -> str:
    site = orjson.loads(stack.palaver("site", "create", "A page", "--origin", origin, "--json").stdout)
    made: str = site["id"]
    return made


def test_a_browser_allows_the_requests_of_the_page_and_a_read_has_its_own_post(stack: Stack) -> None:
    origin, (posted_at, *_, read_at) = "https://page.example", stack.edges
    comments = f"/v1/sites/{site_for(stack, origin)}/comments"
    sent = {"content-type", "idempotency-key", "palaver-position"}
    assert sent <= set(re.findall(r'"([a-z-]+)":? ', PAGE)), "the page sends these"
    for method, edge in (("POST", stack.edges[posted_at]), ("GET", stack.edges[read_at])):
        wanted = {"access-control-request-method": method, "access-control-request-headers": ",".join(sorted(sent))}
        preflight = stack.ask("OPTIONS", f"{edge}{comments}", headers={"origin": origin, **wanted})
        assert preflight.is_success, preflight.text
        assert preflight.headers["access-control-allow-origin"] == origin
        assert method in preflight.headers["access-control-allow-methods"]
        assert sent <= {name.strip() for name in preflight.headers["access-control-allow-headers"].split(",")}
    answer = stack.ask(
        "POST",
        f"{stack.edges[posted_at]}{comments}",
        json={"thread": "https://page.example/", "body": "At once.", "author": {"name": "Ann"}},
        headers={"origin": origin, "idempotency-key": "the-page"},
    )
    assert answer.status_code == 201, answer.text
    assert answer.headers["access-control-allow-origin"] == origin
    assert "palaver-position" in answer.headers["access-control-expose-headers"]
    page = stack.ask(
        "GET",
        f"{stack.edges[read_at]}{comments}",
        params={"thread": "https://page.example/"},
        headers={"origin": origin, "palaver-position": answer.headers["palaver-position"]},
    )
    assert page.headers["access-control-allow-origin"] == origin
    assert [comment["id"] for comment in page.json()["comments"]] == [answer.json()["id"]]


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
def test_the_page_shows_a_post_and_a_reply_in_chromium(stack: Stack, website: Website, tmp_path: Path) -> None:
    assert BROWSER is not None
    page = PAGE.replace("http://127.0.0.1:PORT", stack.edges["eu-west"])
    website.page = page.replace('"SITE"', f'"{site_for(stack, website.origin)}"') + VISITOR
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    with subprocess.Popen(
        [BROWSER, *options, "--no-proxy-server", f"--user-data-dir={tmp_path}", "--remote-debugging-port=0",
         f"{website.origin}/a-page?from=feed"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, start_new_session=True,
    ) as browser:  # fmt: skip
        try:
            assert website.reported.wait(SEEN_WITHIN_S), "the page showed no reply"
        finally:
            browser.terminate()
    assert "Hello, <em>world</em>" in website.seen
    assert re.search(r"<ol><li>.*A <em>reply</em>", website.seen, re.DOTALL)
    assert html.escape("Ann <i>") in website.seen, "a name is text"
