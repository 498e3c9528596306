"""Tests which folders PostgreSQL's account can reach, with real accounts; all tests need root."""

import json
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest

from infra.servers import unprivileged
from infra.servers.binary_store import BinaryStoreUnusable, open_store
from infra.servers.resolver import resolve
from infra.servers.unprivileged import Account, FolderUnreachable
from tests import child_processes, servers

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root has to give PostgreSQL another account"),
]


@pytest.fixture
def account() -> Account:
    found = unprivileged.account()
    assert found is not None
    return found


@pytest.fixture
def place() -> Generator[Path]:
    """A folder that every account can enter, with a folder `home` that only root can enter."""
    with child_processes.folder() as path:
        path.chmod(0o755)
        (path / "home").mkdir(mode=0o700)
        yield path


@pytest.fixture
def store(place: Path) -> Path:
    return place / "store"


def test_the_account_is_not_root(account: Account) -> None:
    assert account.uid != 0


def test_a_folder_below_a_closed_home_is_not_reachable(place: Path, account: Account) -> None:
    inside = place / "home" / "deployment"
    inside.mkdir()
    assert not unprivileged.reachable(inside, account)
    assert not unprivileged.reachable(inside / "not" / "there", account)
    assert unprivileged.reachable(place / "not-there", account)
    assert unprivileged.reachable(inside, None)


def test_an_installation_that_the_account_can_run_is_not_copied(account: Account, store: Path) -> None:
    bin_dir = unprivileged.reachable_install(resolve("postgres").bin_dir, account)
    assert unprivileged.reachable_install(bin_dir, account, stores=[store]) == bin_dir
    assert not store.exists()


def test_an_installation_in_a_closed_home_is_copied_once_and_works(place: Path, store: Path, account: Account) -> None:
    bin_dir = install_in_closed_home(place)
    copied = unprivileged.reachable_install(bin_dir, account, stores=[store])
    made_at = copied.stat().st_ctime_ns
    assert unprivileged.reachable_install(bin_dir, account, stores=[store]) == copied
    assert copied.stat().st_ctime_ns == made_at
    assert not [path for path in store.iterdir() if path.name.startswith(".")]

    data = unprivileged.accessible_data_folder(place / "home" / "deployment" / "ledger", account, stores=[store])
    servers.run_as(account, [str(copied / "initdb"), f"--pgdata={data}", "--username=palaver", "--no-sync"])
    port = child_processes.free_port()
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
    control = [str(copied / "pg_ctl"), f"--pgdata={data}", "--wait", f"--log={data / 'log'}"]
    servers.run_as(account, [*control, "start", f"--options={options}"])
    try:
        with psycopg.connect(f"postgresql://palaver@127.0.0.1:{port}/postgres") as connection:
            assert connection.execute("SELECT 6 * 7").fetchone() == (42,)
    finally:
        servers.run_as(account, [*control, "stop"])
    assert (place / "home" / "deployment" / "ledger" / "PG_VERSION").exists()


def install_in_closed_home(place: Path) -> Path:
    """Copy the wheel's installation into a closed home, as a virtual environment there would have it."""
    install = resolve("postgres").bin_dir.parent
    site_packages = place / "home" / "venv" / "site-packages"
    shutil.copytree(install, site_packages / install.parent.name / install.name)
    libraries = install.parent.parent / f"{install.parent.name}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, site_packages / libraries.name)
    subprocess.run(["chmod", "-R", "go-rwx", str(place / "home")], check=True)
    return site_packages / install.parent.name / install.name / "bin"


def test_data_stays_in_place_if_the_account_can_enter(place: Path, store: Path, account: Account) -> None:
    path = place / "deployment" / "ledger"
    assert unprivileged.accessible_data_folder(path, account, stores=[store]) == path
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (account.uid, 0o700)
    assert not store.exists()


def test_data_below_a_closed_home_is_kept_in_the_store(place: Path, store: Path, account: Account) -> None:
    path = place / "home" / "deployment" / "ledger"
    folder = unprivileged.accessible_data_folder(path, account, stores=[store])
    (folder / "PG_VERSION").write_text("18")
    assert path.readlink() == folder
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (account.uid, 0o700)
    assert unprivileged.reachable(folder, account)
    assert unprivileged.accessible_data_folder(path, account, stores=[store]) == folder
    assert (folder / "PG_VERSION").read_text() == "18"


def test_two_deployments_never_share_a_folder(place: Path, store: Path, account: Account) -> None:
    paths = [place / "home" / name / "ledger" for name in ("one", "two")]
    folders = {unprivileged.accessible_data_folder(path, account, stores=[store]) for path in paths}
    assert len(folders) == 2
    shutil.copytree(place / "home" / "one", place / "home" / "copy", symlinks=True)
    with pytest.raises(FolderUnreachable, match="not the data of this deployment"):
        unprivileged.accessible_data_folder(place / "home" / "copy" / "ledger", account, stores=[store])


def test_data_that_became_unreachable_is_refused_and_kept(place: Path, store: Path, account: Account) -> None:
    path = place / "home" / "deployment" / "ledger"
    path.mkdir(parents=True)
    (path / "PG_VERSION").write_text("18")
    with pytest.raises(FolderUnreachable, match="chmod o\\+x"):
        unprivileged.accessible_data_folder(path, account, stores=[store])
    assert (path / "PG_VERSION").exists()


def test_data_of_another_user_is_refused(place: Path, account: Account) -> None:
    path = place / "ledger"
    path.mkdir()
    (path / "PG_VERSION").write_text("18")
    with pytest.raises(FolderUnreachable, match="holds data of user root"):
        unprivileged.accessible_data_folder(path, account)


def test_prune_removes_only_data_that_no_deployment_links_to(place: Path, store: Path, account: Account) -> None:
    kept = unprivileged.accessible_data_folder(place / "home" / "kept" / "ledger", account, stores=[store])
    gone = unprivileged.accessible_data_folder(place / "home" / "gone" / "ledger", account, stores=[store])
    shutil.rmtree(place / "home" / "gone")
    assert unprivileged.prune(stores=[store]) == [place / "home" / "gone" / "ledger"]
    assert kept.is_dir()
    assert not gone.exists()
    assert unprivileged.prune(stores=[store]) == []


def test_prune_keeps_data_a_server_runs_in_and_data_of_an_unmounted_file_system(
    place: Path, store: Path, account: Account
) -> None:
    served = unprivileged.accessible_data_folder(place / "home" / "served" / "ledger", account, stores=[store])
    (served / "postmaster.pid").write_text(f"{os.getpid()}\n")
    away = unprivileged.accessible_data_folder(place / "home" / "away" / "ledger", account, stores=[store])
    record = away.with_suffix(".json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "device": -1}))
    shutil.rmtree(place / "home")
    assert unprivileged.prune(stores=[store]) == []
    assert served.is_dir()
    assert away.is_dir()


def test_a_store_prepared_by_another_account_is_refused(place: Path, store: Path, account: Account) -> None:
    store.mkdir()
    os.chown(store, account.uid, account.gid)
    (place / "link").symlink_to(place / "home")
    with pytest.raises(BinaryStoreUnusable, match="belongs to somebody else"):
        open_store([store, place / "link"])
    assert open_store([store, place / "own"]) == place / "own"
