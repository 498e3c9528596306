"""Readers and writers as a website has them, for locust. Speaks HTTP only and imports nothing of the product.

Run (in an environment of its own, see `requirements/load.txt`):

    PALAVER_SITE=<site id> locust -f loadtests/locustfile.py --host http://127.0.0.1:<edge port>
"""

import os
import random
import uuid

from locust import FastHttpUser, between, task

SITE = os.environ["PALAVER_SITE"]
THREADS = int(os.environ.get("PALAVER_THREADS", "50"))
READS_PER_WRITE = 20  # comment pages are read far more often than written


class Visitor(FastHttpUser):
    """Reads pages of threads, sometimes answers."""

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
