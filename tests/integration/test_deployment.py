"""Tests the life of a deployment: starts, stops, crashes of its supervisor, and refused commands."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import pytest

from infra.supervisor.errors import DeploymentError, NotRunning
from infra.supervisor.layout import open_layout
from infra.supervisor.plan import load_plan
from regions.plain_http import TRUST_NOBODY
from tests.child_processes import is_alive, processes_of, stopped_at_the_end
from tests.integration.stack import REGIONS, Stack, palaver, start_stack
from tests.waiting import eventually

pytestmark = [pytest.mark.integration]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def own_deployment(data_folder: Callable[[], Path]) -> Stack:
    """A deployment of this module's own, with a view-only region."""
    return start_stack(data_folder(), "--view-regions", "sa-east")


@pytest.fixture
def own_stack(own_deployment: Stack) -> Stack:
    """The deployment of this module, running, also if the test before stopped it."""
    try:
        own_deployment.status()
    except NotRunning:
        own_deployment.palaver("up", "--detach")
    return own_deployment


@pytest.fixture
def stopped_stack(own_deployment: Stack) -> Stack:
    """The deployment of this module, stopped, also if the test before left it running."""
    own_deployment.palaver("down", check=False)
    assert processes_of(own_deployment.data) == []
    return own_deployment


@pytest.fixture
def home_folder() -> Iterator[Path]:
    """A folder of mode 0700, as a home folder may be."""
    folder = Path(tempfile.mkdtemp(prefix="palaver-home-"))
    folder.chmod(0o700)
    with stopped_at_the_end(folder / "data"):
        yield folder / "data"


def test_a_view_only_region_serves_reads_and_forwards_writes(own_stack: Stack) -> None:
    made = own_stack.post("sa-east", "From a region without a vote.", thread="view")
    assert made.status_code == 201, made.text
    own_stack.until_visible("sa-east", made.json()["id"])
    region = own_stack.region("sa-east")
    assert region["role"] == "view"
    assert set(region["pids"]) == {"view", "redis", "envoy", "region_agent", "read_api", "replicator"}


def test_every_target_of_the_documented_scrape_configuration_answers_with_metrics(own_stack: Stack) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    (command,) = re.findall(r"^palaver (status --json) \| jq \.(metrics) > palaver-targets\.json$", text, re.MULTILINE)
    assert "files: [palaver-targets.json]" in text
    targets = orjson.loads(own_stack.palaver(*command[0].split()).stdout)[command[1]]
    processes = {(entry["labels"].get("region"), entry["labels"]["process"]) for entry in targets}
    assert {(None, "supervisor"), (None, "relay"), ("sa-east", "read_api"), (REGIONS[0], "write_api")} <= processes
    for entry in targets:
        answer = httpx.get(f"http://{entry['targets'][0]}/metrics", trust_env=False, verify=TRUST_NOBODY)
        assert answer.status_code == 200, entry
        assert "# TYPE palaver_" in answer.text, entry


def test_everything_listens_on_loopback_only(own_stack: Stack) -> None:
    members = {child.pid for process in processes_of(own_stack.data) for child in [process, *process.children(True)]}
    listening = [c for c in psutil.net_connections("inet") if c.pid in members and c.status == psutil.CONN_LISTEN]
    assert len(listening) > 40
    assert {getattr(connection.laddr, "ip", None) for connection in listening} == {"127.0.0.1"}


def test_secrets_are_readable_by_their_owner_only(own_stack: Stack) -> None:
    secrets = list(orjson.loads((own_stack.data / "secrets.json").read_bytes()).values())
    for path in own_stack.data.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.stat().st_mode & 0o044 == 0:
            continue
        content = path.read_text(errors="replace")
        assert not any(secret in content for secret in secrets), f"{path} is readable by others and holds a secret"


def test_a_second_start_of_a_running_deployment_is_refused(own_stack: Stack) -> None:
    done = own_stack.palaver("up", "--detach", check=False)
    assert done.returncode != 0
    assert "running already" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert own_stack.region("us-east")["healthy"]


def test_up_with_other_regions_in_the_same_folder_is_refused(own_stack: Stack) -> None:
    done = own_stack.palaver("up", "--detach", "--regions", "a,b,c", check=False)
    assert done.returncode == 2
    assert "--regions us-east,eu-west,ap-south" in done.stderr


def test_a_running_deployment_keeps_its_plan(own_stack: Stack) -> None:
    before = (own_stack.data / "deployment.json").read_bytes()
    done = own_stack.palaver("up", "--detach", "--rtt-ms", "5", check=False)
    assert done.returncode != 0
    assert "running already" in done.stderr
    assert (own_stack.data / "deployment.json").read_bytes() == before


def test_a_killed_supervisor_leaves_no_orphan_and_a_new_start_continues(own_stack: Stack) -> None:
    ids = [own_stack.post(region, "Before the crash.", thread="crash").json()["id"] for region in REGIONS]
    epoch = own_stack.status()["cells"][0]["epoch"]
    everything = processes_of(own_stack.data)
    supervisor = orjson.loads((own_stack.data / "control.json").read_bytes())["pid"]
    os.kill(supervisor, signal.SIGKILL)
    eventually(
        lambda: [process for process in everything if is_alive(process)],
        lambda left: left == [],
        within_s=30,
        what="no orphan",
    )
    # Processes that were started between the list and the kill have ended as well.
    eventually(lambda: processes_of(own_stack.data), lambda left: left == [], within_s=30, what="nothing is left")
    own_stack.palaver("up", "--detach")
    after = own_stack.until_healthy(within_s=30)
    assert after["cells"][0]["epoch"] > epoch, "every start of a primary takes a new epoch"
    for region in own_stack.edges:
        assert sorted(own_stack.thread_ids(region, "crash")) == sorted(ids)


def test_the_next_start_ends_remaining_orphans(own_stack: Stack) -> None:
    made = own_stack.post("eu-west", "Before both die.", thread="orphans").json()["id"]
    control = orjson.loads((own_stack.data / "control.json").read_bytes())
    guardians = [
        process
        for process in psutil.Process(control["pid"]).children()
        if "infra.supervisor.guardian" in process.cmdline()
    ]
    assert len(guardians) == 1
    guardians[0].kill()
    os.kill(control["pid"], signal.SIGKILL)
    orphans = eventually(
        lambda: processes_of(own_stack.data), lambda left: len(left) > 0, within_s=5, what="orphans are left"
    )
    own_stack.palaver("up", "--detach")
    assert not any(is_alive(process) for process in orphans)
    own_stack.until_visible("ap-south", made)


def test_down_stops_everything_a_start_in_the_foreground_has_the_data_and_an_interrupt_stops_it(
    own_stack: Stack,
) -> None:
    made = own_stack.post("us-east", "Kept.", thread="down").json()["id"]
    everything = processes_of(own_stack.data)
    own_stack.palaver("down")
    assert not any(is_alive(process) for process in everything)
    assert own_stack.palaver("status", check=False).returncode == 1
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "infra.cli", "up", "--data", str(own_stack.data)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        eventually(
            lambda: foreground_regions(own_stack),
            lambda regions: regions != [] and all(region["healthy"] for region in regions),
            within_s=60,
            what="the foreground start is ready",
            pause_s=0.5,
        )
        assert own_stack.palaver("status").returncode == 0
        for region in own_stack.edges:
            own_stack.until_visible(region, made)
        everything = processes_of(own_stack.data)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=40)
        assert process.returncode == 0, output
        assert all(f"{region}: {edge}" in output for region, edge in own_stack.edges.items()), output
        assert "stop: Ctrl-C" in output
        assert output.endswith(f"stopped; the data is kept in {own_stack.data}\n")
        assert not any(is_alive(member) for member in everything)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def foreground_regions(stack: Stack) -> list[dict[str, Any]]:
    """Return the status of each region; none before the supervisor answers."""
    try:
        return stack.status()["regions"]
    except DeploymentError:
        return []


def test_a_taken_port_is_reported_in_one_line_and_nothing_stays_running(stopped_stack: Stack) -> None:
    plan = load_plan(open_layout(stopped_stack.data).plan)
    assert plan is not None
    port = plan.port("eu-west", "edge")
    with socket.create_server(("127.0.0.1", port)):
        done = stopped_stack.palaver("up", "--detach", check=False)
        assert done.returncode != 0
        assert f"port {port} is taken" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert processes_of(stopped_stack.data) == []


def test_a_process_that_does_not_start_ends_the_start_and_all_processes(stopped_stack: Stack) -> None:
    broken = stopped_stack.data / "regions" / "eu-west" / "view" / "PG_VERSION"
    kept = broken.read_bytes()
    broken.write_bytes(b"17\n")
    try:
        done = stopped_stack.palaver("up", "--detach", check=False)
        assert done.returncode != 0
        assert "PostgreSQL 17" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert processes_of(stopped_stack.data) == []
    finally:
        broken.write_bytes(kept)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("up", "--regions", "a,b"), "3 or 5"),
        (("up", "--regions", "a,b,B"), "region name"),
        (("up", "--rtt-ms", "-1"), "--rtt-ms"),
        (("up", "--port-base", "99999"), "--port-base"),
        (("up", "--port-base", "x"), "--port-base"),
        (("nonsense",), "nonsense"),
        (("status", "--wrong"), "--wrong"),
    ],
)
def test_wrong_input_is_one_line_with_exit_code_2_and_makes_no_folder(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = palaver(*arguments, data=tmp_path / "data", check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_written_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = palaver("up", "--detach", data=tmp_path / "file" / "data", check=False)
    assert done.returncode != 0
    assert "--data" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_demo_runs_in_a_folder_that_no_other_account_can_enter(home_folder: Path) -> None:
    done = palaver("demo", "--exit", "--rtt-ms", "10", "--json", data=home_folder)
    # The text is on standard error, the JSON document on standard output.
    assert "every claim above was checked" in done.stderr
    # The deployment has stopped, so the text names no address and no way to stop it.
    assert "Ctrl-C" not in done.stderr
    assert "curl" not in done.stderr
    assert done.stderr.endswith(f"stopped; the data is kept in {home_folder}\n")
    seen = orjson.loads(done.stdout)
    assert seen["failures"] == []
    for region, times in seen["commit_ms"].items():
        assert re.search(rf"{region}: .* slowest {times['max']:.0f} ms", done.stderr), done.stderr
    assert seen["comments"] > 200
    assert set(seen["edges"]) == set(seen["commit_ms"]) == set(seen["readable_after_ms"]) == set(seen["pids"])
    assert all(median > 0 for times in seen["readable_after_ms"].values() for median in times.values())
    # The demo kills the leader region, and another region takes over.
    assert seen["disaster"]["died"] != seen["disaster"]["leads"]
    assert seen["disaster"]["epoch"] > 1
    assert seen["disaster"]["still_ms"] > 500, "no failover begins before the failure is suspected"
    assert processes_of(home_folder) == []
