"""Tests the parsers of headers, queries and bodies."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from regions.identity import CellId
from regions.position import Position
from services.api.consistency import parse_consistency
from services.api.cors import site_of
from services.api.identifiers import parse_uuid
from services.api.models import NEW_COMMENT, NEW_SITE
from services.api.problems import Problem
from services.api.requests import (
    NO_VERSION,
    QUERY_BYTES_MAX,
    parse_bearer,
    parse_count,
    parse_idempotency_key,
    parse_if_match,
    parse_json,
    parse_query,
    require_json,
)

CELL = CellId("main")


@pytest.mark.parametrize(
    "value", [b"application/json", b"Application/JSON; charset=UTF-8", b'application/json;charset="utf-8"']
)
def test_json_media_types_are_accepted(value: bytes) -> None:
    require_json(value)


@pytest.mark.parametrize("value", [None, b"", b"text/json", b"application/json; charset=latin-1", b"application/jsonx"])
def test_other_media_types_are_refused(value: bytes | None) -> None:
    with pytest.raises(Problem, match="unsupported-media-type"):
        require_json(value)


def test_an_idempotency_key_is_visible_ascii_of_bounded_length() -> None:
    assert parse_idempotency_key(None) is None
    assert parse_idempotency_key(b"!" * 255) == "!" * 255
    for bad in (b"", b" ", b"a b", b"\x7f", b"\xc3\xa9", b"x" * 256, b"a\n"):
        with pytest.raises(Problem, match="Idempotency-Key"):
            parse_idempotency_key(bad)


def test_an_if_match_header_names_a_version() -> None:
    assert parse_if_match(b'"3-2-1"') == 3
    assert parse_if_match(b' "12" ') == 12
    assert parse_if_match(b"*") is None
    for never in (b"3", b'W/"3-0-0"', b'"x"', b""):
        assert parse_if_match(never) == NO_VERSION
    with pytest.raises(Problem, match="If-Match"):
        parse_if_match(b'"3-2-1", "4"')


def test_a_bearer_token_is_read_in_any_case_of_its_scheme() -> None:
    assert parse_bearer(b"bearer  k ") == b"k"
    for bad in (None, b"", b"Bearer", b"Bearer ", b"Basic abc"):
        with pytest.raises(Problem, match="unauthorized"):
            parse_bearer(bad)


@pytest.mark.parametrize("text", ["0", "11", "-1", "+1", "1.0", "", " 1", "\u0661", "1" * 20])
def test_a_count_is_a_plain_number_in_range(text: str) -> None:
    assert parse_count("limit", "10", default=5, maximum=10) == 10
    assert parse_count("limit", None, default=5, maximum=10) == 5
    with pytest.raises(Problem, match="limit"):
        parse_count("limit", text, default=5, maximum=10)


def test_consistency_levels_are_read() -> None:
    token = b"main.3.0000000000000010"
    assert parse_consistency(None, None, CELL).level == "eventual"
    assert parse_consistency(None, token, CELL).position == Position(3, 16)
    assert parse_consistency(b"bounded=1.5", None, CELL).staleness_ms_max == 1500
    assert parse_consistency(b"strong", token, CELL).level == "strong"


@pytest.mark.parametrize(
    "text", ["", "x" * 36, "{01990d5e-3a00-7c62-9d2b-5a2a6f0c1e1}", "01990d5e3a007c629d2b5a2a6f0c1e11"]
)
def test_only_the_canonical_text_form_of_a_uuid_is_parsed(text: str) -> None:
    assert parse_uuid(text) is None


def test_the_site_of_a_path_is_found_below_it() -> None:
    site = "01990d5e-3a00-7c62-9d2b-5a2a6f0c1e11"
    assert str(site_of(f"/v1/sites/{site}/comments")) == site
    assert site_of("/docs") is None


def test_a_query_is_bounded_and_has_room_for_the_longest_key() -> None:
    longest = b"thread=" + b"%F0%9F%98%80" * 2000
    assert parse_query({"query_string": longest}, ["thread"]) == {"thread": ["\U0001f600" * 2000]}
    with pytest.raises(Problem, match=f"query: may have {QUERY_BYTES_MAX} bytes"):
        parse_query({"query_string": b"thread=" + b"a" * QUERY_BYTES_MAX}, ["thread"])


@pytest.mark.parametrize(
    ("adapter", "body", "errors"),
    [
        (NEW_COMMENT, b"{}", {"thread": "is required", "body": "is required"}),
        (NEW_COMMENT, b'{"thread":1,"body":""}', {"thread": "must be a string", "body": "must not be empty"}),
        (NEW_COMMENT, b'{"thread":"t","body":"b","parent":"x"}', {"parent": "must be a UUID"}),
        (NEW_COMMENT, b'{"thread":"t","body":"b","parent":1}', {"parent": "must be a UUID"}),
        (NEW_COMMENT, b'{"thread":"t","body":"b","author":"x"}', {"author": "must be an object"}),
        (NEW_COMMENT, b'{"thread":"t","body":"b","author":{"name":" "}}', {"author.name": "must not be blank"}),
        (NEW_COMMENT, b"[]", {"request": "must be an object"}),
        (NEW_SITE, b'{"name":"n","origins":"x"}', {"origins": "must be an array"}),
        (NEW_SITE, b'{"name":"%s"}' % (b"n" * 201), {"name": "may have 200 characters"}),
        (NEW_SITE, b'{"name":"n","origins":[%s]}' % b",".join([b'"*"'] * 51), {"origins": "may have 50 items"}),
        (NEW_SITE, b'{"name":"n","else":1}', {"else": "unknown field"}),
    ],
)
def test_a_wrong_field_is_described_in_the_words_of_the_api(
    adapter: TypeAdapter[Any], body: bytes, errors: dict[str, str]
) -> None:
    with pytest.raises(Problem, match="invalid-request") as refused:
        parse_json(adapter, body)
    assert {error.field: error.message for error in refused.value.errors} == errors


def test_a_body_that_is_not_json_is_refused_with_the_position_of_the_error() -> None:
    with pytest.raises(Problem, match="malformed-json") as refused:
        parse_json(NEW_SITE, b'{"name"')
    assert refused.value.detail.startswith("The body is not valid JSON: ")
    assert "line 1 column 7" in refused.value.detail
