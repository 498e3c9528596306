import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync.merkle import row_hash
from sync.merkle.set_hash import SetHash
from tests.servers import postgres
from tests.sync.merkle.tables import SECRET

OTHER_SECRET = bytes(32)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)

IN_POSTGRESQL = r"""
WITH one AS (
    SELECT
        sha256(%(secret)s || convert_to(%(key)s, 'UTF8')) AS k,
        sha256(%(secret)s || convert_to(%(key)s, 'UTF8') || '\x00' || convert_to(%(canonical)s, 'UTF8')) AS r
)
SELECT substr(k, 1, 8)::bigint, substr(r, 1, 8)::bigint, substr(r, 9, 8)::bigint FROM one
"""
ROWS = [("comments|1", "a|b|"), ("ключ", "x\ny"), ("k", ""), ("naïve", "\\x00")]


def test_hashes_stay_as_they_are() -> None:
    # The leaves of a view are stored. A changed hash would be a difference of every row.
    assert row_hash.hash_key(SECRET, "ключ") == 4422993746315981158
    assert row_hash.hash_row(SECRET, "ключ", "x\ny") == SetHash(1, 886690664221495583, -4026431456362009091)


@pytest.mark.integration
def test_postgresql_computes_the_same_hashes() -> None:
    with postgres() as server:
        for key, canonical in ROWS:
            sql = IN_POSTGRESQL.replace("%(secret)s", f"'\\x{SECRET.hex()}'::bytea")
            sql = sql.replace("%(key)s", f"'{key}'").replace("%(canonical)s", f"'{canonical}'")
            hashed = row_hash.hash_row(SECRET, key, canonical)
            assert server.sql(sql) == [(row_hash.hash_key(SECRET, key), hashed.h1, hashed.h2)]


def test_the_same_content_under_two_keys_has_two_hashes() -> None:
    assert row_hash.hash_row(SECRET, "a", "content") != row_hash.hash_row(SECRET, "b", "content")


@settings(max_examples=30)
@given(texts, texts, texts, texts)
def test_key_and_content_cannot_be_divided_in_another_way(key: str, content: str, key2: str, content2: str) -> None:
    equal = row_hash.hash_row(SECRET, key, content) == row_hash.hash_row(SECRET, key2, content2)
    assert equal == ((key, content) == (key2, content2))


def test_the_end_of_a_key_is_not_the_start_of_the_content() -> None:
    assert row_hash.hash_row(SECRET, "a", "bc") != row_hash.hash_row(SECRET, "ab", "c")


def test_another_secret_gives_other_hashes_and_another_scheme() -> None:
    assert row_hash.hash_key(SECRET, "a") != row_hash.hash_key(OTHER_SECRET, "a")
    assert row_hash.hash_row(SECRET, "a", "b") != row_hash.hash_row(OTHER_SECRET, "a", "b")
    assert row_hash.scheme_of(SECRET, "comments 1") != row_hash.scheme_of(OTHER_SECRET, "comments 1")


def test_another_schema_is_another_scheme() -> None:
    assert row_hash.scheme_of(SECRET, "comments 1") != row_hash.scheme_of(SECRET, "comments 2")


def test_a_secret_of_another_length_is_an_error_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="16 bytes"):
        row_hash.hash_key(bytes(16), "a")
