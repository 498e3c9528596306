"""Runs a process of the product as a deployment does: its own interpreter, settings from the environment."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from signal import SIGTERM
from typing import Any, Self

import httpx

from regions.plain_http import TRUST_NOBODY
from services.api.openapi import openapi_document
from tests.answers import Answers
from tests.child_processes import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0  # far above what a process takes to end by itself, and below the time that a test has


def topology(path: Path, *, etcd: str = "127.0.0.1:1") -> Path:
    """Write the topology of a deployment with one region."""
    nowhere = dict.fromkeys(("ledger", "write_api", "read_api", "changes", "agent"), "127.0.0.1:1")
    region = {"name": "us-east", "voter": True, "etcd": etcd, **nowhere}
    file = path / "topology.json"
    file.write_text(json.dumps({"cell": "main", "region": "us-east", "regions": [region]}))
    return file


class Service:
    """One `python -m services.<name>`; a context manager that ends it."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.public = f"127.0.0.1:{free_port()}"
        self.internal = f"127.0.0.1:{free_port()}"
        self.answers = Answers(openapi_document())
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PALAVER_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"services.{name}"],
            cwd=ROOT,
            env={
                **clean,
                "PALAVER_LISTEN": self.public,
                "PALAVER_INTERNAL_LISTEN": self.internal,
                **environment,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def wait(self) -> int:
        """Wait for the end; return the exit status."""
        status = self.process.wait(timeout=PATIENCE_S)
        self._reader.join()
        if self.process.stderr is not None:
            self.process.stderr.close()
        return status

    def stop(self, path: str) -> int:
        """Send SIGTERM while a client has begun a POST that it never ends; return the exit status.

        A process that waited for its clients would not end at all: the order shows that its stop is bounded, and no
        number of seconds is needed.
        """
        host, _, port = self.public.rpartition(":")
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as client:
            client.sendall(head.encode())
            # What came before the probe is read before its answer: both have one event loop.
            assert self.probe("/healthz").status_code == 200
            self.process.send_signal(SIGTERM)
            return self.wait()

    def probe(self, path: str) -> httpx.Response:
        """Ask the internal port, waiting until it is open."""
        return self.ask("GET", f"http://{self.internal}{path}")

    def call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Ask the public port, waiting until it is open; the answer is held to the document."""
        answer = self.ask(method, f"http://{self.public}{path}", **arguments)
        self.answers.check(answer)
        return answer

    def ask(self, method: str, url: str, **arguments: Any) -> httpx.Response:
        """Send one request, again and again while nobody listens."""
        for _ in range(400):
            try:
                return httpx.request(method, url, trust_env=False, verify=TRUST_NOBODY, timeout=10, **arguments)
            except httpx.ConnectError:
                assert self.process.poll() is None, "".join(self.lines)
                time.sleep(0.05)
        raise AssertionError(f"nobody listens: {url}")

    def until_ready(self) -> None:
        """Wait until /readyz says so."""
        for _ in range(400):
            if self.probe("/readyz").status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError(self.probe("/readyz").text)


def raw_exchange(address: str, request: bytes) -> bytes:
    """Send a request that asks for `connection: close`, and return all that comes back.

    This side stays open meanwhile: uvicorn takes a half-closed connection for a lost one and answers nothing.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer
