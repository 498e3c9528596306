"""Comment bodies: Markdown in, safe HTML out. The one renderer of the product.

Decides which Markdown counts (CommonMark and strikethrough, no raw HTML, no images, which would let anybody
count a page's readers) and cleans the result again with a sanitiser of its own, so that a fault of the renderer
is not a fault of the site. The HTML depends on nothing but the body.
"""

import re
from collections import OrderedDict
from typing import Final
from uuid import UUID

import nh3
from markdown_it import MarkdownIt

TAGS: Final = {
    "p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a",
    "h1", "h2", "h3", "h4", "h5", "h6",
}  # fmt: skip
ATTRIBUTES: Final = {"a": {"href", "title"}, "ol": {"start"}, "code": {"class"}}
LINK_REL: Final = "nofollow ugc noopener"

# 4096 comments are some twenty full pages; the characters bound what long ones may take, about 16 MB.
CACHE_ENTRIES_MAX: Final = 4096
CACHE_CHARS_MAX: Final = 8_000_000

_parser: Final = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").disable("image")
_cleaner: Final = nh3.Cleaner(
    tags=TAGS, attributes=ATTRIBUTES, url_schemes={"http", "https", "mailto"}, link_rel=LINK_REL
)


# Most comments are plain sentences: lines that begin with a letter and hold nothing that means something in
# Markdown or HTML. Their HTML is known without parsing them, at a hundredth of the price.
_PLAIN_LINE: Final = r"[^\W\d_](?:[^\x00-\x1f\x7f-\xa0\\`*_\[\]<>&~]*[^\s\x00-\x1f\x7f-\xa0\\`*_\[\]<>&~])?"
_PLAIN: Final = re.compile(rf"{_PLAIN_LINE}(?:\n\n?{_PLAIN_LINE})*")


def render(body: str) -> str:
    """Return the HTML of a comment's body."""
    if _PLAIN.fullmatch(body):
        return "<p>" + body.replace("\n\n", "</p>\n<p>") + "</p>"
    return render_markdown(body)


def render_markdown(body: str) -> str:
    """Return the HTML of any body, by the parser and the sanitiser; what `render` must agree with."""
    return _cleaner.clean(_parser.render(body)).strip()


class HtmlCache:
    """Keeps the HTML of comments by id and version, bounded in entries and characters."""

    def __init__(self, entries_max: int = CACHE_ENTRIES_MAX, chars_max: int = CACHE_CHARS_MAX) -> None:
        self._entries_max = entries_max
        self._chars_max = chars_max
        self._chars = 0
        self._html: OrderedDict[tuple[UUID, int], str] = OrderedDict()

    def render(self, comment: UUID, version: int, body: str) -> str:
        """Return the HTML of this version of a comment."""
        key = (comment, version)
        html = self._html.get(key)
        if html is not None:
            self._html.move_to_end(key)
            return html
        html = render(body)
        self._html[key] = html
        self._chars += len(html)
        while len(self._html) > self._entries_max or self._chars > self._chars_max:
            self._chars -= len(self._html.popitem(last=False)[1])
        return html
