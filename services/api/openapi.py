"""The OpenAPI 3.1 document of the whole public API, made of the operations and the models.

One document for both processes, because clients see one API at the edge.
"""

from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from services.api.models import ProblemShape
from services.api.operations import EXAMPLE_SITE, OPERATIONS, Operation, Parameter
from services.api.problems import CATALOGUE, TYPE_PREFIX

API_VERSION: Final = "1.0.0"
_REF: Final = "#/components/schemas/{model}"

# Any operation can be answered with these: by the router, the limits, or a fault.
EVERYWHERE: Final = (
    "not-found",
    "method-not-allowed",
    "request-timeout",
    "too-many-requests",
    "headers-too-large",
    "overloaded",
    "internal-error",
)

HEADERS: Final = {
    "ETag": "Version of the answer, for If-None-Match and If-Match.",
    "Link": 'The next page, rel="next" (RFC 8288).',
    "Location": "Address of what was created.",
    "Palaver-Consistency": "`<served>; asked=<level>; staleness-ms=<n>`",
    "Palaver-Position": "Position of this answer; send it with a read to see at least this.",
}

SAID_WITH_NOTHING: Final = ("Palaver-Position", "Palaver-Consistency")
"""What a read says when it finds nothing, too: an old view may not have it yet."""


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
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Palaver",
            "version": API_VERSION,
            "description": "Comments for websites. Every error is a problem document (RFC 9457).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {
                "admin": {"type": "http", "scheme": "bearer", "description": "The deployment's admin key."},
                "site": {"type": "http", "scheme": "bearer", "description": "The site's API key."},
            },
        },
    }


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
    success: dict[str, Any] = {"description": "Done."}
    if operation.answer is not None:
        success["content"] = _content(operation.media_type, names[operation.answer], operation.answer_example)
    elif operation.status != 204:  # noqa: PLR2004 - the status without content
        success["content"] = {operation.media_type: {}}
    if operation.answer_headers:
        success["headers"] = _headers(operation.answer_headers)
    responses = {str(operation.status): success}
    if "ETag" in operation.answer_headers and operation.method == "GET":
        responses["304"] = {"description": "Not modified."}
    by_status: dict[int, list[str]] = {}
    for slug in dict.fromkeys((*operation.problems, *EVERYWHERE)):
        by_status.setdefault(CATALOGUE[slug][0], []).append(slug)
    for status, slugs in sorted(by_status.items()):
        responses[str(status)] = {
            "description": "; ".join(CATALOGUE[slug][1] for slug in slugs) + ".",
            "content": {
                "application/problem+json": {
                    "schema": {"$ref": names[ProblemShape]},
                    "examples": {slug: {"value": _problem_example(slug)} for slug in slugs},
                }
            },
        }
        said = [name for name in SAID_WITH_NOTHING if name in operation.answer_headers]
        if status == HTTPStatus.NOT_FOUND and operation.method == "GET" and said:
            responses[str(status)]["headers"] = _headers(said)
    return responses


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"description": HEADERS[name], "schema": {"type": "string"}} for name in names}


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
