"""`python -m infra.supervisor DATA`: supervise a deployment whose plan is settled, without a terminal."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from infra.supervisor.deployment import Wish, run_deployment
from infra.supervisor.errors import DeploymentError
from infra.supervisor.layout import open_layout


def main() -> int:
    """Run until asked to stop; an error is one line on standard error."""
    layout = open_layout(Path(sys.argv[1]))
    try:
        asyncio.run(run_deployment(layout, Wish()))
    except DeploymentError as error:
        print(str(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
