"""Renders the bodies of comments: Markdown in, safe HTML out. It is the only renderer of the product.

Decides which Markdown is supported: CommonMark and strikethrough, no raw HTML, and no images, because with an image
anybody could count the readers of a page. A separate sanitiser cleans the result, so that a bug of the parser does not
harm a site. The HTML depends only on the body.

Decides what one body may cost. The parser takes linear time; the time of the sanitiser grows with the number of tags
times their nesting. A body with more tags than MARKUP_MAX and CHARS_PER_MARKUP_MIN allow, or with deeper nesting than
NESTING_MAX, is therefore shown as plain text. Parser and sanitiser are native and release the interpreter's lock, so a
long body is rendered in a thread and does not block the event loop (`render_aside`). Source: adr/0038.
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

# Limits of the number of tags and entities: a constant for every body, and one per so many characters for a long body.
# Both give the same limit at 10,000 characters, the default of PALAVER_BODY_CHARS_MAX. Prose has one tag or entity in a
# hundred characters, HTML code one in twenty.
MARKUP_MAX: Final = 1000
CHARS_PER_MARKUP_MIN: Final = 10
# Twenty-five levels of lists, or fifty of quotations.
NESTING_MAX: Final = 50

# Shorter bodies take a third of a millisecond at most, so they are not worth a thread.
RENDERED_AT_ONCE_CHARS_MAX: Final = 1000

# 4096 comments are about twenty full pages. The limit of characters bounds the memory of long ones to about 16 MB.
CACHE_ENTRIES_MAX: Final = 4096
CACHE_CHARS_MAX: Final = 8_000_000

# A link whose address is not absolute: a browser would resolve it against the page that shows the comment (`/path`,
# `//host`, `https:path`), or would read it as one of these forms (`/\\host`, or with control characters).
_LINK_NOT_ABSOLUTE: Final = re.compile(
    r'<a href="(?!(?:https?://[^\x00-\x20"/\\?#\x7f]|mailto:)[^\x00-\x20"\\\x7f]*")[^"]*"', re.IGNORECASE
)

# Markup that comments do not support becomes text: before the parser runs, the first character of such markup is
# replaced by a noncharacter, which interchanged text must not contain (Unicode, 23.7). In an address the parser
# percent-encodes the noncharacter, and only addresses are searched for the encoded form: elsewhere the author may have
# written the same characters. (`<a href="` begins an address, because the parser encodes a `<` of the text.)
_TAG_SIGN: Final = "\ufdd0"
_IMAGE_SIGN: Final = "\ufdd1"
_TILDE: Final = "\ufdd2"
_MEANT: Final = ((_TAG_SIGN, "&lt;"), (_IMAGE_SIGN, "!"), (_TILDE, "~"))
_MEANT_IN_ADDRESSES: Final = (("%EF%B7%90", "%3C"), ("%EF%B7%91", "!"), ("%EF%B7%92", "~"))
_ADDRESS: Final = re.compile(r'<a href="[^"]*"')
# Escaped characters and double tildes are replaced as well, so that the steps below do not change them.
_HIDDEN: Final = (("\\\\", "\ufdd3"), ("\\<", "\ufdd4"), ("\\!", "\ufdd5"), ("\\~", "\ufdd6"), ("~~", "\ufdd7"))
_THIRD_TILDE: Final = "\ufdd8"
_NONCHARACTERS: Final = re.compile("[\ufdd0-\ufdd8]")
_TAG_NAME: Final = re.compile(r"<(?=[A-Za-z][A-Za-z0-9-]*(?:[\s/>]|\Z))")

# Most comments are plain sentences: lines that begin with a letter and contain no character that has a meaning in
# Markdown or HTML. Their HTML is built without the parser, in a hundredth of the time.
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
    """Return the HTML of a comment's body; render a long body in a thread."""
    if len(body) <= RENDERED_AT_ONCE_CHARS_MAX:
        return render(body)
    return await asyncio.to_thread(render, body)


def render_markdown(body: str) -> str:
    """Return the HTML of any body by parser and sanitiser. `render` must return the same HTML."""
    html = pyromark.html(_mask_unsupported_markup(body), options=pyromark.Options.ENABLE_STRIKETHROUGH)
    if html.count("<") + html.count("&") + html.count(_TAG_SIGN) > max(MARKUP_MAX, len(body) // CHARS_PER_MARKUP_MIN):
        return _as_written(body)
    if _nesting(html) > NESTING_MAX:
        return _as_written(body)
    return _cleaner.clean(_restore_markup(html)).strip()


def _as_written(body: str) -> str:
    return f"<pre><code>{entities.escape(body, quote=False)}\n</code></pre>"


def _restore_markup(html: str) -> str:
    """Return the parser's HTML with the original characters, `<s>` for strikethrough, and only absolute links."""
    html = html.replace("<del>", "<s>").replace("</del>", "</s>")
    for stand_in, meant in _MEANT:
        html = html.replace(stand_in, meant)
    return _LINK_NOT_ABSOLUTE.sub("<a", _ADDRESS.sub(_meant_address, html))


def _meant_address(found: re.Match[str]) -> str:
    address = found[0]
    for stand_in, meant in _MEANT_IN_ADDRESSES:
        address = address.replace(stand_in, meant)
    return address


def _mask_unsupported_markup(body: str) -> str:
    """Return the body without tags, images and strikethrough by one tilde: their first characters are replaced.

    Each step replaces a fixed text, which is native. A Python function for each character takes seven milliseconds.
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
    """Return the depth to which the tags of the parser's HTML are nested."""
    depth = deepest = 0
    for after in html.split("<")[1:]:
        if after.startswith("/"):
            depth -= 1
        elif not after.startswith(("br", "hr")):
            depth += 1
            deepest = max(deepest, depth)
    return deepest


class HtmlCache:
    """Caches the HTML of comments by id and version, with limits of entries and characters."""

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
        if key not in self._html:  # no other request has rendered it meanwhile
            self._html[key] = html
            self._chars += len(html)
        while len(self._html) > self._entries_max or self._chars > self._chars_max:
            self._chars -= len(self._html.popitem(last=False)[1])
        return html
