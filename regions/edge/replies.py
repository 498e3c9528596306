"""Generates Envoy's local replies: problem documents (RFC 9457), as the APIs answer them.

Decides the slug and text of each local reply; slugs, titles and statuses are those of the public API. CORS allows every
origin to read them: they contain no data of a site, the edge does not know the origins of a site, and a page must learn
when to retry (ADR 0037). Does not state which upstream failed: a client can only wait, retry or change its request.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

PROBLEM_TYPES = "https://palaver.dev/problems/"
RETRY_AFTER_S = 1
"""A failover takes two seconds; with a pause of one second a client retries soon, and clients do not all retry at
once."""

WRITE_METHODS = "^(POST|PUT|PATCH|DELETE)$"
READ_METHODS = "^(GET|HEAD)$"
METHODS = "^(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS)$"
"""Methods that some resource supports or may support; the edge answers 501 to any other (RFC 9110, section 9.1)."""

SITE_PATH = "/v1/sites(?:/[^/?]+)?"
"""The list of sites and a single site. The leader answers their reads too, because only the ledger has their keys."""

PREVIEW_PATH = "/v1/sites/[^/?]+/preview"
"""Path of previews, which are sent by POST and answered by the own region's read API."""

CORS_HEADERS = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "allow, etag, link, location, palaver-consistency, palaver-position, retry-after,"
    " traceparent, x-request-id",
}

# Envoy's flags (access log, RESPONSE_FLAGS) of a request that may have reached the upstream before it failed:
# connection termination, reset by the upstream, timeout.
REACHED_UPSTREAM = ("UC", "UR", "UT")

# Refused because of load: by the circuit breaker of a cluster, or by the overload manager.
OVERLOADED = ("UO", "OM")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalReply:
    """One kind of local reply of the edge.

    Attributes:
        when: Envoy's status codes that it replaces.
        status: The status that the client gets.
        slug: Last part of the problem type.
        title: The problem in words, the same for each occurrence.
        detail: What the client can do.
        methods: Regular expression of the methods to which it is limited; None: all.
        path: Regular expression of the paths to which it is limited; None: all.
        no_such_method: Whether it is limited to unknown methods.
        flags: Envoy's response flags, one of which must be set; empty: any flags.
    """

    when: tuple[int, ...]
    status: int
    slug: str
    title: str
    detail: str
    methods: str | None = None
    path: str | None = None
    no_such_method: bool = False
    flags: tuple[str, ...] = ()


class Problem(TypedDict):
    """A problem type, which several local replies may share."""

    status: int
    slug: str
    title: str


BUSY = Problem(status=503, slug="overloaded", title="Too many requests are waiting")
VIEW_UNAVAILABLE = Problem(status=503, slug="view-unavailable", title="The view cannot be reached")
LEDGER_UNAVAILABLE = Problem(status=503, slug="ledger-unavailable", title="The ledger cannot be reached")
OUTCOME_UNKNOWN = Problem(status=503, slug="outcome-unknown", title="The outcome of the write is unknown")
NOT_IMPLEMENTED = Problem(status=501, slug="not-implemented", title="The method or encoding is not implemented")
METHODS_AND_ENCODINGS = (
    "The methods are GET, HEAD, POST, PUT, PATCH, DELETE and OPTIONS; the one transfer coding is chunked."
)

# The first match wins.
LOCAL_REPLIES = (
    LocalReply(
        when=(503,),
        **BUSY,
        # An overflow does not exclude that an earlier attempt of the same request was accepted.
        detail="This region is busy. Send the request again, with the same Idempotency-Key if it had one.",
        methods="^POST$",
        flags=OVERLOADED,
    ),
    LocalReply(
        when=(503,),
        **BUSY,
        detail="This region is busy. Send the request again.",
        flags=OVERLOADED,
    ),
    LocalReply(
        when=(502, 503, 504),
        **VIEW_UNAVAILABLE,
        detail="No region answers previews at this moment. Send the request again.",
        methods="^POST$",
        path=PREVIEW_PATH,
    ),
    LocalReply(
        when=(502, 503, 504),
        **OUTCOME_UNKNOWN,
        detail="Send the request again with the same Idempotency-Key. Without one it may be done twice.",
        methods="^POST$",
        flags=REACHED_UPSTREAM,
    ),
    LocalReply(
        when=(502, 503, 504),
        **OUTCOME_UNKNOWN,
        detail="Send the request again with the same ETag in If-Match: if it was done already, that is answered as a"
        " success. With * a repetition may overwrite the edit of somebody else.",
        methods="^PATCH$",
        flags=REACHED_UPSTREAM,
    ),
    LocalReply(
        when=(502, 503, 504),
        **OUTCOME_UNKNOWN,
        detail="Send the request again: done twice it is as good as once.",
        methods="^(PUT|DELETE)$",
        flags=REACHED_UPSTREAM,
    ),
    LocalReply(
        when=(502, 503, 504),
        **LEDGER_UNAVAILABLE,
        # An earlier attempt of a request with a key may have been accepted: the last attempt's failure does not show
        # that.
        detail="No region takes writes at this moment. Send the request again, with the same Idempotency-Key if it had"
        " one.",
        methods="^POST$",
    ),
    LocalReply(
        when=(502, 503, 504),
        **LEDGER_UNAVAILABLE,
        detail="No region takes writes at this moment. Send the request again.",
        methods="^(PUT|PATCH|DELETE)$",
    ),
    LocalReply(
        when=(502, 503, 504),
        **LEDGER_UNAVAILABLE,
        detail="No region leads at this moment. Send the request again.",
        methods=READ_METHODS,
        path=SITE_PATH,
    ),
    LocalReply(
        when=(502, 503, 504),
        **VIEW_UNAVAILABLE,
        detail="No region answers reads at this moment. Send the request again.",
    ),
    LocalReply(
        when=(404,),
        status=404,
        slug="not-found",
        title="No resource is at this address",
        detail="The address is not part of the API.",
    ),
    LocalReply(
        when=(408,),
        status=408,
        slug="request-timeout",
        title="The request did not arrive in time",
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
        # Envoy refuses a QUERY without a content type with 400; no QUERY reaches an API anyway.
        when=(400,),
        no_such_method=True,
        detail=METHODS_AND_ENCODINGS,
        **NOT_IMPLEMENTED,
    ),
    LocalReply(
        when=(400,),
        status=400,
        slug="malformed-request",
        title="The request is malformed",
        detail="The request is not valid HTTP.",
    ),
    LocalReply(when=(501,), detail=METHODS_AND_ENCODINGS, **NOT_IMPLEMENTED),
)

ANY_OTHER = LocalReply(
    when=(),
    status=500,
    slug="internal-error",
    title="Internal error",
    detail="The edge refused the request.",
)


def local_reply_config() -> dict[str, Any]:
    """Return Envoy's ``LocalReplyConfig``."""
    return {
        "mappers": [*(_mapper(reply, _filter(reply)) for reply in LOCAL_REPLIES), _mapper(ANY_OTHER, _is_error())],
        "body_format": _body(ANY_OTHER),
    }


def _mapper(reply: LocalReply, condition: dict[str, Any]) -> dict[str, Any]:
    headers = dict(CORS_HEADERS)
    if reply.status in {429, 503}:
        headers["retry-after"] = str(RETRY_AFTER_S)
    return {
        "filter": condition,
        "status_code": reply.status,
        "body_format_override": _body(reply),
        "headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in headers.items()
        ],
    }


def _filter(reply: LocalReply) -> dict[str, Any]:
    filters: list[dict[str, Any]] = [_any([_status_is(status) for status in reply.when])]
    if reply.methods is not None:
        filters.append(_header_matches(":method", reply.methods))
    if reply.path is not None:
        filters.append(_header_matches(":path", rf"{reply.path}(\?.*)?"))
    if reply.no_such_method:
        filters.append(_header_matches(":method", METHODS, invert=True))
    if reply.flags:
        filters.append({"response_flag_filter": {"flags": list(reply.flags)}})
    return filters[0] if len(filters) == 1 else {"and_filter": {"filters": filters}}


def _header_matches(name: str, regex: str, *, invert: bool = False) -> dict[str, Any]:
    header = {"name": name, "string_match": {"safe_regex": {"regex": regex}}, "invert_match": invert}
    return {"header_filter": {"header": header}}


def _is_error() -> dict[str, Any]:
    value = {"default_value": 400, "runtime_key": "palaver.edge.status_of_errors"}
    return {"status_code_filter": {"comparison": {"op": "GE", "value": value}}}


def _status_is(status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": f"palaver.edge.status_{status}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _any(filters: list[dict[str, Any]]) -> dict[str, Any]:
    return filters[0] if len(filters) == 1 else {"or_filter": {"filters": filters}}


def _body(reply: LocalReply) -> dict[str, Any]:
    return {
        "content_type": "application/problem+json",
        # The path and the request id are missing if Envoy could not parse the request.
        "omit_empty_values": True,
        "json_format": {
            "type": PROBLEM_TYPES + reply.slug,
            "title": reply.title,
            "status": "%RESPONSE_CODE%",
            "detail": reply.detail,
            "instance": "%PATH(NQ)%",
            "request_id": "%REQ(X-REQUEST-ID)%",
        },
    }
