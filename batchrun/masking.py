"""One redaction for everything that leaves the process: output, logs, the ledger, reports, error texts.

Where a text is ambiguous it hides too much rather than too little.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from urllib.parse import unquote, unquote_plus

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


def path_secrets(url: str) -> tuple[str, ...]:
    """What of a ping URL is its password: whoever knows its path can report success. Short ones would be found everywhere."""
    path = url.partition("://")[2].partition("/")[2].partition("?")[0].partition("{")[0].strip("/")
    return (path,) if len(path) > _WHOLE_WORD_UP_TO else ()


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
            self._secrets.add(secret)
        longest_first = sorted(self._secrets, key=lambda one: (-len(one), one))
        self._pattern = re.compile("|".join(map(_alternative, longest_first))) if longest_first else None

    @property
    def secrets(self) -> tuple[str, ...]:
        """What is hidden, for a Redactor in another process."""
        return tuple(sorted(self._secrets))

    def __call__(self, text: str) -> str:
        """Return the text without its secrets."""
        if self._pattern is not None:
            text = self._pattern.sub(MASK, text)
        text = _URL_IN_TEXT.sub(lambda match: mask_url(match[0]), text)
        return _ASSIGNED.sub(_hide_value, text)


def _alternative(secret: str) -> str:
    spelled = "".join(map(_spelled, secret))
    return spelled if len(secret) > _WHOLE_WORD_UP_TO else rf"(?<![A-Za-z0-9]){spelled}(?![A-Za-z0-9])"


@functools.cache
def _spelled(one: str) -> str:
    """A pattern for every way a character is written: as it is, in a URL, in JSON, by repr(), and by one inside another."""
    if one.isascii() and one.isalnum():
        return one
    if one == "\\":
        return r"(?:\\+|%5[cC])"
    ways = {re.escape(one), *(r"\\+".join(map(re.escape, way.split("\\"))) for way in _escaped(one))}
    if one.isascii() and one.isprintable() and one != " ":
        ways.add(r"\\+" + re.escape(one))
    if one == " ":
        ways.add(r"\+")
    ways.add("".join(f"%(?i:{byte:02x})" for byte in one.encode("utf-8", "surrogatepass")))
    return f"(?:{'|'.join(sorted(ways, key=len, reverse=True))})"


def _escaped(one: str) -> set[str]:
    """The backslashed spellings of a character."""
    code = ord(one)
    numbers = {f"\\x{code:02x}"} if code < 256 else set()
    found = numbers | {f"\\u{code:04x}", json.dumps(one)[1:-1], ascii(one)[1:-1], repr(one)[1:-1]}
    raw = "".join(f"\\x{byte:02x}" for byte in one.encode("utf-8", "surrogatepass"))  # as repr() shows bytes
    return {way for way in found | {raw} if way.startswith("\\")}
