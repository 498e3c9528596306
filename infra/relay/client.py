"""A synchronous client of the relay's control API, for commands and drills."""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from infra.relay.faults import FAULT_FIELDS, Fault, Pair
from regions.plain_http import TRUST_NOBODY

# The relay answers from memory within milliseconds; without an answer for this long it is stopped or suspended.
TIMEOUT_S = 5.0


class RelayFailed(Exception):
    """The relay cannot be reached, or refused a request; the message says which."""


class RelayClient:
    """Reads and sets the faults of the network between regions.

    Every method raises RelayFailed if the relay does not answer or refuses, and returns when the change is in force.
    Regions have the names of the relay's configuration.
    """

    def __init__(self, address: str, token: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Make a client; it sends no request yet.

        Args:
            address: "host:port" of the control API.
            token: its bearer token.
            timeout_s: how long an answer may take.
        """
        self._http = httpx.Client(
            base_url=f"http://{address}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout_s,
            verify=TRUST_NOBODY,
            # No proxy for loopback.
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to the relay."""
        self._http.close()

    def faults(self) -> dict[Pair, Fault]:
        """Return the fault of every directed pair."""
        return _faults(self._ask("GET", "/v1/faults"))

    def change(self, changes: Iterable[Mapping[str, object]]) -> dict[Pair, Fault]:
        """Apply all changes together, or none; each has `source`, `target` and the settings that change."""
        return _faults(self._ask("PATCH", "/v1/faults", {"changes": list(changes)}))

    def set_fault(  # noqa: PLR0913 - the settings of a fault are its parameters
        self,
        source: str,
        target: str,
        *,
        delay_ms: float | None = None,
        jitter_ms: float | None = None,
        loss: float | None = None,
        cut: bool | None = None,
        both_ways: bool = False,
    ) -> dict[Pair, Fault]:
        """Change the fault of one direction, or of both; settings that are None stay as they are."""
        given = {"delay_ms": delay_ms, "jitter_ms": jitter_ms, "loss": loss, "cut": cut}
        settings = {name: value for name, value in given.items() if value is not None}
        pairs = [(source, target), (target, source)] if both_ways else [(source, target)]
        return self.change({"source": a, "target": b, **settings} for a, b in pairs)

    def cut(self, source: str, target: str, *, both_ways: bool = True) -> dict[Pair, Fault]:
        """Cut the network between two regions, by default in both directions."""
        return self.set_fault(source, target, cut=True, both_ways=both_ways)

    def heal(self, pairs: Iterable[Pair] | None = None) -> dict[Pair, Fault]:
        """Restore pairs, or all if None, to their state in the relay's configuration."""
        body = {} if pairs is None else {"pairs": [list(pair) for pair in pairs]}
        return _faults(self._ask("POST", "/v1/faults/heal", body))

    def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body)
            content: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise RelayFailed(f"the relay does not answer: {error}") from error
        if not answer.is_success:
            raise RelayFailed(f"the relay refused: {content.get('error', answer.status_code)}")
        return content


def _faults(answer: Mapping[str, Any]) -> dict[Pair, Fault]:
    return {
        (entry["source"], entry["target"]): Fault(**{name: entry[name] for name in FAULT_FIELDS})
        for entry in answer["faults"]
    }
