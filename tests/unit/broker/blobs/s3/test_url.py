"""Which URLs lead to an object: what is checked is what is called."""

from __future__ import annotations

import pytest
from urllib3.util import parse_url

from broker.blobs.s3.url import parse_s3_url

KEY = f"models/{'0' * 64}"
STORE = parse_s3_url("s3s://store.example:443/clinics/lung", environ={})
PATH = f"/clinics/lung/{KEY}"
TRICKS = [
    "https://@store.example{}",
    "https://evil.example\\@store.example{}",
    "https://store.example\\@evil.example{}",
    "https://store.example@evil.example{}",
    "https://store.example.evil.example{}",
    "https://store.example.{}",
    "https://store.example:4430{}",
    "http://store.example:443{}",
    "ftp://store.example{}",
    "https:store.example{}",
    "https:///store.example{}",
    "https:/\n/store.example{}",
    "https://store.exam\nple{}",
    "https://evil.example\t@store.example{}",
    "\nhttps://store.example{}",
    " https://store.example{}",
    "\x01https://store.example{}",
    "https://store\u3002example{}",
    "https://[store.example]{}",
    "https://store.example/x/..{}",
    "https://store.example/{}",
    "https://store.example{}\n",
    "https://store.example{}?a b\r\nX-Amz-Acl: public",
    "https://store.example{};x",
]


@pytest.mark.parametrize("url", TRICKS)
def test_a_url_that_any_parser_may_read_as_another_place_is_refused(url: str) -> None:
    assert not STORE.addresses(url.format(PATH), KEY)


@pytest.mark.parametrize("tail", ["", "?X-Amz-Signature=0", "?x#fragment", "#fragment"])
@pytest.mark.parametrize(
    "host", ["https://store.example", "HTTPS://STORE.example:443", "https://store.example:", "https://store.example:0"]
)
def test_what_is_accepted_is_what_the_http_library_calls(host: str, tail: str) -> None:
    url = f"{host}{PATH}{tail}"
    assert STORE.addresses(url, KEY)
    called = parse_url(url)
    assert (called.scheme, called.host, called.port or 443, called.path) == ("https", "store.example", 443, PATH)


@pytest.mark.parametrize("path", [PATH.replace("lung", "%6cung"), PATH.replace("models", "heads"), f"{PATH}/", "/"])
def test_a_url_of_another_object_is_refused(path: str) -> None:
    assert not STORE.addresses(f"https://store.example{path}", KEY)
