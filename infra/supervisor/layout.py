"""The paths of a deployment's data folder. Decides where each file is; creates folders, but no files."""

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
"""Envoy's admin interface, and the sockets on which the APIs accept requests of their own region's edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The data folder of one deployment.

    Attributes:
        data: The folder itself, absolute.
    """

    data: Path

    @property
    def plan(self) -> Path:
        """The plan of the deployment."""
        return self.data / "deployment.json"

    @property
    def secrets(self) -> Path:
        """Passwords and tokens, mode 0600."""
        return self.data / "secrets.json"

    @property
    def control(self) -> Path:
        """The pid, port and token of the running supervisor, mode 0600; absent while none runs."""
        return self.data / "control.json"

    @property
    def lock(self) -> Path:
        """The lock that the supervisor holds while it runs."""
        return self.data / "supervisor.lock"

    @property
    def records(self) -> Path:
        """The started processes. The guardian or the next start ends them after a crash of the supervisor."""
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
        """The folder of one region."""
        return self.data / "regions" / region

    def log(self, region: str | None, process: str) -> Path:
        """The log of a process: JSON lines for Palaver's processes, the server's own format for the others."""
        folder = self.deployment_logs if region is None else self.region(region) / "logs"
        return folder / f"{process}.log"

    def topology(self, region: str) -> Path:
        """The topology file: the addresses at which this region reaches all regions."""
        return self.region(region) / "topology.json"

    def xds(self, region: str) -> Path:
        """The folder of Envoy's xDS files, which the agent writes."""
        return self.region(region) / "envoy" / "xds"

    def unix_socket(self, region: str, name: UnixSocket) -> Path:
        """A unix socket of a region; in a short private folder if the path would be too long."""
        path = self.region(region) / "envoy" / f"{name}.sock"
        if len(os.fsencode(path)) <= UNIX_SOCKET_PATH_MAX:
            return path
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"palaver-{os.getuid()}-{digest}" / f"{region}.{name}.sock"

    @property
    def clocks(self) -> Path:
        """The files of the regions' shiftable clocks; present only after `palaver up --clocks`."""
        return self.data / "clocks"

    def postmaster_pid(self, region: str, member: str) -> Path:
        """The pid file that PostgreSQL writes for the `ledger` or the `view`."""
        return self.region(region) / member / "postmaster.pid"


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that another account owns: in a shared temporary folder, it could have created this one first.

    Raises:
        DataFolderUnusable: The folder belongs to another account.
    """
    if folder.stat().st_uid != os.geteuid():
        raise DataFolderUnusable(f"{folder} belongs to another account; remove it, or use a shorter --data")


def open_layout(data: Path) -> Layout:
    """Return the layout of a data folder, which need not exist yet."""
    return Layout(data=data.expanduser().absolute())


def create_folders(layout: Layout, regions: tuple[str, ...]) -> None:
    """Create every folder that processes expect.

    Raises:
        DataFolderUnusable: A folder cannot be created or written.
    """
    # If the supervisor is root, PostgreSQL runs as another account, which must be able to enter these folders. This
    # exposes no secret, because each secret is in a file of mode 0600.
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
            (layout.region(region) / "etcd").chmod(0o700)  # etcd requires it
        probe = layout.data / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataFolderUnusable(
            f"data folder {layout.data} cannot be used: {error.strerror or error} ({error.filename}); "
            "choose another with --data"
        ) from error
