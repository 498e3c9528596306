"""Loads a deployment with the readers and writers of a website, in locust. Uses HTTP only; imports nothing of Palaver.

Run (in an environment of its own, see `requirements/load.txt`):

    PALAVER_SITE=<site id> locust -f loadtests/locustfile.py --host http://127.0.0.1:<edge port>
"""

import os
import random
import uuid

from locust import FastHttpUser, between, task

SITE = os.environ["PALAVER_SITE"]
THREADS = int(os.environ.get("PALAVER_THREADS", "50"))
READS_PER_WRITE = 20  # pages are read far more often than comments are written


class Visitor(FastHttpUser):
    """Reads pages of threads, and sometimes posts a comment."""

    wait_time = between(0.5, 2.0)

    @task(READS_PER_WRITE)
    def read(self) -> None:
        """Open a page of a thread."""
        thread = f"load-{random.randrange(THREADS)}"
        self.client.get(f"/v1/sites/{SITE}/comments?thread={thread}", name="GET thread page")

    @task(1)
    def write(self) -> None:
        """Post a comment with an Idempotency-Key, as the bundled clients do."""
        self.client.post(
            f"/v1/sites/{SITE}/comments",
            json={"thread": f"load-{random.randrange(THREADS)}", "body": "A comment *under load*."},
            headers={"Idempotency-Key": uuid.uuid4().hex},
            name="POST comment",
        )
