"""`python -m infra.relay --config FILE`: runs the network between regions until SIGTERM or SIGINT.

The token of the control API is PALAVER_RELAY_TOKEN, or `token` in the file. Exit status 2: the configuration is
invalid; 1: the relay cannot listen on an address. Both print one line on standard error.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop

from infra.relay.control import control_app
from infra.relay.links import ConfigInvalid, RelayConfig, parse_config
from infra.relay.logs import configure_logging
from infra.relay.network import ListenFailed, Network
from regions.embedded_server import EmbeddedServer

_LOGGER = logging.getLogger(__name__)

TOKEN_VARIABLE = "PALAVER_RELAY_TOKEN"  # noqa: S105 - the name of a variable

# The control API has no long requests, so a shutdown does not wait for a client that keeps one open.
SHUTDOWN_TIMEOUT_S = 1


def main(arguments: list[str]) -> int:
    """Run the relay; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m infra.relay", description="The network between regions.")
    parser.add_argument("--config", required=True, type=Path, help="a JSON file; see infra/relay/links.py")
    options = parser.parse_args(arguments)
    try:
        config = parse_config(options.config.read_text(), token=os.environ.get(TOKEN_VARIABLE))
    except (ConfigInvalid, OSError, UnicodeDecodeError) as error:
        print(f"relay: {options.config}: {error}", file=sys.stderr)
        return 2
    configure_logging()
    _allow_many_sockets()
    try:
        uvloop.run(_serve(config))
    except ListenFailed as error:
        print(f"relay: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(config: RelayConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with _listen(config) as sock:
        async with Network(config) as network:
            settings = uvicorn.Config(
                control_app(network, config.token),
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
            )
            server = EmbeddedServer(settings)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(server.serve(sockets=[sock]))
                _LOGGER.info("the network is up", extra={"links": len(config.links)})
                await stop.wait()
                server.should_exit = True
    _LOGGER.info("the network is down")


def _listen(config: RelayConfig) -> socket.socket:
    """Bind the control address; if uvicorn did it, a failure would end the process with uvicorn's exit status."""
    address = config.control
    try:
        return socket.create_server((address.host, address.port))
    except OSError as error:
        raise ListenFailed(f"cannot listen on {address}: {error.strerror}") from error


def _allow_many_sockets() -> None:
    """Raise the limit of open files to the hard limit, because each connection needs two file descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
