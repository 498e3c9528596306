"""Tests that cursors survive their text form, and that altered or foreign cursors are refused."""

import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.cursor import CURSOR_CHARS, Cursor, decode_cursor, encode_cursor
from services.api.problems import Problem

SITE = uuid.UUID(int=1)


def _cursor(parent: uuid.UUID | None, place: tuple[datetime, uuid.UUID] | None) -> Cursor:
    return Cursor(parent=parent, created_at=place and place[0], after=place and place[1])


moments = st.datetimes(min_value=datetime(1, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone
cursors = st.builds(_cursor, st.none() | st.uuids(), st.none() | st.tuples(moments, st.uuids()))


@given(cursors, st.text(max_size=20), st.sampled_from(["newest", "oldest"]))
def test_a_cursor_survives_encoding_and_decoding(cursor: Cursor, thread: str, sort: str) -> None:
    text = encode_cursor(cursor, site=SITE, thread=thread, sort=sort)
    assert len(text) == CURSOR_CHARS
    assert decode_cursor(text, site=SITE, thread=thread, sort=sort) == cursor


@given(cursors, st.data())
def test_a_changed_cursor_is_refused(cursor: Cursor, data: st.DataObject) -> None:
    text = encode_cursor(cursor, site=SITE, thread="a", sort="newest")
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters().filter(lambda c: c != text[place]))
    for changed in (text[:place] + other + text[place + 1 :], text[:place], text + other):
        with pytest.raises(Problem, match="invalid-cursor"):
            decode_cursor(changed, site=SITE, thread="a", sort="newest")


def test_the_other_base64_alphabet_is_refused() -> None:
    ids = (uuid.UUID(int=n) for n in range(1000))
    texts = (encode_cursor(Cursor(parent=one), site=SITE, thread="a", sort="newest") for one in ids)
    text = next(text for text in texts if "_" in text and "-" in text)
    for changed in (text.replace("_", "/"), text.replace("-", "+")):
        with pytest.raises(Problem, match="invalid-cursor"):
            decode_cursor(changed, site=SITE, thread="a", sort="newest")


@pytest.mark.parametrize(
    ("site", "thread", "sort"),
    [(uuid.UUID(int=2), "a", "newest"), (SITE, "b", "newest"), (SITE, "a", "oldest")],
)
def test_a_cursor_of_another_list_is_refused(site: uuid.UUID, thread: str, sort: str) -> None:
    text = encode_cursor(Cursor(parent=None), site=SITE, thread="a", sort="newest")
    with pytest.raises(Problem, match="invalid-cursor"):
        decode_cursor(text, site=site, thread=thread, sort=sort)
