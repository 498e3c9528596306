"""Generates the OpenAPI 3.1 document of the public API from the operations and the models.

There is one document for both processes, because clients see one API at the edge.
"""

from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from regions.version import VERSION
from services.api.models import ProblemShape
from services.api.operations import EXAMPLE_SITE, OPERATIONS, Operation, Parameter
from services.api.problems import CATALOGUE, TYPE_PREFIX

_REF: Final = "#/components/schemas/{model}"

EVERYWHERE: Final = (
    "malformed-request",
    "request-timeout",
    "too-many-requests",
    "request-too-large",
    "headers-too-large",
    "overloaded",
    "internal-error",
    "not-implemented",
)
"""Problems of every operation: from the edge, from the limits of a process, or from an unexpected error."""

ELSEWHERE: Final = ("not-found", "method-not-allowed")
"""Problems of an address or a method that no operation has."""

EDGE_READ_PROBLEMS: Final = ("view-unavailable",)
EDGE_LEADER_PROBLEMS: Final = ("ledger-unavailable",)
EDGE_WRITE_PROBLEMS: Final = ("ledger-unavailable", "outcome-unknown")
"""Problems that the edge returns if no process answers."""

HEADERS: Final = {
    "Allow": "Methods that the address takes.",
    "ETag": "Version of the answer, for If-None-Match and If-Match.",
    "Link": 'The next page, rel="next" (RFC 8288).',
    "Location": "Address of what was created.",
    "Palaver-Consistency": "`<served>; asked=<level>; staleness-ms=<n>`",
    "Palaver-Position": "Position of this answer; send it with a read to see at least this.",
    "Retry-After": "Seconds until it is worth to try again.",
    "WWW-Authenticate": "The scheme of the credentials.",
    "X-Request-Id": "The request's own, or one that was made for it.",
    "traceparent": "The trace of the request (W3C Trace Context); answers of the edge have none.",
}

HEADERS_WITH_404: Final = ("Palaver-Position", "Palaver-Consistency")
"""Headers that a read has with a 404 as well: a view that is behind may not have the comment yet. Other problems of a
read may have them."""

OF_STATUS: Final = {401: ("WWW-Authenticate",), 405: ("Allow",), 429: ("Retry-After",), 503: ("Retry-After",)}
"""Headers that each problem with a status has."""

UNREAD: Final = frozenset({400, 408, 431, 501})
"""The edge may answer with these before it has parsed the request, so they may lack a request id."""

WHERE_KNOWN: Final = frozenset({"Link", "traceparent"})
"""Headers that an answer may lack."""


@cache
def openapi_bytes() -> bytes:
    """Return the document as JSON."""
    return orjson.dumps(openapi_document())


def openapi_document() -> dict[str, Any]:
    """Return the document."""
    models = {model for o in OPERATIONS for model in (o.request, o.answer) if model is not None}
    shapes = sorted(models | {ProblemShape}, key=lambda shape: shape.__name__)
    refs, definitions = models_json_schema([(shape, "validation") for shape in shapes], ref_template=_REF)
    names = {shape: str(refs[shape, "validation"]["$ref"]) for shape in shapes}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.template, {})[operation.method.lower()] = _operation(operation, names)
    for template, methods in paths.items():
        methods["options"] = _operation(_options(template), names)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Palaver",
            "version": VERSION,
            "description": "Comments for websites. Every error is a problem document (RFC 9457). HEAD is answered"
            " wherever GET is. An address or a method that is not here is answered as components.responses says.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "responses": _problem_responses(
                (*ELSEWHERE, *EVERYWHERE, *EDGE_READ_PROBLEMS, *EDGE_WRITE_PROBLEMS), names
            ),
            "securitySchemes": {
                "admin": {"type": "http", "scheme": "bearer", "description": "The deployment's admin key."},
                "site": {"type": "http", "scheme": "bearer", "description": "The site's API key."},
            },
        },
    }


def _options(template: str) -> Operation:
    asked = next(one for one in OPERATIONS if one.template == template)
    return Operation(
        method="OPTIONS",
        template=template,
        name=f"optionsOf{asked.name[0].upper()}{asked.name[1:]}",
        summary="Which methods the address takes; also the preflight of a browser",
        status=204,
        answer_headers=("Allow",),
    )


def _operation(operation: Operation, names: dict[type[BaseModel], str]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [*_path_parameters(operation.template), *map(_parameter, operation.parameters)],
        "responses": _responses(operation, names),
        "security": [{operation.security: []}] if operation.security else [],
    }
    if operation.description:
        document["description"] = operation.description
    if operation.request is not None:
        document["requestBody"] = {
            "required": True,
            "content": _content("application/json", names[operation.request], operation.request_example),
        }
    return document


def _path_parameters(template: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "format": "uuid"},
            "example": EXAMPLE_SITE,
        }
        for name in ("site", "comment")
        if f"{{{name}}}" in template
    ]


def _parameter(parameter: Parameter) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.required,
        "description": parameter.description,
        "schema": parameter.schema,
    }
    if parameter.name == "thread":
        document["example"] = "https://example.com/posts/hello"
    return document


def _responses(operation: Operation, names: dict[type[BaseModel], str]) -> dict[str, Any]:
    success: dict[str, Any] = {
        "description": "Done.",
        "headers": _identity(operation.status) | _headers(operation.answer_headers),
    }
    if operation.answer is not None:
        success["content"] = _content(operation.media_type, names[operation.answer], operation.answer_example)
    elif operation.status != HTTPStatus.NO_CONTENT:
        kind = "object" if operation.media_type == "application/json" else "string"
        success["content"] = {operation.media_type: {"schema": {"type": kind}}}
    responses = {str(operation.status): success}
    if "ETag" in operation.answer_headers and operation.method == "GET":
        responses["304"] = {"description": "Not modified.", "headers": success["headers"]}
    return responses | _problem_responses(
        (*operation.problems, *_edge_problems(operation), *EVERYWHERE), names, _said_with_nothing(operation)
    )


def _edge_problems(operation: Operation) -> tuple[str, ...]:
    if operation.at_leader:
        return EDGE_LEADER_PROBLEMS
    reads = operation.in_region or operation.method in {"GET", "OPTIONS"}
    return EDGE_READ_PROBLEMS if reads else EDGE_WRITE_PROBLEMS


def _said_with_nothing(operation: Operation) -> tuple[str, ...]:
    if operation.method != "GET":
        return ()
    return tuple(name for name in HEADERS_WITH_404 if name in operation.answer_headers)


def _problem_responses(
    slugs: Iterable[str], names: dict[type[BaseModel], str], said_with_nothing: tuple[str, ...] = ()
) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for slug in dict.fromkeys(slugs):
        by_status.setdefault(CATALOGUE[slug][0], []).append(slug)
    return {
        str(status): {
            "description": "; ".join(CATALOGUE[slug][1] for slug in of_status) + ".",
            "headers": _identity(status)
            | _headers(OF_STATUS.get(status, ()))
            | _headers(said_with_nothing, required=status == HTTPStatus.NOT_FOUND),
            "content": {
                "application/problem+json": {
                    "schema": {"$ref": names[ProblemShape]},
                    "examples": {slug: {"value": _problem_example(slug)} for slug in of_status},
                }
            },
        }
        for status, of_status in sorted(by_status.items())
    }


def _identity(status: int) -> dict[str, Any]:
    return _headers(("X-Request-Id",), required=status not in UNREAD) | _headers(("traceparent",))


def _headers(names: Iterable[str], *, required: bool = True) -> dict[str, Any]:
    return {
        name: {
            "description": HEADERS[name],
            "required": required and name not in WHERE_KNOWN,
            "schema": {"type": "string"},
        }
        for name in names
    }


def _content(media_type: str, ref: str, example: object) -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": ref}, "example": example}}


def _problem_example(slug: str) -> dict[str, Any]:
    status, title = CATALOGUE[slug]
    return {
        "type": TYPE_PREFIX + slug,
        "title": title,
        "status": status,
        "detail": title + ".",
        "instance": f"/v1/sites/{EXAMPLE_SITE}/comments",
        "request_id": "5f2b8f0c2f4e4a0f8d5b6c7a8e9f0a1b",
    }
