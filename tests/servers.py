"""Starts temporary real servers for tests: PostgreSQL, etcd, Redis and Envoy, each as a context manager.

Each server listens on a free loopback port and keeps its files in a temporary folder, which is removed afterwards. The
servers are tuned for speed and do not flush to disk: a killed process loses no data, a crash of the machine loses all.
"""

import atexit
import contextlib
import json
import shutil
import subprocess
from collections.abc import Generator, Mapping, Sequence
from functools import cache
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGQUIT, SIGSTOP
from typing import Any, cast

import httpx
import psycopg
import redis
from redis.exceptions import RedisError

from infra.servers.resolver import resolve
from infra.servers.unprivileged import Account, account, reachable_install
from regions.plain_http import TRUST_NOBODY
from tests.child_processes import Child, ServerFailed, folder, free_port

PASSWORD = "throwaway"

POSTGRES_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "logical",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "log_min_messages": "warning",
}

INITDB_ARGUMENTS = (
    "--username=palaver",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--no-sync",
    "--no-instructions",
)


class PostgresServer:
    """One PostgreSQL on a copy of an initialised data folder, with a database `palaver`."""

    superuser = "palaver"
    password = PASSWORD

    def __init__(self, *, root: Path, bin_dir: Path, owner: Account | None) -> None:
        self.port = free_port()
        self.data = root / "data"
        self.bin_dir = bin_dir
        self.account = owner
        self.process = Child(
            [bin_dir / "postgres", "-D", self.data, "-p", str(self.port)],
            log=root / "postgres.log",
            ready=self._answers,
            account=owner,
        )

    def url(self, database: str = "palaver", user: str = "palaver", password: str = PASSWORD) -> str:
        """Return the libpq URL of a database, for asyncpg and psycopg."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def sql(self, text: str, *parameters: object, database: str = "palaver") -> list[tuple[Any, ...]]:
        """Run one or more statements in autocommit; return the rows of the last one, if it has any."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(text.encode(), parameters or None)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start PostgreSQL again after `stop` or `kill`. Entering the context has started it once."""
        self.process.start()

    def stop(self) -> None:
        """Shut down in fast mode: PostgreSQL closes the connections of clients and writes a checkpoint."""
        self.process.stop(SIGINT)

    def stop_at_once(self) -> None:
        """Shut down in immediate mode: PostgreSQL warns and closes each connection, and waits for nothing."""
        self.process.stop(SIGQUIT)

    def kill(self) -> None:
        """Kill the postmaster. Its children notice this and exit."""
        self.process.kill()

    def pause(self) -> None:
        """Suspend the postmaster only: PostgreSQL accepts no new connection, and open connections continue."""
        self.process.signal(SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        self.process.signal(SIGCONT)

    def discard(self) -> None:
        """End the server for good, and free the shared memory that a killed postmaster left."""
        if self.process.running:
            self.process.stop(SIGQUIT)
        pid_file = self.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines() if pid_file.exists() else []
        if len(lines) > 6 and len(lines[6].split()) == 2 and shutil.which("ipcrm"):
            segment = lines[6].split()[1]
            subprocess.run(["ipcrm", "-m", segment], capture_output=True, check=False)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@contextlib.contextmanager
def postgres(
    conf: Mapping[str, str] = {},
    initdb_args: Sequence[str] = (),
) -> Generator[PostgresServer]:
    """Run PostgreSQL 18 with these settings on top of POSTGRES_SETTINGS."""
    owner = account()
    bin_dir = _postgres_bin_dir()
    with folder(owner) as root:
        server = PostgresServer(root=root, bin_dir=bin_dir, owner=owner)
        template = _initialised_data(tuple(initdb_args))
        run_as(owner, ["cp", "-R", str(template), str(server.data)])
        with (server.data / "postgresql.conf").open("a") as file:
            for name, value in {**POSTGRES_SETTINGS, **conf}.items():
                quoted = value.replace("'", "''")
                file.write(f"{name} = '{quoted}'\n")
        try:
            server.start()
            yield server
        finally:
            server.discard()


@cache
def _postgres_bin_dir() -> Path:
    return reachable_install(resolve("postgres").bin_dir, account())


@cache
def _initialised_data(initdb_args: tuple[str, ...]) -> Path:
    """Run initdb once per test run and set of arguments, and copy the result. A copy takes a tenth of the time."""
    owner = account()
    bin_dir = _postgres_bin_dir()
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    root = stack.enter_context(folder(owner))
    password_file = root / "password"
    password_file.write_text(PASSWORD)
    password_file.chmod(0o644)
    data = root / "data"
    initdb = [str(bin_dir / "initdb"), f"--pgdata={data}", f"--pwfile={password_file}"]
    run_as(owner, [*initdb, *INITDB_ARGUMENTS, *initdb_args])
    single = [str(bin_dir / "postgres"), "--single", "-F", "-D", str(data), "postgres"]
    run_as(owner, single, standard_input="CREATE DATABASE palaver\n")
    return data


def run_as(owner: Account | None, command: Sequence[str], standard_input: str = "") -> str:
    """Run a program to its end, as the unprivileged account if there is one; return its output."""
    done = subprocess.run(
        command,
        input=standard_input,
        capture_output=True,
        text=True,
        cwd="/",
        user=owner.uid if owner else None,
        group=owner.gid if owner else None,
        extra_groups=[] if owner else None,
        check=False,
    )
    if done.returncode != 0:
        raise ServerFailed(f"{command[0]} failed: {done.stdout}{done.stderr}")
    return done.stdout


class EtcdCluster:
    """Members of one etcd cluster; `endpoints[i]` ("127.0.0.1:port") belongs to member i."""

    def __init__(self, *, root: Path, members: int) -> None:
        self.endpoints = [f"127.0.0.1:{free_port()}" for _ in range(members)]
        self._peers = [f"http://127.0.0.1:{free_port()}" for _ in range(members)]
        self.processes = [self._member(root, i) for i in range(members)]

    def _member(self, root: Path, i: int) -> Child:
        etcd = resolve("etcd")
        cluster = ",".join(f"member-{n}={peer}" for n, peer in enumerate(self._peers))
        client = f"http://{self.endpoints[i]}"
        return Child(
            [
                etcd.path,
                *etcd.extra_flags,
                f"--name=member-{i}",
                f"--data-dir={root / f'member-{i}'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={self._peers[i]}",
                f"--initial-advertise-peer-urls={self._peers[i]}",
                f"--initial-cluster={cluster}",
                "--initial-cluster-state=new",
                "--heartbeat-interval=50",
                "--election-timeout=500",
                "--grpc-keepalive-min-time=500ms",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
            log=root / f"member-{i}.log",
            ready=lambda: self._healthy(i),
        )

    def _healthy(self, i: int) -> bool:
        try:
            answer = httpx.get(f"http://{self.endpoints[i]}/health", timeout=2, trust_env=False, verify=TRUST_NOBODY)
        except httpx.TransportError:
            return False
        return answer.is_success

    def kill(self, i: int) -> None:
        """Kill member i."""
        self.processes[i].kill()

    def start(self, i: int, *, wait: bool = True) -> None:
        """Start member i. Without `wait` it need not become healthy: a minority never does."""
        self.processes[i].start(wait=wait)

    def pause(self, i: int) -> None:
        """Suspend member i."""
        self.processes[i].signal(SIGSTOP)

    def resume(self, i: int) -> None:
        """Resume member i."""
        self.processes[i].signal(SIGCONT)


@contextlib.contextmanager
def etcd_cluster(members: int = 1) -> Generator[EtcdCluster]:
    """Run an etcd cluster without authentication. The cluster is healthy when the context is entered."""
    with folder() as root:
        cluster = EtcdCluster(root=root, members=members)
        try:
            for process in cluster.processes:
                process.start(wait=False)
            for process in cluster.processes:
                process.wait_ready()
            yield cluster
        finally:
            for process in cluster.processes:
                process.kill()


class RedisServer:
    """A Redis without persistence. A kill loses its data."""

    password = PASSWORD

    def __init__(self, *, root: Path) -> None:
        self.port = free_port()
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        arguments = ["--bind", "127.0.0.1", "--port", str(self.port), "--requirepass", PASSWORD, "--save", ""]
        self.process = Child([resolve("redis").path, *arguments], log=root / "redis.log", ready=self._answers)

    def _answers(self) -> bool:
        client = cast("Any", redis.Redis).from_url(self.url, socket_timeout=2)
        try:
            return bool(client.ping())
        except RedisError:
            return False
        finally:
            client.close()

    def start(self) -> None:
        """Start it again, empty, after `kill`."""
        self.process.start()

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()

    def pause(self) -> None:
        """Suspend it: connections stay open, and Redis does not answer."""
        self.process.signal(SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        self.process.signal(SIGCONT)


@contextlib.contextmanager
def redis_server() -> Generator[RedisServer]:
    """Run a Redis with a password and without persistence."""
    with folder() as root:
        server = RedisServer(root=root)
        try:
            server.start()
            yield server
        finally:
            server.process.kill()


class EnvoyServer:
    """One Envoy; `admin` is an HTTP client of its admin interface."""

    def __init__(self, *, root: Path, bootstrap: Mapping[str, Any]) -> None:
        config = dict(bootstrap)
        if "admin" not in config:
            address = {"socket_address": {"address": "127.0.0.1", "port_value": free_port()}}
            config["admin"] = {"address": address}
        self.admin = _admin_client(config["admin"]["address"])
        bootstrap_file = root / "bootstrap.json"
        bootstrap_file.write_text(json.dumps(config))
        arguments = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        command = [resolve("envoy").path, "-c", bootstrap_file, *arguments]
        self.process = Child(command, log=root / "envoy.log", ready=self._answers)

    def _answers(self) -> bool:
        try:
            return self.admin.get("/ready").is_success
        except httpx.TransportError:
            return False

    def start(self) -> None:
        """Start it again after `kill`."""
        self.process.start()

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()


def _admin_client(address: dict[str, Any]) -> httpx.Client:
    if "pipe" in address:
        transport = httpx.HTTPTransport(uds=address["pipe"]["path"], verify=TRUST_NOBODY)
        return httpx.Client(transport=transport, base_url="http://admin", timeout=5)
    at = address["socket_address"]
    return httpx.Client(
        base_url=f"http://{at['address']}:{at['port_value']}", timeout=5, trust_env=False, verify=TRUST_NOBODY
    )


@contextlib.contextmanager
def envoy(bootstrap: Mapping[str, Any]) -> Generator[EnvoyServer]:
    """Run an Envoy with this bootstrap. An admin address is added if the bootstrap has none."""
    with folder() as root:
        server = EnvoyServer(root=root, bootstrap=bootstrap)
        try:
            server.start()
            yield server
        finally:
            server.process.kill()
            server.admin.close()
