"""A fake control interface: the documents that it returns, and the requests that it receives."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Palaver = Callable[..., tuple[int, str, str]]
"""The fixture `palaver`: arguments to exit code, standard output and standard error."""

VOTERS = ["us-east", "eu-west", "ap-south", "sa-east", "af-south"]


def made(**changes: Any) -> dict[str, Any]:
    cell = {"cell": "main", "epoch": 1, "leader": "us-east", "phase": "serving", "automatic": True}
    return cell | {"voters": VOTERS, "joining": [], "drained": []} | changes


@dataclass
class Control:
    """The answers: cells and regions, one entry for each request and then the last; other documents by path."""

    cells: list[dict[str, Any]] = field(default_factory=lambda: [made()])
    regions: list[list[dict[str, Any]]] = field(default_factory=lambda: [[]])
    documents: dict[str, object] = field(default_factory=dict[str, object])
    on_stop: Callable[[], None] = lambda: None
    refusal: tuple[int, str] | None = None
    orders: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def answer(self, path: str, body: bytes) -> tuple[int, object]:
        """Answer a request."""
        if path == "/status":
            cell = self.cells[0]
            self.cells = self.cells[1:] or self.cells
            regions = self.regions[0]
            self.regions = self.regions[1:] or self.regions
            return 200, {"cells": [cell], "regions": regions}
        if path in self.documents:
            return 200, self.documents[path]
        if path == "/stop":
            self.on_stop()
        self.orders.append(json.loads(body or b"{}") | ({"path": path} if path != "/order" else {}))
        return (200, {}) if self.refusal is None else (self.refusal[0], {"error": self.refusal[1]})
