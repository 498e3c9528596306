"""The client of the supervisor's control interface (`control.py`), for commands.

It does not import the supervisor, because a command would then take twice as long to start.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Self

import httpx
import orjson

from infra.supervisor.errors import DeploymentError, NotRunning, OrderRefused, UnknownTarget
from infra.supervisor.layout import Layout
from infra.supervisor.records import birth_of
from regions.plain_http import TRUST_NOBODY

# A region restart first shuts PostgreSQL down cleanly; every other request is answered at once.
REQUEST_TIMEOUT_S = 60.0


class ControlClient:
    """Sends requests to a running supervisor.

    Args:
        layout: The data folder.

    Raises:
        NotRunning: No supervisor owns the folder.
    """

    def __init__(self, layout: Layout) -> None:
        try:
            document = orjson.loads(layout.control.read_bytes())
            self.pid = int(document["pid"])
            alive = document["born"] is not None and birth_of(self.pid) == document["born"]
        except (OSError, ValueError, KeyError):
            alive = False
            document = {}
        if not alive:
            raise NotRunning(f"nothing runs in {layout.data}; start it with `palaver up` or name another --data")
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{document['port']}",
            headers={"authorization": f"Bearer {document['token']}"},
            timeout=REQUEST_TIMEOUT_S,
            verify=TRUST_NOBODY,
            trust_env=False,  # no proxy for loopback
        )

    def __enter__(self) -> Self:
        """Use as a context manager: closes the connection."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        """GET a document."""
        return self._answer(lambda: self._client.get(path))

    def post(self, path: str, **body: object) -> dict[str, Any]:
        """POST a command with these arguments; return the answer."""
        return self._answer(lambda: self._client.post(path, content=orjson.dumps(body)))

    @staticmethod
    def _answer(ask: Callable[[], httpx.Response]) -> dict[str, Any]:
        try:
            answer = ask()
        except httpx.HTTPError as error:
            raise NotRunning(f"the supervisor does not answer ({type(error).__name__}); see its log") from error
        document: dict[str, Any] = answer.json()
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise UnknownTarget(str(document["error"]))
        if answer.status_code == HTTPStatus.CONFLICT:
            raise OrderRefused(str(document["error"]))
        if answer.is_error:
            raise DeploymentError(str(document.get("error", answer.status_code)))
        return document
