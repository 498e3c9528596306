"""What the edge answers itself: problem documents (RFC 9457), like everything behind it.

Decides slug and words for each local reply; the slugs are those of the public API. Refuses to know which
upstream failed: a client can only wait, retry or change its request.
"""

from dataclasses import dataclass
from typing import Any

PROBLEM_TYPES = "https://palaver.dev/problems/"
RETRY_AFTER_S = 1
"""A failover takes two seconds; a client that waits one meets it half-way without a stampede."""

WRITE_METHODS = "^(POST|PUT|PATCH|DELETE)$"

# Envoy's flags (access log, RESPONSE_FLAGS) for a request that may have reached the upstream before it
# failed: connection ended, reset by the other side, timed out.
REACHED_UPSTREAM = ("UC", "UR", "UT")

# Refused for what is under way: by the limits of a cluster, by the overload manager.
OVERLOADED = ("UO", "OM")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalReply:
    """One kind of answer of the edge itself.

    Attributes:
        when: Envoy's status codes that it stands for.
        status: The status that the client gets.
        slug: Last part of the problem type.
        title: The problem in words, the same for each occurrence.
        detail: What the client can do.
        writes: Whether it is for writes only.
        flags: Envoy's response flags of which one must be there; none: whatever they are.
    """

    when: tuple[int, ...]
    status: int
    slug: str
    title: str
    detail: str
    writes: bool = False
    flags: tuple[str, ...] = ()


# The first that fits is taken.
LOCAL_REPLIES = (
    LocalReply(
        when=(503,),
        status=503,
        slug="overloaded",
        title="Too many requests are waiting",
        detail="This region is busy; nothing was done. Send the request again.",
        flags=OVERLOADED,
    ),
    LocalReply(
        when=(502, 503, 504),
        status=503,
        slug="outcome-unknown",
        title="It is not known whether the write took place",
        detail="Send the same request with the same Idempotency-Key again.",
        writes=True,
        flags=REACHED_UPSTREAM,
    ),
    LocalReply(
        when=(502, 503, 504),
        status=503,
        slug="ledger-unavailable",
        title="The ledger cannot be reached",
        # Earlier attempts of a request with a key may have been taken: the last one's failure does not tell.
        detail="No region takes writes at this moment. Send the request again, with the same Idempotency-Key if any.",
        writes=True,
    ),
    LocalReply(
        when=(502, 503, 504),
        status=503,
        slug="view-unavailable",
        title="The view cannot be reached",
        detail="No region answers reads at this moment. Send the request again.",
    ),
    LocalReply(
        when=(404,),
        status=404,
        slug="not-found",
        title="There is nothing at this address",
        detail="The address is not part of the API.",
    ),
    LocalReply(
        when=(408,),
        status=408,
        slug="request-timeout",
        title="The request took too long to arrive",
        detail="Send the request again.",
    ),
    LocalReply(
        when=(413,),
        status=413,
        slug="request-too-large",
        title="The request is too large",
        detail="Send a smaller body.",
    ),
    LocalReply(
        when=(429,),
        status=429,
        slug="too-many-requests",
        title="Too many requests came from this address",
        detail="Send the request again, and fewer of them in a second.",
    ),
    LocalReply(
        when=(431,),
        status=431,
        slug="headers-too-large",
        title="The request headers are too large",
        detail="All headers together may have 60 kB, and be 100 at most.",
    ),
    LocalReply(
        when=(400,),
        status=400,
        slug="malformed-request",
        title="The request is malformed",
        detail="The request is not valid HTTP.",
    ),
)


def local_reply_config() -> dict[str, Any]:
    """Return Envoy's ``LocalReplyConfig``."""
    return {
        "mappers": [_mapper(reply) for reply in LOCAL_REPLIES],
        "body_format": _body(
            LocalReply(
                when=(),
                status=500,
                slug="internal-error",
                title="Something went wrong here",
                detail="The edge refused the request.",
            )
        ),
    }


def _mapper(reply: LocalReply) -> dict[str, Any]:
    filters: list[dict[str, Any]] = [_any([_status_is(status) for status in reply.when])]
    if reply.writes:
        methods = {"name": ":method", "string_match": {"safe_regex": {"regex": WRITE_METHODS}}}
        filters.append({"header_filter": {"header": methods}})
    if reply.flags:
        filters.append({"response_flag_filter": {"flags": list(reply.flags)}})
    mapper: dict[str, Any] = {
        "filter": filters[0] if len(filters) == 1 else {"and_filter": {"filters": filters}},
        "status_code": reply.status,
        "body_format_override": _body(reply),
    }
    if reply.status in {429, 503}:
        header = {"key": "retry-after", "value": str(RETRY_AFTER_S)}
        mapper["headers_to_add"] = [{"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]
    return mapper


def _status_is(status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": f"palaver.edge.status_{status}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _any(filters: list[dict[str, Any]]) -> dict[str, Any]:
    return filters[0] if len(filters) == 1 else {"or_filter": {"filters": filters}}


def _body(reply: LocalReply) -> dict[str, Any]:
    return {
        "content_type": "application/problem+json",
        "json_format": {
            "type": PROBLEM_TYPES + reply.slug,
            "title": reply.title,
            "status": "%RESPONSE_CODE%",
            "detail": reply.detail,
            "instance": "%PATH(NQ)%",
            "request_id": "%REQ(X-REQUEST-ID)%",
        },
    }
