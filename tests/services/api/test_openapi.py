import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from services.api.openapi import openapi_document
from services.api.operations import OPERATIONS, allowed_methods
from services.api.problems import CATALOGUE


def test_the_document_is_valid_openapi() -> None:
    document: Any = openapi_document()
    validate(document)
    assert document["openapi"] == "3.1.0"


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
def test_the_allow_header_knows_every_operation(operation: Any) -> None:
    path = re.sub(r"\{[a-z]+\}", "x", operation.template)
    assert operation.method in allowed_methods(path)
