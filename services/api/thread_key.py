"""What names a thread: the address of a page, brought to one form, or a site's own id, left alone.

A key that begins with `http://` or `https://` (in any case) and names a host is an address. Of it:
- the scheme becomes `https`, because a page is the same page over both;
- user information, the fragment and the ports 80 and 443 go; the host becomes lower-case;
- an empty path becomes `/`, any other path loses its trailing slashes;
- tracking parameters (`TRACKING_PARAMETERS`, and all that begin with `utm_`) go; the other parameters keep their
  order and spelling, and a question mark without parameters goes.
Everything else is an own id and is kept as it is, every character of it. Doing it twice changes nothing.

Source: RFC 3986, section 6.2, where it is safe for pages; query order and percent-encodings are not touched,
because servers may tell them apart.
"""

import re
from typing import Final

from services.api.problems import invalid

KEY_CHARS_MAX: Final = 2000

TRACKING_PARAMETERS: Final = frozenset(
    {
        "fbclid", "gclid", "gbraid", "wbraid", "dclid", "msclkid", "yclid", "twclid", "ttclid", "igshid",
        "mc_cid", "mc_eid", "_ga", "_gl", "_hsenc", "_hsmi", "vero_id", "oly_anon_id", "oly_enc_id",
    }
)  # fmt: skip

_ADDRESS: Final = re.compile(r"(?i:https?)://([^/?#]+)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.DOTALL)
_DEFAULT_PORTS: Final = re.compile(r"(?::0*(?:80|443)?)+\Z")


def canonical_key(text: str) -> str:
    """Return the one form of a thread key; see the module for the rules."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return text
    authority, path, query = match.groups()
    host = _DEFAULT_PORTS.sub("", authority.rpartition("@")[2]).lower()
    if not host:
        return text
    kept = [pair for pair in (query or "").split("&") if pair and not _is_tracking(pair)]
    return f"https://{host}{path.rstrip('/') or '/'}{'?' + '&'.join(kept) if kept else ''}"


def parse_thread_key(text: str, field: str = "thread") -> str:
    """Return the canonical key, checked.

    Raises:
        Problem: It is empty, longer than KEY_CHARS_MAX, or holds a NUL character.
    """
    key = canonical_key(text)
    if not 1 <= len(key) <= KEY_CHARS_MAX:
        raise invalid(field, f"must have 1 to {KEY_CHARS_MAX} characters")
    if "\x00" in key:
        raise invalid(field, "must not contain a NUL character")
    return key


def _is_tracking(pair: str) -> bool:
    name = pair.partition("=")[0].lower()
    return name.startswith("utm_") or name in TRACKING_PARAMETERS
