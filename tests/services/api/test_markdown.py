"""Tests that the HTML of any Markdown is safe, and that rendering is bounded."""

import asyncio
import re
import uuid
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.api.markdown import ATTRIBUTES, TAGS, HtmlCache, render, render_aside, render_markdown


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
def test_hostile_markdown_is_rendered_as_safe_html(body: str) -> None:
    html = render(body)
    Audit().feed(html)
    assert "<script" not in html
    assert "<img" not in html


@given(st.text(st.sampled_from("<>&\"'`*_~[]()!#:/\\ \nax1.-\x7f"), max_size=80))
def test_the_html_of_any_markdown_passes_the_audit(body: str) -> None:
    Audit().feed(render(body))


def test_ordinary_markdown_is_rendered() -> None:
    assert render("a *b* **c** ~~d~~ `e`") == "<p>a <em>b</em> <strong>c</strong> <s>d</s> <code>e</code></p>"
    assert render("> q\n\n1. x") == "<blockquote>\n<p>q</p>\n</blockquote>\n<ol>\n<li>x</li>\n</ol>"


async def test_the_cache_is_bounded_and_has_an_entry_for_each_version() -> None:
    cache = HtmlCache(entries_max=2, chars_max=30)
    one = uuid.uuid4()
    assert await cache.render(one, 1, "a") == "<p>a</p>"
    assert await cache.render(one, 1, "ignored, the version is known") == "<p>a</p>"
    assert await cache.render(one, 2, "b") == "<p>b</p>"
    await cache.render(uuid.uuid4(), 1, "c")
    assert await cache.render(one, 1, "gone") == "<p>gone</p>"
    assert await cache.render(uuid.uuid4(), 1, "x" * 100) == f"<p>{'x' * 100}</p>"


plain = st.lists(
    st.builds("{}{}".format, st.characters(categories=["L"]), st.text(max_size=20)), min_size=1, max_size=4
).flatmap(lambda lines: st.sampled_from(["\n", "\n\n"]).map(lambda separator: separator.join(lines)))


@given(st.one_of(plain, st.text(st.sampled_from("aB \n.,;:!?'\"()-=+#1|/@%{}$^"), max_size=60)))
@example("a\n===")
@example("a\n---\nb")
@example("a  \nb")
@example("a\n\n\nb")
def test_the_shortcut_for_plain_text_renders_as_the_parser_does(body: str) -> None:
    assert render(body) == render_markdown(body)


ABSOLUTE = re.compile(r"(https?://[^/\\?#\s]|mailto:)[^\x00-\x20\\]*", re.IGNORECASE)

RELATIVE = [
    "//host", "/path", "path", "?query", "#fragment", "", "../up", r"\\host", r"/\host", r"\/host", "https:host",
    "https:/host", "https:///host", r"https:\\host", r"https://\host", "http:?x", "&#9;//host", "/&#9;/host",
    "&#1;//host", "ht&#10;tps:host", "/%09/host", "&#x20;//host", "http://", "https://?x",
    "javascript:alert(1)", "data:text/html,x", "ftp://host",
]  # fmt: skip


@pytest.mark.parametrize("address", RELATIVE)
def test_only_an_absolute_address_is_a_link(address: str) -> None:
    for body in (f"[x]({address})", f"[x](<{address}>)", f"[x][y]\n\n[y]: {address}", f"![x]({address})"):
        assert "href=" not in render(body), (body, render(body))


@pytest.mark.parametrize("address", ["https://e.com/a?b=~c!#d", "HTTP://e.com", "mailto:a@e.com"])
def test_an_absolute_address_is_a_link(address: str) -> None:
    html = f'<p><a href="{address}" rel="nofollow ugc noopener">x</a></p>'
    assert render(f"[x]({address})") == html
    assert render(f"![x]({address})") == html.replace("<a", "!<a")


@given(st.text(st.sampled_from("htps:/\\ \t.&#9;x\x01<>[]()"), max_size=20))
def test_no_rendered_address_is_relative(address: str) -> None:
    for found in re.findall(r'href="([^"]*)"', render(f"[x]({address}) [y](<{address}>)")):
        assert ABSOLUTE.fullmatch(unescape(found)), found


def test_unsupported_markdown_is_shown_as_text() -> None:
    assert render("<b>x</b> *y*") == "<p>&lt;b&gt;x&lt;/b&gt; <em>y</em></p>"
    assert render("<div>\n*y*\n</div>") == "<p>&lt;div&gt;\n<em>y</em>\n&lt;/div&gt;</p>"
    assert render("~x~ ~~y~~ ~~~z~~~") == "<p>~x~ <s>y</s> ~~~z~~~</p>"
    assert render("`<b> ![x] ~y~` \\<b> \\![x] \\~y~") == "<p><code>&lt;b&gt; ![x] ~y~</code> &lt;b&gt; ![x] ~y~</p>"
    assert render("~~~html\n<b>\n~~~") == '<pre><code class="language-html">&lt;b&gt;\n</code></pre>'
    assert render("<https://e.com/> <a@e.com>").count("<a href=") == 2
    assert render("\ufdd0 \ufdd8 *x*") == "<p>\ufffd \ufffd <em>x</em></p>"


@given(st.text(st.sampled_from("<>&\"'`*_~[]()!#:/\\ \nax1.-\x7f\ufdd0"), max_size=80))
def test_rendering_keeps_every_word(body: str) -> None:
    """A link keeps its text and not its address, so the property is checked for bodies without brackets."""
    body = re.sub(r"[\[\]<&]", "", body)
    assert len(re.findall("[ax]", render(body))) >= body.count("a") + body.count("x")


NESTED = [">" * 10_000, "> " * 5_000 + "x", "- " * 5_000 + "x", "*x " * 3_333, ">" * 20 + "[\n" * 5_000, "&" * 10_000]


@pytest.mark.parametrize("body", NESTED, ids=lambda body: body[:4])
def test_markup_beyond_the_limits_is_shown_as_text(body: str) -> None:
    html = render(body)
    Audit().feed(html)
    assert len(html) < 7 * len(body)
    if html.startswith("<pre>"):
        assert unescape(html) == f"<pre><code>{body}\n</code></pre>"
    tags = re.findall(r"</?[a-z]", html)
    assert len(tags) <= 1000


def test_ordinary_nested_quotations_and_lists_are_rendered() -> None:
    assert render("> " * 40 + "x").count("<blockquote>") == 40
    assert render("".join(" " * 2 * depth + "- x\n" for depth in range(20))).count("<ul>") == 20


async def test_a_long_body_is_rendered_outside_of_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    aside: list[str] = []
    to_thread = asyncio.to_thread

    async def noted(function: Callable[[str], str], body: str) -> str:
        aside.append(body)
        return await to_thread(function, body)

    monkeypatch.setattr(asyncio, "to_thread", noted)
    long = "[x " * 3_000
    assert await render_aside(long) == render(long)
    assert await render_aside("*x*") == "<p><em>x</em></p>"
    assert aside == [long]


def test_the_pattern_of_plain_text_takes_linear_time() -> None:
    assert render("a " * 5000 + "*") == render_markdown("a " * 5000 + "*")


ENCODED = "%EF%B7%90 %EF%B7%91 %EF%B7%92"


@pytest.mark.parametrize(
    ("body", "html"),
    [
        (ENCODED, f"<p>{ENCODED}</p>"),
        (f"*x* {ENCODED}", f"<p><em>x</em> {ENCODED}</p>"),
        (f"`{ENCODED}`", f"<p><code>{ENCODED}</code></p>"),
        (f'<a href="{ENCODED}"> *x*', f'<p>&lt;a href="{ENCODED}"&gt; <em>x</em></p>'),
        (
            f'[x](https://e.com "{ENCODED}")',
            f'<p><a href="https://e.com" title="{ENCODED}" rel="nofollow ugc noopener">x</a></p>',
        ),
    ],
    ids=["plain", "text", "code", "tag", "title"],
)
def test_percent_signs_in_a_comment_stay_unchanged(body: str, html: str) -> None:
    assert render(body) == html
    assert render_markdown(body) == html


def test_special_characters_in_an_address_stay_unchanged() -> None:
    assert 'href="https://e.com/~a!%5B%3Cb"' in render("[*x*](https://e.com/~a![<b)")
