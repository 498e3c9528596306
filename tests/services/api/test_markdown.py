import uuid
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.api.markdown import ATTRIBUTES, TAGS, HtmlCache, render, render_markdown


class Audit(HTMLParser):
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert name == "rel" or name in ATTRIBUTES.get(tag, ()), (tag, name)
            if name == "href":
                assert value is not None
                assert value.split(":")[0] in ("http", "https", "mailto") or ":" not in value, value
        if tag == "a":
            assert ("rel", "nofollow ugc noopener") in attrs


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "![x](https://tracker.example/pixel.png)",
    "[x](https://e.com 'onclick=alert(1)')",
    '<https://e.com/"onmouseover=alert(1)>',
    '```"><script>\nx\n```',
    "&#106;avascript:alert(1)",
    "[x]: javascript:alert(1)\n\n[x]",
    "<svg/onload=alert(1)>",
    "[a](//evil.example)",
]


@pytest.mark.parametrize("body", HOSTILE)
def test_hostile_markdown_becomes_harmless(body: str) -> None:
    html = render(body)
    Audit().feed(html)
    assert "<script" not in html
    assert "<img" not in html


@given(st.text(st.sampled_from("<>&\"'`*_~[]()!#:/\\ \nax1.-\x7f"), max_size=80))
def test_any_markdown_passes_the_audit(body: str) -> None:
    Audit().feed(render(body))


def test_ordinary_markdown_is_rendered() -> None:
    assert render("a *b* **c** ~~d~~ `e`") == "<p>a <em>b</em> <strong>c</strong> <s>d</s> <code>e</code></p>"
    assert render("> q\n\n1. x") == "<blockquote>\n<p>q</p>\n</blockquote>\n<ol>\n<li>x</li>\n</ol>"


def test_the_cache_is_bounded_and_knows_versions() -> None:
    cache = HtmlCache(entries_max=2, chars_max=30)
    one = uuid.uuid4()
    assert cache.render(one, 1, "a") == "<p>a</p>"
    assert cache.render(one, 1, "ignored, the version is known") == "<p>a</p>"
    assert cache.render(one, 2, "b") == "<p>b</p>"
    cache.render(uuid.uuid4(), 1, "c")
    assert cache.render(one, 1, "gone") == "<p>gone</p>"
    assert cache.render(uuid.uuid4(), 1, "x" * 100) == f"<p>{'x' * 100}</p>"


plain = st.lists(
    st.builds("{}{}".format, st.characters(categories=["L"]), st.text(max_size=20)), min_size=1, max_size=4
).flatmap(lambda lines: st.sampled_from(["\n", "\n\n"]).map(lambda separator: separator.join(lines)))


@given(st.one_of(plain, st.text(st.sampled_from("aB \n.,;:!?'\"()-=+#1|/@%{}$^"), max_size=60)))
@example("a\n===")
@example("a\n---\nb")
@example("a  \nb")
@example("a\n\n\nb")
def test_plain_text_is_rendered_as_the_parser_would(body: str) -> None:
    assert render(body) == render_markdown(body)


def test_the_pattern_of_plain_text_is_linear() -> None:
    assert render("a " * 5000 + "*") == render_markdown("a " * 5000 + "*")
