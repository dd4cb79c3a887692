"""Nothing secret leaves, whatever the text around it."""

from __future__ import annotations

import json
import re
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.database.failures import MAX_MESSAGE, plain_error
from batchrun.masking import MASK, Redactor, mask_url, names_secret, url_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://app:s3cret@host:5432/db", "postgresql://app:***@host:5432/db"),
        ("postgresql+psycopg2://app:p%40ss@[::1]:5432/db", "postgresql+psycopg2://app:***@[::1]:5432/db"),
        ("postgresql://app@host:5432/db", "postgresql://app@host:5432/db"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
        (
            "postgresql://host/db?user=app&password=s3cret&sslmode=require",
            "postgresql://host/db?user=app&password=***&sslmode=require",
        ),
        ("postgresql://host/db?PassWord=s3cret", "postgresql://host/db?PassWord=***"),
        ("postgresql://host/db?pass%77ord=s3cret", "postgresql://host/db?pass%77ord=***"),
        ("postgresql://host/db?sslpassword=s3cret&passfile=/x", "postgresql://host/db?sslpassword=***&passfile=/x"),
        ("postgresql://app:s3c/r?e@t@host/db", "postgresql://app:***@host/db"),
        ("postgresql://app:s3cret/db", "postgresql://app:***"),
        ("app:s3cret@host/db", "app:***@host/db"),
        ("host=h password=s3cret dbname=db", "host=h password=*** dbname=db"),
        ("sqlite:////srv/batchrun.db", "sqlite:////srv/batchrun.db"),
        ("sqlite:///C:/data/x.db", "sqlite:///C:/data/x.db"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_passwords(url: str, shown: str) -> None:
    assert mask_url(url) == shown


@settings(deadline=None)
@given(st.text())
def test_masking_never_raises(text: str) -> None:
    mask_url(text)
    url_secrets(text)
    Redactor([text], urls=[text])(text)


SECRETS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=9).map(lambda text: f"Zq{text}9x")


@given(SECRETS)
def test_no_password_survives_in_a_url(secret: str) -> None:
    assert secret not in mask_url(f"postgresql://app:{secret}@host/db")
    assert secret.replace("&", "") not in mask_url("postgresql://host/db?password=" + secret.replace("&", ""))


@settings(deadline=None)
@given(SECRETS, st.text(), st.text())
def test_a_known_secret_is_hidden_in_any_text_and_spelling(secret: str, before: str, after: str) -> None:
    redact = Redactor([secret])
    assert secret not in redact(before + secret + after)
    for spelling in spellings(secret):
        assert spelling not in redact(spelling)


def spellings(secret: str) -> list[str]:
    """How a secret is written where it comes up: as it is, in URLs, in JSON, by repr(), and by one of these in another."""
    ways = [repr(secret), ascii(secret), json.dumps(secret), json.dumps(secret, ensure_ascii=False)]
    ways += [json.dumps(repr(secret))[1:-1], repr(json.dumps(secret))[1:-1], repr([secret, "'"])[1:]]
    made = [way[1:-1] for way in ways] + [quote(secret), quote(secret, safe=""), quote_plus(secret)]
    made.append(re.sub("%..", lambda match: match[0].lower(), quote(secret, safe="")))
    return [secret, repr(secret.encode())[2:-1], *made]


@settings(deadline=None)
@given(SECRETS, st.text(max_size=20))
def test_a_secret_at_a_cut_is_hidden_before_the_cut(secret: str, before: str) -> None:
    text = before + "-" * (MAX_MESSAGE - len(before) - 12) + secret
    assert secret[:6] not in plain_error(ValueError(text), hide=Redactor([secret])).message[-30:]


def test_passwords_of_urls_are_hidden_as_written_and_decoded() -> None:
    redact = Redactor(urls=["postgresql://app:p%40ss-w0rd-x@host/db?sslpassword=other-secret"])
    assert redact("tried p@ss-w0rd-x, p%40ss-w0rd-x and other-secret") == "tried ***, *** and ***"


def test_an_unknown_url_in_a_text_loses_its_password() -> None:
    assert Redactor()("cannot open 'postgresql://a:b@h/db', sorry") == "cannot open 'postgresql://a:***@h/db', sorry"
    assert Redactor()("connect with password='top secret' now") == "connect with password=*** now"


def test_a_short_secret_hides_only_whole_words() -> None:
    assert Redactor(["postgres"])("postgresql as postgres") == f"postgresql as {MASK}"


def test_secrets_are_known_by_their_names() -> None:
    assert all(map(names_secret, ["password", "api_key", "API-TOKEN".lower(), "client_secret"]))
    assert not any(map(names_secret, ["passfile", "since", "passive", "key"]))
