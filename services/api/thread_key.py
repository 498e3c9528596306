"""Parses thread keys: the address of a page in canonical form, or an id of the site's own, unchanged.

A key that begins with `http://` or `https://` (in any case) and names a host is an address. It is changed as follows:
- the scheme becomes `https`, because a page is the same page over both;
- user information, the fragment and the ports 80 and 443 are removed; the host becomes lower-case;
- an empty path becomes `/`, any other path loses its trailing slashes;
- tracking parameters (`TRACKING_PARAMETERS`, and all that begin with `utm_`) are removed; the other parameters
  keep their order and spelling, and a question mark without parameters is removed.
Any other key is an id of the site's own and stays unchanged. The canonical form is a fixed point of these rules.
A key has at most KEY_CHARS_MAX characters in a request; its length is checked first, and each later step takes linear
time.

Source: RFC 3986, section 6.2, where it is safe for pages; query order and percent-encodings are not touched,
because servers may distinguish them.
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

_SCHEMES: Final = frozenset({"http", "https"})
_DEFAULT_PORTS: Final = frozenset({"", "80", "443"})
_AMPERSANDS: Final = re.compile("&{2,}")
# A run of utm_ parameters is one match. With the look-ahead, most parameters are not compared with every name.
_NAMES: Final = "|".join(map(re.escape, sorted(TRACKING_PARAMETERS)))
_FIRST_LETTERS: Final = "".join(sorted({name[0] for name in TRACKING_PARAMETERS}))
_TRACKED: Final = re.compile(
    rf"&(?:utm_[^&]*+(?:&utm_[^&]*+)*+|(?=[{_FIRST_LETTERS}])(?:{_NAMES})(?=[=&]|\Z)[^&]*+)", re.IGNORECASE | re.ASCII
)


def canonical_key(text: str) -> str:
    """Return the canonical form of a thread key; see the module for the rules."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        return text
    place, _, query = rest.partition("#")[0].partition("?")
    authority, slash, path = place.partition("/")
    host = _without_default_ports(authority.rpartition("@")[2]).lower()
    if not host:
        return text
    kept = _TRACKED.sub("", _AMPERSANDS.sub("&", f"&{query}")).strip("&")
    return f"https://{host}{(slash + path).rstrip('/') or '/'}{'?' + kept if kept else ''}"


def parse_thread_key(text: str, field: str = "thread") -> str:
    """Return the canonical key, checked.

    Raises:
        Problem: It is empty, longer than KEY_CHARS_MAX, or contains a NUL character.
    """
    _check_length(text, field)
    if "\x00" in text:
        raise invalid(field, "must not contain a NUL character")
    key = canonical_key(text)
    _check_length(key, field)  # a host may become longer in lower case
    return key


def _check_length(text: str, field: str) -> None:
    if not 1 <= len(text) <= KEY_CHARS_MAX:
        raise invalid(field, f"must have 1 to {KEY_CHARS_MAX} characters")


def _without_default_ports(host: str) -> str:
    host = host.rstrip(":")
    if host[host.rfind(":") + 1 :].lstrip("0") not in _DEFAULT_PORTS:
        return host
    parts = host.split(":")
    while len(parts) > 1 and parts[-1].lstrip("0") in _DEFAULT_PORTS:
        parts.pop()
    return ":".join(parts)
