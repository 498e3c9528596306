"""Starts a deployment as a user does, controls it with the command `palaver`, and sends it HTTP requests."""

import subprocess
import sys
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import orjson

from infra.cli.logs import find_logs, merged
from infra.supervisor.control_client import ControlClient
from infra.supervisor.errors import UnknownTarget
from infra.supervisor.layout import open_layout
from infra.supervisor.plan import load_plan
from regions.plain_http import TRUST_NOBODY
from tests.answers import Answers
from tests.waiting import eventually

REGIONS = ("us-east", "eu-west", "ap-south")
COMMAND_TIMEOUT_S = 200.0
AGENT_LINES = 150
"""About four failovers of three agents."""

Answer = TypeVar("Answer")


def palaver(*arguments: str, data: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would; a failure shows what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "infra.cli", *arguments, "--data", str(data)],
        check=False, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0 or not check, (
        f"palaver {' '.join(arguments)}: {done.stdout}{done.stderr}{agents_log(data)}"
    )
    return done


def agents_log(data: Path) -> str:
    """Return the last log lines of all agents, ordered by time; the folder is removed before a failure is read."""
    layout = open_layout(data)
    plan = load_plan(layout.plan)
    if plan is None:
        return ""
    try:
        files = find_logs(layout, plan, None, "region_agent")
    except UnknownTarget:
        return ""
    return "\n".join(["", "The agents' logs:", *deque(merged(files, as_json=False), maxlen=AGENT_LINES)])


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A running deployment, and one site on it."""

    data: Path
    edges: dict[str, str]
    site: str
    api_key: str
    admin_key: str
    answers: Answers

    def palaver(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return palaver(*arguments, data=self.data, check=check)

    def status(self) -> dict[str, Any]:
        with ControlClient(open_layout(self.data)) as control:
            return control.get("/status")

    def region(self, name: str) -> dict[str, Any]:
        return next(region for region in self.status()["regions"] if region["region"] == name)

    def url(self, region: str, path: str = "") -> str:
        return f"{self.edges[region]}/v1/sites/{self.site}{path}"

    def post(
        self, region: str, body: str, *, thread: str = "t", key: str | None = None, **fields: Any
    ) -> httpx.Response:
        return self.ask(
            "POST",
            self.url(region, "/comments"),
            json={"thread": thread, "body": body, **fields},
            headers={"idempotency-key": key or uuid.uuid4().hex},
        )

    def get(self, region: str, path: str, **options: Any) -> httpx.Response:
        return self.ask("GET", self.url(region, path), **options)

    def ask(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Send a request on a new connection; the answer is checked against the OpenAPI document."""
        with self.answers.client(timeout=20) as client:
            return client.request(method, url, **options)

    def thread_ids(self, region: str, thread: str) -> list[str]:
        """Return the ids of all comments of a thread in the order read, over all cursors; duplicates are kept."""
        return [comment["id"] for comment in self.thread_comments(region, thread)]

    def thread_comments(self, region: str, thread: str) -> list[dict[str, Any]]:
        """Return all comments of a thread in the order read, over all cursors; duplicates are kept."""
        found: list[dict[str, Any]] = []
        cursors: list[str | None] = [None]
        while cursors:
            cursor = cursors.pop()
            page = self.get(region, "/comments", params={"thread": thread} | ({"cursor": cursor} if cursor else {}))
            page.raise_for_status()
            document = page.json()
            cursors += [document["next"]] if document["next"] else []
            waiting = list(document["comments"])
            while waiting:
                comment = waiting.pop()
                found.append(comment)
                waiting += comment["replies"]["items"]
                cursors += [comment["replies"]["next"]] if comment["replies"]["next"] else []
        return found

    def until_visible(self, region: str, comment: str, *, within_s: float = 20.0) -> httpx.Response:
        return eventually(
            lambda: self.get(region, f"/comments/{comment}"),
            lambda answer: answer.status_code == 200,
            within_s=within_s,
            what=f"comment {comment} in {region}",
        )

    def until_healthy(self, *, within_s: float) -> dict[str, Any]:
        return eventually(
            self.status,
            lambda status: all(region["healthy"] for region in status["regions"]),
            within_s=within_s,
            what="all regions healthy",
        )


def start_stack(data: Path, *arguments: str) -> Stack:
    """Start a deployment and create a site on it."""
    status = orjson.loads(palaver("up", "--detach", "--no-limit-clients", "--json", *arguments, data=data).stdout)
    made = orjson.loads(
        palaver("site", "create", "Tests", "--origin", "https://tests.example", "--json", data=data).stdout
    )
    secrets = orjson.loads((data / "secrets.json").read_bytes())
    edges = {region["region"]: region["edge"] for region in status["regions"]}
    document = httpx.get(f"{edges[REGIONS[0]]}/v1/openapi.json", timeout=20, verify=TRUST_NOBODY).json()
    return Stack(
        data=data,
        edges=edges,
        site=made["id"],
        api_key=made["api_key"],
        admin_key=secrets["admin_key"],
        answers=Answers(document),
    )
