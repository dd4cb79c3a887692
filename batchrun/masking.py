"""One redaction for everything that leaves the process: output, logs, the ledger, reports, error texts.

Where a text is ambiguous it hides too much rather than too little.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus, unquote, unquote_plus

MASK = "***"

_USER_AND_PASSWORD = re.compile(r"(?P<kept>(?:[^:]*:/+)?+[^:]*:)(?P<password>.*)@", re.DOTALL)
"""Up to the last "@", because a raw password may hold "/", "?" and "@"; possessive, lest the scheme pass for a user."""
_NO_PORT = re.compile(r"(?P<kept>[^:]*://[^:/?\[]*:)(?!\d*(?:[/?]|$)).*", re.DOTALL)
"""``scheme://user:password`` whose host was forgotten: what stands where the port belongs is no number."""
_SECRET_NAME = re.compile(
    r"pass(?!file|ive|through)|pwd|secret|token|api_?key|access_?key|credential|odbc_connect", re.IGNORECASE
)
_ASSIGNED = re.compile(
    r"""(?ix) (?P<kept> \b \w* (?:password|passwd|passphrase|pwd) ["']? \s* = \s* )
        (?: '[^']*' | "[^"]*" | [^\s&;,'"]+ )"""
)
_URL_IN_TEXT = re.compile(r"""(?i)\b[a-z][a-z0-9+.-]{0,40}://[^\s'"<>]+""")
_WHOLE_WORD_UP_TO = 8


def names_secret(name: str) -> bool:
    """True for names such as password, sslpassword, api_key, token."""
    return bool(_SECRET_NAME.search(name))


def mask_url(url: str) -> str:
    """Hide the passwords of a URL: ``user:***@host`` and ``?password=***``. Never raises, whatever the text."""
    if match := _USER_AND_PASSWORD.match(url):
        url = f"{match['kept']}{MASK}@{url[match.end() :]}"
    elif match := _NO_PORT.match(url):
        url = match["kept"] + MASK
    head, mark, query = url.partition("?")
    return _ASSIGNED.sub(_hide_value, head) + mark + "&".join(_mask_pair(pair) for pair in query.split("&"))


def _mask_pair(pair: str) -> str:
    name, equals, value = pair.partition("=")
    return f"{name}={MASK}" if equals and value and names_secret(unquote_plus(name)) else pair


def _hide_value(match: re.Match[str]) -> str:
    return match["kept"] + MASK


def url_secrets(url: str) -> list[str]:
    """Return the passwords in a URL, as written and decoded; empty where there is none. Never raises."""
    found = []
    if match := _USER_AND_PASSWORD.match(url):
        found.append(match["password"])
        found.append(match["password"].partition("@")[0])  # what a parser takes for the password if "@" comes again later
    for pair in url.partition("?")[2].split("&"):
        name, _, value = pair.partition("=")
        if value and names_secret(unquote_plus(name)):
            found += [value, unquote_plus(value)]
    return list(dict.fromkeys(text for one in found for text in (one, unquote(one)) if text))


class Redactor:
    """Hides known secrets, and anything that looks like a password in a URL, in any text.

    A secret of up to eight characters is hidden only where it stands as a word of its own: with the password
    "postgres" the word "postgresql" stays readable.
    """

    def __init__(self, secrets: Iterable[str] = (), *, urls: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.add(*secrets)
        for url in urls:
            self.add(*url_secrets(url))

    def add(self, *secrets: str) -> None:
        """Hide these from now on, as they are and as URLs, JSON and repr() write them."""
        for secret in filter(None, secrets):
            self._secrets |= (
                {secret, quote(secret, safe=""), quote(secret), quote_plus(secret)} if _encodable(secret) else {secret}
            )
            self._secrets |= {json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        longest_first = sorted(self._secrets, key=lambda one: (-len(one), one))
        self._pattern = re.compile("|".join(map(_alternative, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        """Return the text without its secrets."""
        if self._pattern is not None:
            text = self._pattern.sub(MASK, text)
        text = _URL_IN_TEXT.sub(lambda match: mask_url(match[0]), text)
        return _ASSIGNED.sub(_hide_value, text)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _alternative(secret: str) -> str:
    if len(secret) > _WHOLE_WORD_UP_TO:
        return re.escape(secret)
    return rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])"
