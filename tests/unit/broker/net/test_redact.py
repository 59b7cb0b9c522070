"""Logins in URLs: read in one way only or refused with what to write, and in no text whatever characters they have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.blobs.open import check_store_url
from broker.blobs.s3.url import parse_s3_url
from broker.net import redact
from broker.net.proxy import parse_proxy
from broker.net.redact import basic_login, redacted
from broker.net.urls import split_url, with_login, without_login
from broker.transport.open import check_broker_url
from broker.transport.rabbitmq.amqp import parse_amqp_url
from deploy.servers.apply import Management
from fledge.process.tracebacks import traceback_of
from protocol.errors import ConfigError

NASTY = "/@:%?#+ []\\\"'&=;,<>{}|^`~!$()*\t\n\r\0é€\u00a0\u2028\ufeff\ud800"
TEXT = st.text(st.one_of(st.sampled_from(NASTY), st.characters()), max_size=12)
USER = TEXT.filter(lambda user: ":" not in user)
SECRET = st.tuples(TEXT, TEXT).map(lambda around: f"{around[0]}hunter2-MARK{around[1]}")
T = TypeVar("T")
SCHEMES = ("amqp", "amqps", "s3", "s3s", "http", "https")
READERS: dict[str, Callable[[str], object]] = {
    "amqp": parse_amqp_url,
    "amqps": check_broker_url,
    "s3": lambda url: parse_s3_url(url, environ={}),
    "s3s": check_store_url,
    "http": Management,
    "https": lambda url: parse_proxy(url, "HTTPS_PROXY"),
}
"""What reads URLs of each scheme."""


def attempted(read: Callable[[], T]) -> T | ConfigError:
    """What was read, or why it was not."""
    try:
        return read()
    except ConfigError as error:
        return error


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_an_encoded_login_is_read_as_it_was_meant(user: str, password: str) -> None:
    url = with_login("amqps://hub.example:5671/vhost", user, password)
    read = split_url(url, "broker URL")
    assert (read.user, read.password) == (user, password)
    assert (read.host, read.port, read.path) == ("hub.example", 5671, "/vhost")
    assert without_login(url, "broker URL")[0] == "amqps://hub.example:5671/vhost" or not user


@settings(deadline=None)
@given(st.sampled_from(SCHEMES), USER, SECRET)
@example("s3", "AKIDKEY", "abc/hunter2-MARKdef+gh=")
@example("amqp", "user", "p@hunter2-MARK")
@example("amqp", "user", "pa[hunter2-MARK")
@example("amqp", "user", "12/p@hunter2-MARK")
@example("amqp", "user", "℀hunter2-MARK")
def test_a_login_that_nobody_encoded_is_read_as_it_was_meant_or_refused(scheme: str, user: str, password: str) -> None:
    url = f"{scheme}://{user}:{password}@hub.example:9000/bucket"
    read = attempted(lambda: split_url(url, "the URL"))
    if isinstance(read, ConfigError):
        assert "MARK" not in str(read)
        assert re.search("%[0-9A-F]{2}|encode", str(read)), "what to write instead"
    else:
        assert (read.user, read.password) == (unquote(user), unquote(password))
        assert (read.host, read.port, read.path) == ("hub.example", 9000, "/bucket")
        assert "MARK" not in f"{read} {read!r}"


@settings(deadline=None)
@given(st.sampled_from(SCHEMES), USER, SECRET, st.sampled_from(("", ":9000", ":port", "/", "/a@b")))
@example("amqp", "us er", "é MARK's \u202e", "")
def test_no_message_and_no_text_about_a_url_shows_its_login(scheme: str, user: str, password: str, rest: str) -> None:
    url = f"{scheme}://{user}:{password}@127.0.0.1{rest}"
    redact._SECRETS = redact.Secrets()
    made = attempted(lambda: READERS[scheme](url))
    assert "MARK" not in f"{made} {made!r}"
    if isinstance(made, ConfigError):
        assert "MARK" not in traceback_of(made)
    sent = quote(password, safe="", errors="replace")
    for text in (url, repr(url), json.dumps({"url": url}), f"tried {url}: no", f"http://h/?key={sent}", password):
        assert "MARK" not in redacted(text)
    raw = url.encode("utf-8", "surrogatepass")
    for text in (
        ascii(url),
        repr(raw),
        repr(f'it\'s "{url}"'),
        repr(b'it\'s "%s"' % raw),
        json.dumps([url], ensure_ascii=False),
    ):
        assert "MARK" not in redacted(text)
    login = basic_login(user, password)
    assert login not in redacted(f"sent Basic {login} to it")


def test_a_password_that_is_a_word_takes_no_words_out_of_sentences() -> None:
    split_url("amqp://me:password@hub.example/v", "broker URL")
    assert redacted("check user and password at amqp://me:password@h") == "check user and password at amqp://***@h"


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"])).filter(str.isprintable))
def test_a_url_that_nothing_has_read_shows_no_login_either(password: str) -> None:
    shown = redacted(f"Connecting to amqp://me:MARK{password}MARK@hub.example/v failed")
    assert shown == "Connecting to amqp://***@hub.example/v failed"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("write s3://KEY:SECRET@host:port/bucket or amqp(s)://user:password@host", None),
        ("nothing of the kind: a@b, 10:30, s3://host/b", None),
        ("store file:///srv/me@home/store is full", None),
        ("file:///srv/x,s3://K:hunter2@h/b", "file:///srv/x,s3://***@h/b"),
        # Reported of others: celery 1338, onestep 93, databricks-sql-python 340, agbcloud-sdk 14, minio-py 345.
        (
            "to amqp://me@amqp%3A%2F%2Fme%3Ahush%40h%3A5672%2F%2Fx%3Bamqp%3A%2F%2Fme%3Ahush%40h:5672//x",
            "***%40h:5672//x",
        ),
        ("cannot connect to amqp://me:hush@h//x;amqp://me:hush@h2//x: timed out", "to amqp://***@h2//x: timed out"),
        (
            '"GET /b/o?Expires=9&OSSAccessKeyId=LTAI&Signature=ab%2F HTTP/1.1" 200',
            'OSSAccessKeyId=***&Signature=*** HTTP/1.1" 200',
        ),
        (
            "Authorization: AWS4-HMAC-SHA256 Credential=AK/1/s3/aws4_request, SignedHeaders=host, Signature=ab12",
            "Signature=***",
        ),
        ("GET http://h/b/o?X-Amz-Credential=AK%2F1&X-Amz-Signature=ab12&x=1", "***&X-Amz-Signature=***&x=1"),
        (
            "Invalid header value b'AWS4-HMAC-SHA256 Credential=AK\\n/1/s3, Signature=ab12'",
            "Credential=***, Signature=***'",
        ),
        ("{'Authorization': 'Basic aHVudGVyMg=='}", "{'Authorization': 'Basic ***'}"),
        ("Proxy-Authorization: Bearer abc.def", "Proxy-Authorization: Bearer ***"),
    ],
)
def test_signatures_and_headers_go_and_ordinary_text_stays(text: str, shown: str | None) -> None:
    assert redacted(text) == text if shown is None else redacted(text).endswith(shown)


@pytest.mark.parametrize(("name", "key"), [("FLEDGE_S3_ACCESS_KEY", "AKID\n"), ("FLEDGE_S3_SECRET_KEY", "hush-hush\r")])
def test_a_key_with_a_line_break_is_refused_before_a_header_repeats_it(name: str, key: str) -> None:
    with pytest.raises(ConfigError, match="is it a line break") as refused:
        parse_s3_url("s3s://store.example/bucket", environ={name: key})
    assert key.strip() not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("amqp://me:hush#hush@h:5672/v", "write # as %23"),  # celery 5876: such a password failed in silence
        ("s3://AKIA:B/hush/A@s3.example/bucket", "write / as %2F"),  # apt-golang-s3 11: `invalid port ":B/hush/A"`
        ("s3://key:my/hush@s3host/us-east-1/log?ssl=true", "write / as %2F"),  # fn 1124: taken for a region
        ("amqp://me:hush@h:5672//x;amqp://me:hush@h2:5672//x", "write / as %2F"),  # celery 1338: two brokers in one
        ("amqp://me:hush%@h:5672/v", "write it as %25"),
    ],
)
def test_what_others_reported_is_refused_with_what_to_write(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        split_url(url, "the URL")
    assert "hush" not in str(refused.value)


def test_a_key_that_was_put_where_a_url_belongs_is_not_shown() -> None:
    for check in (check_broker_url, check_store_url):
        with pytest.raises(ConfigError, match="unknown scheme") as refused:
            check("AKIDKEY:abc/MARKdef+gh=")
        assert "MARK" not in str(refused.value)


def test_the_amqp_login_may_hold_an_at_sign_as_it_is() -> None:
    read = parse_amqp_url("amqp://user:p@ss@localhost:5672/v")
    assert (read.password, read.host, read.vhost) == ("p@ss", "localhost", "v")
