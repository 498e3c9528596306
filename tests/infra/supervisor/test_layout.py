import os
import stat
from pathlib import Path

import pytest

from infra.supervisor.errors import DataFolderUnusable, PlanMismatch
from infra.supervisor.layout import UNIX_SOCKET_PATH_MAX, create_folders, open_layout
from infra.supervisor.secrets import load_or_create_secrets


def test_the_admin_socket_path_fits_for_any_data_folder(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-rather-long-folder-name"] * 6)
    for region in ("us-east", "eu-west"):
        assert len(os.fsencode(open_layout(deep).unix_socket(region, "write_api"))) <= UNIX_SOCKET_PATH_MAX
    assert open_layout(deep).unix_socket("us-east", "admin") != open_layout(deep).unix_socket("eu-west", "admin")


def test_a_folder_that_cannot_be_created_is_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderUnusable, match="choose another with --data"):
        create_folders(open_layout(tmp_path / "file" / "data"), ("us-east",))


def test_secrets_are_made_once_and_readable_by_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    made = load_or_create_secrets(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_secrets(path) == made


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"etcd": "x"}', b"7"])
def test_secrets_of_another_version_are_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secrets.json"
    path.write_bytes(content)
    with pytest.raises(PlanMismatch):
        load_or_create_secrets(path)
    assert path.read_bytes() == content
