"""`python -m infra.supervisor DATA`: supervise a deployment that has a plan, without a terminal."""

from __future__ import annotations

import asyncio
import sys
import traceback
from pathlib import Path

from infra.supervisor.deployment import DeploymentOptions, run_deployment
from infra.supervisor.errors import DeploymentError
from infra.supervisor.layout import open_layout


def main() -> int:
    """Run until asked to stop; `palaver up --detach` shows the last line on standard error."""
    try:
        asyncio.run(run_deployment(open_layout(Path(sys.argv[1])), DeploymentOptions()))
    except DeploymentError as error:
        print(str(error), file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - the last place where a failure can be reported
        traceback.print_exc()
        print(f"the supervisor failed: {type(error).__name__}; see its log", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
