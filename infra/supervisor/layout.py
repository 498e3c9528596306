"""Where everything of a deployment lies in its data folder. Decides paths, touches nothing but folders."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.supervisor.errors import DataFolderUnusable

UNIX_SOCKET_PATH_MAX = 100  # sun_path holds 108 bytes with the closing zero (unix(7)); Envoy adds a suffix

UnixSocket = Literal["admin", "read_api", "write_api"]
"""Envoy's admin interface, and where the APIs take what comes from the edge of their own region."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The data folder of one deployment.

    Attributes:
        data: The folder itself, absolute.
    """

    data: Path

    @property
    def plan(self) -> Path:
        """The plan, written once."""
        return self.data / "deployment.json"

    @property
    def secrets(self) -> Path:
        """Passwords and tokens, mode 0600."""
        return self.data / "secrets.json"

    @property
    def control(self) -> Path:
        """Who supervises now and how to reach it, mode 0600; absent when nobody does."""
        return self.data / "control.json"

    @property
    def lock(self) -> Path:
        """Held by the supervisor for its whole life."""
        return self.data / "supervisor.lock"

    @property
    def records(self) -> Path:
        """Which processes were started, for whoever must end them after a crash of the supervisor."""
        return self.data / "processes.json"

    @property
    def orders(self) -> Path:
        """The journal of the operator's orders."""
        return self.deployment_logs / "orders.jsonl"

    @property
    def relay_config(self) -> Path:
        """What the relay listens on, mode 0600."""
        return self.data / "relay.json"

    @property
    def deployment_logs(self) -> Path:
        """Logs of the supervisor and of the relay."""
        return self.data / "logs"

    def region(self, region: str) -> Path:
        """Everything of one region."""
        return self.data / "regions" / region

    def log(self, region: str | None, process: str) -> Path:
        """The log of a process: JSON lines for our own, the server's own format for the others."""
        folder = self.deployment_logs if region is None else self.region(region) / "logs"
        return folder / f"{process}.log"

    def topology(self, region: str) -> Path:
        """The addresses of all regions as this region reaches them."""
        return self.region(region) / "topology.json"

    def xds(self, region: str) -> Path:
        """Where the agent writes what Envoy is told."""
        return self.region(region) / "envoy" / "xds"

    def unix_socket(self, region: str, name: UnixSocket) -> Path:
        """A unix socket of a region; in a short private folder when the path is too long."""
        path = self.region(region) / "envoy" / f"{name}.sock"
        if len(os.fsencode(path)) <= UNIX_SOCKET_PATH_MAX:
            return path
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"palaver-{os.getuid()}-{digest}" / f"{region}.{name}.sock"

    @property
    def clocks(self) -> Path:
        """What the regions' own wall clocks are made of; there only when they can be set."""
        return self.data / "clocks"

    def postmaster_pid(self, region: str, member: str) -> Path:
        """PostgreSQL's own pid file of the `ledger` or of the `view`."""
        return self.region(region) / member / "postmaster.pid"


def _refuse_foreign(folder: Path) -> None:
    """In a shared temporary folder somebody else may have made ours beforehand.

    Raises:
        DataFolderUnusable: It belongs to another account.
    """
    if folder.stat().st_uid != os.geteuid():
        raise DataFolderUnusable(f"{folder} belongs to another account; remove it, or use a shorter --data")


def open_layout(data: Path) -> Layout:
    """Name the layout of a folder that may not exist yet."""
    return Layout(data=data.expanduser().absolute())


def create_folders(layout: Layout, regions: tuple[str, ...]) -> None:
    """Make every folder that processes expect.

    Raises:
        DataFolderUnusable: A folder cannot be made or written.
    """
    # As root, PostgreSQL runs as another account, which must be able to pass through; nothing secret is
    # readable on the way, because each secret is a file of mode 0600.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    wanted = [layout.data, layout.deployment_logs]
    for region in regions:
        home = layout.region(region)
        wanted += [home.parent, home, home / "logs", home / "etcd", home / "redis", home / "agent"]
        wanted += [home / "envoy", layout.xds(region), layout.unix_socket(region, "admin").parent]
    try:
        for folder in wanted:
            folder.mkdir(parents=True, exist_ok=True, mode=mode)
        for region in regions:
            _refuse_foreign(layout.unix_socket(region, "admin").parent)
            layout.xds(region).chmod(0o700)
            layout.unix_socket(region, "admin").parent.chmod(0o700)
            (layout.region(region) / "etcd").chmod(0o700)  # etcd insists on it
        probe = layout.data / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataFolderUnusable(
            f"data folder {layout.data} cannot be used: {error.strerror or error} ({error.filename}); "
            "choose another with --data"
        ) from error
