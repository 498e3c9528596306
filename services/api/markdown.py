"""Comment bodies: Markdown in, safe HTML out. The one renderer of the product.

Decides which Markdown counts (CommonMark and strikethrough, no raw HTML, no images, which would let anybody
count a page's readers) and cleans the result again with a sanitiser of its own, so that a fault of the renderer
is not a fault of the site. The HTML depends on nothing but the body.

Decides what one body may cost. The parser is linear; the sanitiser takes time by the product of tags and their nesting.
So a body with more tags than MARKUP_MAX and CHARS_PER_MARKUP_MIN allow, or nested deeper than NESTING_MAX, is shown as
it was written. Parser and sanitiser are native and release the interpreter's lock, so that a long body is rendered in a
thread and holds up nobody (`render_aside`). Source: adr/0038.
"""

import asyncio
import html as entities
import re
from collections import OrderedDict
from typing import Final
from uuid import UUID

import nh3
import pyromark

TAGS: Final = {
    "p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a",
    "h1", "h2", "h3", "h4", "h5", "h6",
}  # fmt: skip
ATTRIBUTES: Final = {"a": {"href", "title"}, "ol": {"start"}, "code": {"class"}}
LINK_REL: Final = "nofollow ugc noopener"

# Tags and entities of any body, and of a long one: what the longest comment (PALAVER_BODY_CHARS_MAX) may have is the
# same by both at 10,000 characters. Prose has one in a hundred characters, code of HTML one in twenty.
MARKUP_MAX: Final = 1000
CHARS_PER_MARKUP_MIN: Final = 10
# Twenty-five levels of a list, or fifty of quotations.
NESTING_MAX: Final = 50

# Shorter bodies take less than the way into a thread and back is worth: a third of a millisecond at most.
RENDERED_AT_ONCE_CHARS_MAX: Final = 1000

# 4096 comments are some twenty full pages; the characters bound what long ones may take, about 16 MB.
CACHE_ENTRIES_MAX: Final = 4096
CACHE_CHARS_MAX: Final = 8_000_000

# A link without an address that a reader's browser follows as it is: that would be completed from the page that shows
# the comment (`/path`, `//host`, `https:path`), or is what browsers take for one of these (`/\\host`, with controls).
_LINK_NOT_ABSOLUTE: Final = re.compile(
    r'<a href="(?!(?:https?://[^\x00-\x20"/\\?#\x7f]|mailto:)[^\x00-\x20"\\\x7f]*")[^"]*"', re.IGNORECASE
)

# What would begin something that comments do not have is taken for text: a noncharacter, which no text that is
# exchanged may hold (Unicode, 23.7), stands in for its first sign while the parser looks at it. In an address the
# parser writes the stand-in percent-encoded, and only there is that replaced: in the text of a comment the same
# characters are the author's. (`<a href="` begins an address: a `<` of the text is an entity.)
_TAG_SIGN: Final = "\ufdd0"
_IMAGE_SIGN: Final = "\ufdd1"
_TILDE: Final = "\ufdd2"
_MEANT: Final = ((_TAG_SIGN, "&lt;"), (_IMAGE_SIGN, "!"), (_TILDE, "~"))
_MEANT_IN_ADDRESSES: Final = (("%EF%B7%90", "%3C"), ("%EF%B7%91", "!"), ("%EF%B7%92", "~"))
_ADDRESS: Final = re.compile(r'<a href="[^"]*"')
# Escaped signs and doubled tildes are out of sight meanwhile.
_HIDDEN: Final = (("\\\\", "\ufdd3"), ("\\<", "\ufdd4"), ("\\!", "\ufdd5"), ("\\~", "\ufdd6"), ("~~", "\ufdd7"))
_THIRD_TILDE: Final = "\ufdd8"
_NONCHARACTERS: Final = re.compile("[\ufdd0-\ufdd8]")
_TAG_NAME: Final = re.compile(r"<(?=[A-Za-z][A-Za-z0-9-]*(?:[\s/>]|\Z))")

# Most comments are plain sentences: lines that begin with a letter and hold nothing that means something in
# Markdown or HTML. Their HTML is known without parsing them, at a hundredth of the price.
_PLAIN_LINE: Final = r"[^\W\d_](?:[^\x00-\x1f\x7f-\xa0\\`*_\[\]<>&~]*[^\s\x00-\x1f\x7f-\xa0\\`*_\[\]<>&~])?"
_PLAIN: Final = re.compile(rf"{_PLAIN_LINE}(?:\n\n?{_PLAIN_LINE})*")


_cleaner: Final = nh3.Cleaner(
    tags=TAGS,
    attributes=ATTRIBUTES,
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel=LINK_REL,
)


def render(body: str) -> str:
    """Return the HTML of a comment's body."""
    if _PLAIN.fullmatch(body):
        return "<p>" + body.replace("\n\n", "</p>\n<p>") + "</p>"
    return render_markdown(body)


async def render_aside(body: str) -> str:
    """Return the HTML of a comment's body, that of a long one from a thread."""
    if len(body) <= RENDERED_AT_ONCE_CHARS_MAX:
        return render(body)
    return await asyncio.to_thread(render, body)


def render_markdown(body: str) -> str:
    """Return the HTML of any body, by the parser and the sanitiser; what `render` must agree with."""
    html = pyromark.html(_without_foreign_signs(body), options=pyromark.Options.ENABLE_STRIKETHROUGH)
    if html.count("<") + html.count("&") + html.count(_TAG_SIGN) > max(MARKUP_MAX, len(body) // CHARS_PER_MARKUP_MIN):
        return _as_written(body)
    if _nesting(html) > NESTING_MAX:
        return _as_written(body)
    return _cleaner.clean(_with_our_signs(html)).strip()


def _as_written(body: str) -> str:
    return f"<pre><code>{entities.escape(body, quote=False)}\n</code></pre>"


def _with_our_signs(html: str) -> str:
    """Return the parser's HTML with what the stand-ins mean, our tag for strikethrough, and only absolute links."""
    html = html.replace("<del>", "<s>").replace("</del>", "</s>")
    for stand_in, meant in _MEANT:
        html = html.replace(stand_in, meant)
    return _LINK_NOT_ABSOLUTE.sub("<a", _ADDRESS.sub(_meant_address, html))


def _meant_address(found: re.Match[str]) -> str:
    address = found[0]
    for stand_in, meant in _MEANT_IN_ADDRESSES:
        address = address.replace(stand_in, meant)
    return address


def _without_foreign_signs(body: str) -> str:
    """Return a body in which no sign begins a tag, an image or a strikethrough of one tilde.

    All of it is replacing of fixed texts, which is native: a function called for each sign takes seven milliseconds.
    """
    body = _NONCHARACTERS.sub("\ufffd", body)
    for seen, hidden in _HIDDEN:
        body = body.replace(seen, hidden)
    two_tildes = _HIDDEN[-1][1]
    body = body.replace(two_tildes + "~", two_tildes + _THIRD_TILDE).replace("~", _TILDE).replace(_THIRD_TILDE, "~")
    body = body.replace("![", _IMAGE_SIGN + "[")
    for after in "/!?":
        body = body.replace("<" + after, _TAG_SIGN + after)
    body = _TAG_NAME.sub(_TAG_SIGN, body)
    for seen, hidden in reversed(_HIDDEN):
        body = body.replace(hidden, seen)
    return body


def _nesting(html: str) -> int:
    """Return how deep the tags of the parser's HTML are nested."""
    depth = deepest = 0
    for after in html.split("<")[1:]:
        if after.startswith("/"):
            depth -= 1
        elif not after.startswith(("br", "hr")):
            depth += 1
            deepest = max(deepest, depth)
    return deepest


class HtmlCache:
    """Keeps the HTML of comments by id and version, bounded in entries and characters."""

    def __init__(self, entries_max: int = CACHE_ENTRIES_MAX, chars_max: int = CACHE_CHARS_MAX) -> None:
        self._entries_max = entries_max
        self._chars_max = chars_max
        self._chars = 0
        self._html: OrderedDict[tuple[UUID, int], str] = OrderedDict()

    async def render(self, comment: UUID, version: int, body: str) -> str:
        """Return the HTML of this version of a comment."""
        key = (comment, version)
        html = self._html.get(key)
        if html is not None:
            self._html.move_to_end(key)
            return html
        html = await render_aside(body)
        if key not in self._html:  # nobody else has rendered it meanwhile
            self._html[key] = html
            self._chars += len(html)
        while len(self._html) > self._entries_max or self._chars > self._chars_max:
            self._chars -= len(self._html.popitem(last=False)[1])
        return html
