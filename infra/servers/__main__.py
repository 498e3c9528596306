"""`python -m infra.servers prepare`: builds etcd, because no wheel has a current version."""

import sys
from collections.abc import Sequence
from functools import partial

from infra.servers import etcd_build
from infra.servers.resolver import ServerMissing, resolve

USAGE = "usage: python -m infra.servers prepare"


def prepare(*, search_path: Sequence[str] | None = None) -> int:
    """Build etcd unless PATH or an earlier build has it; return the exit status.

    A failed build is a warning, not an error, if the wheel with the older etcd is installed.
    """
    report = partial(print, "servers:", flush=True)
    try:
        chosen = resolve("etcd", search_path=search_path)
    except ServerMissing:
        chosen = None
    if chosen is not None and chosen.source in ("path", "build"):
        report(f"etcd {chosen.version} is there ({chosen.why})")
        return 0
    try:
        folder = etcd_build.build(report)
    except etcd_build.BuildFailed as failure:
        print(f"servers: etcd could not be built: {failure}", file=sys.stderr)
        return _settle_for_the_wheel(search_path)
    report(f"etcd was built into {folder}")
    return 0


def _settle_for_the_wheel(search_path: Sequence[str] | None) -> int:
    try:
        stand_in = resolve("etcd", search_path=search_path)
    except ServerMissing as missing:
        print(f"servers: {missing}", file=sys.stderr)
        return 1
    print(f"servers: warning: {stand_in.warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    if sys.argv[1:] != ["prepare"]:
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    sys.exit(prepare())
