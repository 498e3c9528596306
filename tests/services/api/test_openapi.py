"""Tests the OpenAPI document against the code that parses requests, the catalogue of problems, and the edge."""

import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from regions.edge import replies
from regions.identity import CellId
from services.api.consistency import parse_consistency
from services.api.cors import EXPOSED_HEADERS
from services.api.openapi import openapi_document
from services.api.operations import OPERATIONS, allowed_methods
from services.api.problems import CATALOGUE, Problem
from services.api.requests import parse_idempotency_key, parse_if_match


def test_the_document_is_valid_openapi() -> None:
    document: Any = openapi_document()
    validate(document)
    assert document["openapi"] == "3.1.0"


TOKEN = "main.1.00000000016B3748"
TEXTS = {
    "Idempotency-Key": ["k", "!~", "x" * 255, "x" * 256, "a b", "\x7f", "é", ""],
    "If-Match": ["*", '"1"', '"3-2-1"', 'W/"1"', '"1", "2"', ""],
    "Palaver-Position": [TOKEN, TOKEN.lower(), TOKEN + "0", "main.01.00000000016B3748", "x", ""],
    "Palaver-Consistency": ["eventual", "strong", "bounded=0.5", "bounded=", "bounded=1.2345", "BOUNDED=1", "x", ""],
}


def _is_taken(name: str, text: str) -> bool:
    value = text.encode()
    try:
        match name:
            case "Idempotency-Key":
                parse_idempotency_key(value)
            case "If-Match":
                parse_if_match(value)
            case "Palaver-Position":
                parse_consistency(None, value, CellId("main"))
            case _:
                parse_consistency(value, None, CellId("main"))
    except Problem:
        return False
    return True


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in TEXTS.items() for text in texts])
def test_a_header_is_accepted_exactly_if_it_fits_its_schema_except_an_empty_if_match(name: str, text: str) -> None:
    schemas = [
        parameter["schema"]
        for methods in openapi_document()["paths"].values()
        for operation in methods.values()
        for parameter in operation["parameters"]
        if parameter["name"] == name
    ]
    assert schemas
    validator: Any = Draft202012Validator(schemas[0])
    # An empty If-Match has no tag. It is accepted and matches no version, although it does not fit the schema.
    assert validator.is_valid(text) == (_is_taken(name, text) and (name, text) != ("If-Match", ""))


def test_every_example_fits_its_schema() -> None:
    document = openapi_document()
    checked = 0
    for content in _contents(document["paths"]):
        schema = {**content["schema"], "components": document["components"]}
        examples = [content["example"]] if "example" in content else []
        examples += [example["value"] for example in content.get("examples", {}).values()]
        validator: Any = Draft202012Validator(schema)
        for example in examples:
            validator.validate(example)
            checked += 1
    assert checked > 50


def _contents(node: Any) -> Any:
    if isinstance(node, dict):
        if "schema" in node and ("example" in node or "examples" in node) and "in" not in node:
            yield node
        for value in node.values():  # pyright: ignore[reportUnknownVariableType] - a JSON document
            yield from _contents(value)
    elif isinstance(node, list):
        for value in node:  # pyright: ignore[reportUnknownVariableType] - a JSON document
            yield from _contents(value)


def test_every_problem_of_the_catalogue_is_documented_somewhere() -> None:
    text = str(openapi_document())
    assert [slug for slug in CATALOGUE if f"'{slug}'" not in text] == []


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_allow_header_lists_every_operation(operation: Any) -> None:
    path = re.sub(r"\{[a-z]+\}", "x", operation.template)
    assert operation.method in allowed_methods(path)


def test_no_object_of_an_answer_may_have_fields_that_are_not_documented() -> None:
    document = openapi_document()
    requests = {
        operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for methods in document["paths"].values()
        for operation in methods.values()
        if "requestBody" in operation
    }
    schemas = {name: schema for name, schema in document["components"]["schemas"].items() if name not in requests}
    assert len(schemas) > 10
    assert [name for name, schema in schemas.items() if schema.get("additionalProperties") is not False] == []


def test_the_problems_of_the_edge_match_the_catalogue() -> None:
    used = {(reply.slug, reply.status, reply.title) for reply in (*replies.LOCAL_REPLIES, replies.ANY_OTHER)}
    assert used == {(slug, *CATALOGUE[slug]) for slug, _, _ in used}
    assert replies.CORS_HEADERS["access-control-expose-headers"].encode() == EXPOSED_HEADERS
