"""Tests how thread keys are canonicalised and bounded."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.api.problems import Problem
from services.api.thread_key import canonical_key, parse_thread_key

addresses = st.builds(
    "{}://{}{}{}{}{}".format,
    st.sampled_from(["http", "https", "HTTP", "Https"]),
    st.sampled_from(["", "user@", "u:p@"]),
    st.text(st.sampled_from("aB.-:80443[]@"), max_size=12),
    st.text(st.sampled_from("/aB%20.;"), max_size=8),
    st.one_of(st.just(""), st.text(st.sampled_from("?&=utm_sourcefbclid[]"), max_size=20).map("?{}".format)),
    st.one_of(st.just(""), st.just("#top"), st.just("#!/x?y")),
)


@given(st.one_of(addresses, st.text(max_size=60)))
@example("http://h:80:80/")
@example("https://h:/?#")
@example("http://:80/")
@example("https://a@b@C:0443//?&&utm_x&a")
def test_canonicalising_twice_changes_nothing(text: str) -> None:
    once = canonical_key(text)
    assert canonical_key(once) == once


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("http://Example.COM", "https://example.com/"),
        ("https://example.com:443/a/", "https://example.com/a"),
        ("http://example.com:8080/a//", "https://example.com:8080/a"),
        ("https://u:p@example.com/A?b=1&utm_source=x&a=2#c", "https://example.com/A?b=1&a=2"),
        ("https://example.com/?fbclid=1", "https://example.com/"),
        ("https://example.com/a?ref=1", "https://example.com/a?ref=1"),
        ("https://[::1]:80/x", "https://[::1]/x"),
        ("own id / With ? everything # kept ", "own id / With ? everything # kept "),
        ("ftp://Example.com/", "ftp://Example.com/"),
        ("http://", "http://"),
    ],
)
def test_a_thread_key_is_canonicalised_by_the_rules(text: str, key: str) -> None:
    assert canonical_key(text) == key


@given(st.text(max_size=50).filter(lambda text: "://" not in text))
def test_an_own_id_is_kept_as_it_is(text: str) -> None:
    assert canonical_key(text) == text


@pytest.mark.parametrize("text", ["", "x" * 2001, "a\x00b", "https://e.com/" + "x" * 2000])
def test_a_key_out_of_bounds_is_refused(text: str) -> None:
    with pytest.raises(Problem, match="invalid-request"):
        parse_thread_key(text)
