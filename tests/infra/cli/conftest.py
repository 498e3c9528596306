"""A data folder with a fake control interface, and the `palaver` command that uses it."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from infra.cli import main
from infra.supervisor.layout import open_layout
from infra.supervisor.records import birth_of
from tests.infra.cli.control import Control


@pytest.fixture
def data(tmp_path: Path, control: Control) -> Iterator[Path]:
    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, document = control.answer(self.path, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        do_GET = do_POST = _reply  # noqa: N815 - as the standard library calls them

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            """Say nothing."""

    layout = open_layout(tmp_path)
    layout.control.parent.mkdir(parents=True, exist_ok=True)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        facts = {"pid": os.getpid(), "born": birth_of(os.getpid()), "port": server.server_port, "token": "a token"}
        layout.control.write_text(json.dumps(facts))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield tmp_path
        server.shutdown()
        thread.join()


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def palaver(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["palaver", *arguments, "--data", str(data)])
        with pytest.raises(SystemExit) as ended:
            main.run()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run
