"""The account that PostgreSQL runs as if Palaver is started as root, and the folders that this account can reach.

Decides the account, and where its programs and data are if it cannot enter their folders; a home folder of mode 0700 is
the common case. It does not know how PostgreSQL is started. Source: PostgreSQL does not run as root (`postgres` in its
server documentation). Access is tested by running a command as the account, because mode bits do not show access
control lists.
"""

import contextlib
import hashlib
import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.servers import binary_store
from infra.servers.resolver import POSTGRES_PROGRAMS

# A package or image would create the account `palaver`; `nobody` exists on every system.
ACCOUNT_NAMES = ("palaver", "nobody")

# `cd` and `--version` take milliseconds; this is the bound for a file system that hangs.
PROBE_TIMEOUT_S = 30.0


class AccountMissing(Exception):
    """There is no unprivileged account; the message says which to create."""


class FolderUnreachable(Exception):
    """A folder cannot be used by the account; the message says which and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An operating system account."""

    name: str
    uid: int
    gid: int


def account() -> Account | None:
    """Return the account that PostgreSQL runs as; None if this process is not root.

    Raises:
        AccountMissing: none of ACCOUNT_NAMES exists.
    """
    if os.geteuid() != 0:
        return None
    for name in ACCOUNT_NAMES:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise AccountMissing(f"no account to run PostgreSQL as: create one of {', '.join(ACCOUNT_NAMES)}")


def reachable(path: Path, account: Account | None) -> bool:
    """Whether the account can enter the folder, or its nearest existing ancestor."""
    folder = path.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return account is None or _succeeds_as(account, 'cd -- "$1"', str(folder))


def reachable_install(
    bin_dir: Path, account: Account | None, *, stores: Sequence[Path] = binary_store.STORE_PATHS
) -> Path:
    """Return a folder with PostgreSQL's programs that the account can run: `bin_dir`, or a copy in the store.

    The copy is made once per version of PostgreSQL, and put in place by one rename.

    Raises:
        FolderUnreachable: the account cannot run the copy either.
        BinaryStoreUnusable: there is no store for the copy.
    """
    if account is None or _runs(bin_dir, account):
        return bin_dir
    root = bin_dir.resolve().parent
    store = binary_store.open_store(stores)
    target = store / f"postgres-{_install_key(root)}"
    copied_bin_dir = target / root.parent.name / root.name / "bin"
    with binary_store.locked(store):
        if not target.is_dir():
            _copy_install(root, target)
    if not _runs(copied_bin_dir, account):
        raise FolderUnreachable(
            f"account {account.name} can run PostgreSQL neither in {bin_dir} nor in its copy"
            f" {copied_bin_dir}: install it in a folder that everybody can enter"
        )
    return copied_bin_dir


def accessible_data_folder(
    path: Path, account: Account | None, *, stores: Sequence[Path] = binary_store.STORE_PATHS
) -> Path:
    """Return a folder for PostgreSQL's data: `path` itself, or one in the store that `path` then links to.

    The folder exists afterwards with mode 0700 and belongs to the account. The link replaces an empty folder at `path`,
    but never a folder with files.

    Raises:
        FolderUnreachable: `path` holds data that the account cannot use.
        BinaryStoreUnusable: a folder in the store is needed, and there is no store.
    """
    if account is None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink() and reachable(path.parent, account):
        path.mkdir(mode=0o700, exist_ok=True)
        _hand_over(path, account)
        return path
    store = binary_store.open_store(stores)
    with binary_store.locked(store):
        return _folder_in_store(store, path, account)


def prune(*, stores: Sequence[Path] = binary_store.STORE_PATHS) -> list[Path]:
    """Remove the data folders in the store whose deployment folder was deleted; return the deleted paths.

    Does nothing if this process is not root. A folder is kept if a server runs in it, or if the file system of its
    deployment is not mounted, because the deployment may then still exist.
    """
    if os.geteuid() != 0:
        return []
    pruned: list[Path] = []
    for store in filter(Path.is_dir, stores):
        records = list((store / "data").glob("*.json"))
        if not records:
            continue
        with binary_store.locked(store):
            pruned += [path for record in records if (path := _prune_one(record)) is not None]
    return pruned


def _folder_in_store(store: Path, path: Path, account: Account) -> Path:
    at = path.parent.resolve() / path.name
    folder = store / "data" / hashlib.sha256(os.fsencode(at)).hexdigest()[:20]
    if path.is_symlink():
        if path.readlink() != folder:
            raise FolderUnreachable(
                f"{path} links to {path.readlink()}, which is not the data of this deployment: remove the link"
            )
    elif path.exists():
        try:
            path.rmdir()
        except OSError:
            raise FolderUnreachable(
                f"account {account.name} cannot enter {path}, which holds data:"
                f" let it enter every folder above (chmod o+x), or start with another data folder"
            ) from None
    (store / "data").mkdir(mode=0o755, exist_ok=True)
    (store / "data").chmod(0o755)
    record = {"path": str(at), "device": at.parent.stat().st_dev}
    _write_atomically(folder.with_suffix(".json"), json.dumps(record))
    folder.mkdir(mode=0o700, exist_ok=True)
    _hand_over(folder, account)
    if not path.is_symlink():
        path.symlink_to(folder)
    return folder


def _hand_over(folder: Path, account: Account) -> None:
    owner = folder.stat().st_uid
    if owner != account.uid:
        if any(folder.iterdir()):
            raise FolderUnreachable(
                f"{folder} holds data of user {_name_of(owner)}, not of account {account.name}:"
                f" start as that user, or start with another data folder"
            )
        os.chown(folder, account.uid, account.gid)
    folder.chmod(0o700)


def _prune_one(record: Path) -> Path | None:
    folder = record.with_suffix("")
    content = json.loads(record.read_text())
    at = Path(content["path"])
    if at.is_symlink() and at.readlink() == folder:
        return None
    ancestor = at.parent
    while not ancestor.exists():
        ancestor = ancestor.parent
    if ancestor.stat().st_dev != content["device"] or _server_runs_in(folder):
        return None
    shutil.rmtree(folder, ignore_errors=True)
    record.unlink()
    return at


def _server_runs_in(folder: Path) -> bool:
    for pid_file in (folder / "postmaster.pid", *folder.glob("*/postmaster.pid")):
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(pid_file.read_text().splitlines()[0])
            os.kill(pid, 0)
            return True
    return False


def _runs(bin_dir: Path, account: Account) -> bool:
    """Whether the account can run every program, with its libraries, and read the files that initdb reads."""
    install = bin_dir.resolve().parent
    unreadable = any(
        not path.stat().st_mode & 0o004
        for folder in ("lib", "share")
        for path in (install / folder).rglob("*")
        if path.is_file()
    )
    if unreadable:
        return False
    script = 'cd -- "$1" && shift && for program; do "./$program" --version || exit 1; done'
    return _succeeds_as(account, script, str(bin_dir), *POSTGRES_PROGRAMS)


def _install_key(root: Path) -> str:
    with (root / "bin" / "postgres").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _copy_install(root: Path, target: Path) -> None:
    """Copy the installation, and the libraries beside it that a wheel's programs load by a relative path."""
    workshop = Path(tempfile.mkdtemp(prefix=".copying-", dir=target.parent))
    try:
        package = workshop / root.parent.name
        for folder in ("bin", "lib", "share"):
            if (root / folder).is_dir():
                shutil.copytree(root / folder, package / root.name / folder, ignore_dangling_symlinks=True)
        libraries = root.parent.parent / f"{root.parent.name}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, workshop / libraries.name)
        _open_for_reading(workshop)
        workshop.rename(target)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _open_for_reading(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        mode = path.stat().st_mode
        executable = path.is_dir() or bool(mode & 0o100)
        path.chmod(0o755 if executable else 0o644)


def _succeeds_as(account: Account, script: str, *arguments: str) -> bool:
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        timeout=PROBE_TIMEOUT_S,
        check=False,
    )
    return done.returncode == 0


def _write_atomically(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
