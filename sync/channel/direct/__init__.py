"""The direct channel: the leader's region streams changes to each region over HTTP.

`server` and `client` are its two halves; they share the protocol only. One request is one stream of JSON lines
(`sync.change`). Acknowledgements are separate requests, because HTTP/1.1 clients and proxies do not read a response
while they still send.
"""

from typing import Final, Protocol

from regions.coordination import Leadership

CHANGES_PATH: Final = "/v1/changes"
ACK_PATH: Final = "/v1/changes/ack"
COMPARISONS_PATH: Final = "/v1/comparisons"

SNAPSHOT_HEADER: Final = "palaver-snapshot"
"""Response header of a stream that is a snapshot: the reason why the changes are no longer available."""


class LeadershipSource(Protocol):
    """The part of `regions.coordination.LeadershipView` that both halves need."""

    current: Leadership | None

    async def next_after(self, known: Leadership | None) -> Leadership:
        """Wait until the latest leadership differs from ``known``, and return it."""
        ...


async def wait_for_new_leadership(leaders: LeadershipSource, leadership: Leadership) -> None:
    """Return when another epoch, leader or phase is in force. Streams ignore the other fields of a record."""
    current = leadership
    while (current.epoch, current.leader, current.phase) == (leadership.epoch, leadership.leader, leadership.phase):
        current = await leaders.next_after(current)
