"""Tests the disks of drills on real file systems, where this machine allows them.

Each test runs in a process of its own, because a process cannot leave its mount namespace again.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from infra.drills.disks import Disk

PREPARED = """
import os, subprocess, sys, threading, time
from pathlib import Path
from infra.drills.disks import Disk, ledger_disks
from infra.supervisor.layout import open_layout

root = Path(sys.argv[1])
layout = open_layout(root / "data")
with ledger_disks(layout, ("here", "there"), root / "disks") as there_are:
    if not there_are:
        sys.exit(77)
    disk = Disk(layout.region("here"))
    def write(file=disk.folder / "written"):
        began = time.monotonic()
        with file.open("ab") as opened:
            opened.write(b"x" * 8192)
            opened.flush()
            os.fsync(opened.fileno())
        return time.monotonic() - began
    def until_it_waits(thread):
        stat = Path(f"/proc/self/task/{thread.native_id}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "D":  # uninterruptible sleep
            time.sleep(0.01)
"""
SKIPPED = 77


def run(script: str, folder: Path) -> str:
    indented = "".join(f"    {line}\n" for line in script.strip().splitlines())
    done = subprocess.run(
        [sys.executable, "-c", PREPARED + indented, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == SKIPPED:
        pytest.skip("disks cannot be made here: this needs root, loop devices and ext4")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_rejects_writes_and_other_disks_accept_them(tmp_path: Path) -> None:
    out = run(
        """
disk.fill()
try:
    write()
except OSError as error:
    print(error.strerror)
(disk.folder / "logs" / "log").write_text("x" * 8192)
(layout.region("there") / "written").write_text("x" * 8192)
disk.mend()
write()
print("mended", Disk(layout.region("here")).is_own, Disk(layout.data).is_own)
""",
        tmp_path,
    )
    assert out == "No space left on device\nmended True False\n"


def test_a_stall_delays_each_write_and_a_stall_without_end_blocks_until_the_disk_is_mended(tmp_path: Path) -> None:
    out = run(
        """
write()
disk.stall(200)
slow, waited = [], []
while len(waited) < 8:
    slow.append(write())
    waited += [one for one in slow[-1:] if one > 0.1]
# On a slow machine both sums are larger.
assert sum(waited) > 0.75 * sum(slow), slow
disk.stall(0)
writing = threading.Thread(target=write)
writing.start()
until_it_waits(writing)
write(layout.region("there") / "written")
assert writing.is_alive()
disk.mend()
writing.join(30)
assert not writing.is_alive()
# On a busy machine one write may be slow; on a stalled disk most are.
assert sorted(write() for _ in range(9))[4] < 0.15
print("done")
""",
        tmp_path,
    )
    assert out == "done\n"


def test_a_stall_ends_when_the_process_that_began_it_is_killed(tmp_path: Path) -> None:
    out = run(
        """
child = os.fork()
if child == 0:
    disk.stall(0)
    os.kill(os.getpid(), 9)
os.waitpid(child, 0)
write()
print("done")
""",
        tmp_path,
    )
    assert out == "done\n"


def test_a_folder_that_is_no_mount_is_not_filled_or_stalled(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    assert not disk.is_own
    with pytest.raises(AssertionError):
        disk.fill()
    with pytest.raises(AssertionError):
        disk.stall(0)
    disk.mend()
