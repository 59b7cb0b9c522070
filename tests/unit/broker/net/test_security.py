"""Where plain text is allowed, which proxy is on the way, whom TLS believes, and who gets which URLs."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from broker.blobs.open import open_blobs
from broker.blobs.s3.grants import Granted, Granter
from broker.blobs.s3.presigned import PresignedBlobs
from broker.blobs.s3.url import parse_s3_url
from broker.net.proxy import Proxy, parse_proxy, proxy_for
from broker.net.tls import Tls, check_plain, is_local
from broker.transport.open import open_transport
from broker.transport.rabbitmq.amqp import parse_amqp_url
from protocol import limits
from protocol.errors import ConfigError
from protocol.messages import Grant, Request
from tests.support.certificates import make_authority
from tests.support.short_lived import make_client_certificate

NAME = "ab" * 32


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "::1"])
def test_this_machine_is_known_by_its_name(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize(
    "host", ["broker.example", "10.0.0.1", "127.0.0.1.example", "localhost.example", "0.0.0.0", "::", "2130706433", ""]
)
def test_another_machine_is_not_taken_for_this_one(host: str) -> None:
    assert not is_local(host)


def test_plain_text_leaves_this_machine_only_if_that_was_asked_for() -> None:
    check_plain("broker b", "broker.example", encrypted=True, insecure=False)
    check_plain("broker b", "broker.example", encrypted=False, insecure=True)
    check_plain("broker b", "::1", encrypted=False, insecure=False)
    with pytest.raises(ConfigError, match=r"^broker b: plain text is only for localhost; .* insecure = true"):
        check_plain("broker b", "broker.example", encrypted=False, insecure=False)


def test_opening_refuses_plain_text_to_another_machine_without_showing_secrets() -> None:
    with pytest.raises(ConfigError, match=r"broker amqp://broker\.example:5672/%2F: plain text") as refused:
        open_transport("amqp://user:hunter2@broker.example")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"store s3://store\.example/bucket: plain text") as refused:
        open_blobs("s3://user:hunter2@store.example/bucket")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match="plain text"):
        PresignedBlobs.from_url("s3://store.example/bucket", _never, "site-a")
    open_transport("amqp://user:hunter2@broker.example", insecure=True).close()
    open_blobs("s3://user:hunter2@store.example/bucket", insecure=True).close()


def _never(request: Request) -> Grant:
    raise AssertionError(request)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy.example", Proxy(host="proxy.example", port=80)),
        ("proxy.example:3128", Proxy(host="proxy.example", port=3128)),
        ("http://[::1]:3128/", Proxy(host="::1", port=3128)),
        (
            "https://us%40er:p%3Aw@proxy.example?cacertfile=%2Fetc%2Fca.pem",
            Proxy(host="proxy.example", port=443, tls=True, user="us@er", password="p:w", ca="/etc/ca.pem"),
        ),
    ],
)
def test_a_proxy_url_is_taken_apart(url: str, expected: Proxy) -> None:
    assert parse_proxy(url) == expected


def test_neither_text_nor_repr_of_a_proxy_shows_who_we_are() -> None:
    proxy = parse_proxy("https://doctor:hunter2@proxy.example:3128")
    assert str(proxy) == "https://proxy.example:3128"
    assert "hunter2" not in repr(proxy)
    assert "doctor" not in repr(proxy)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("socks5://u:hunter2@proxy.example", "expected http"),
        ("http://u:hunter2@:3128", "expected http"),
        ("http://u:hunter2@proxy.example/path", "expected http"),
        ("http://u:hunter2@proxy.example:port", "port has to be a number"),
        ("https://u:hunter2@proxy.example?ca=x", "only option"),
        ("http://u:hunter2@proxy.example?cacertfile=x", "needs https"),
        ("http://[u:hunter2", "IPv6"),
    ],
)
def test_a_wrong_proxy_url_is_explained_without_its_password(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        parse_proxy(url, "HTTPS_PROXY")
    assert str(refused.value).startswith("HTTPS_PROXY: ")
    assert "hunter2" not in str(refused.value)


OUT = {"HTTPS_PROXY": "http://outer.example:1", "HTTP_PROXY": "http://never.example"}


@pytest.mark.parametrize(
    ("host", "encrypted", "explicit", "environ", "proxy"),
    [
        ("broker.example", True, None, {}, None),
        ("broker.example", True, None, OUT, "outer.example"),
        ("broker.example", True, None, OUT | {"https_proxy": "inner.example:1"}, "inner.example"),
        ("broker.example", True, None, OUT | {"https_proxy": ""}, "outer.example"),
        ("broker.example", True, "http://given.example", OUT, "given.example"),
        ("broker.example", False, None, OUT, None),
        ("broker.example", False, "http://given.example", OUT, "given.example"),
        ("localhost", True, None, OUT, None),
        ("127.0.0.1", True, "http://given.example", OUT, "given.example"),
        ("broker.example", True, "http://given.example", {"NO_PROXY": "*"}, None),
        ("broker.example", True, None, OUT | {"no_proxy": "other.example, .example"}, None),
    ],
)
def test_the_proxy_is_the_one_that_was_given_or_the_environments(
    host: str, encrypted: bool, explicit: str | None, environ: dict[str, str], proxy: str | None
) -> None:
    found = proxy_for(host, 443, encrypted=encrypted, explicit=explicit, environ=environ)
    assert (found.host if found else None) == proxy


@pytest.mark.parametrize(
    ("entries", "host", "spared"),
    [
        ("example", "broker.example", True),
        (".example", "broker.example", True),
        ("*.example", "broker.example", True),
        ("BROKER.Example", "broker.example", True),
        ("ker.example", "broker.example", False),
        ("broker.example:443", "broker.example", True),
        ("broker.example:5671", "broker.example", False),
        ("10.0.0.0/8", "10.2.3.4", True),
        ("10.0.0.0/8", "11.2.3.4", False),
        ("10.2.3.4", "10.2.3.4", True),
        ("10.0.0.0/8", "broker.example", False),
        ("10.2.3.4:443", "10.2.3.4", True),
        ("fd00::/8", "fd00::1", True),
        ("[fd00::1]", "fd00::1", True),
        ("[fd00::1]:443", "fd00::1", True),
        ("a.example,,  b.example\t.c.example", "x.c.example", True),
        (" , ", "broker.example", False),
        (".", "broker.example", False),
    ],
)
def test_no_proxy_spares_names_addresses_and_networks(entries: str, host: str, spared: bool) -> None:
    environ = OUT | {"NO_PROXY": entries}
    assert (proxy_for(host, 443, encrypted=True, explicit=None, environ=environ) is None) is spared


def test_tls_is_never_older_than_1_3() -> None:
    context = Tls().context("broker b")
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_unusable_certificate_files_are_named(tmp_path: Path) -> None:
    make_authority(tmp_path, "ca")
    make_authority(tmp_path, "other")
    ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "ca.pem", "other.key"))
    with pytest.raises(ConfigError, match=r"^broker b: cacertfile '.*ghost\.pem' cannot be used"):
        Tls(ca=str(tmp_path / "ghost.pem")).context("broker b")
    with pytest.raises(
        ConfigError, match=r"certfile '.*ca\.pem' and keyfile '.*other\.key' cannot .* the key has to fit"
    ):
        Tls(ca=ca, cert=cert, key=key).context("broker b")
    with pytest.raises(ConfigError, match="keyfile None cannot be used"):
        Tls(ca=ca, cert=cert).context("broker b")


def test_an_expired_certificate_is_known_and_an_unreadable_one_is_not_called_so(tmp_path: Path) -> None:
    make_authority(tmp_path, "ca")
    make_client_certificate(tmp_path, "site", authority="ca", common_name="site-a", seconds=60)
    now = datetime.now(UTC).timestamp()
    files = Tls(cert=str(tmp_path / "site.pem"))
    assert files.expired(now) is None
    end = files.expired(now + 61)
    assert end is not None
    assert 55 < end.timestamp() - now < 61
    assert Tls().expired(now) is None
    assert Tls(cert=str(tmp_path / "ghost.pem")).expired(now) is None
    assert Tls(cert=str(tmp_path / "site.key")).expired(now) is None


def test_files_of_the_url_win_as_a_whole_over_those_of_the_configuration() -> None:
    ours = Tls(ca="ca.pem", cert="c.pem", key="k.pem")
    assert parse_amqp_url("amqps://h/", ours).files == ours
    assert parse_amqp_url("amqps://h/", ours).user is None
    assert parse_amqp_url("amqps://u:p@h/", ours).user == "u"
    assert parse_amqp_url("amqp://localhost/", ours).user == "guest"
    assert parse_amqp_url("amqps://h/?cacertfile=x.pem", ours).files == Tls(ca="x.pem")
    assert parse_s3_url("s3s://h/bucket", ours, environ={}).files == ours
    url = parse_s3_url("s3s://h/bucket?certfile=x.pem&keyfile=y.pem", ours, environ={})
    assert url.files == Tls(cert="x.pem", key="y.pem")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://k:hush@h/bucket?cacertfile=ca.pem", "need s3s://"),
        ("s3s://k:hush@h/bucket?keyfile=k.pem", "keyfile without certfile"),
        ("s3s://k:hush@[h/bucket", "not an IPv6 address"),
        ("s3s://k:hush@h:99999/bucket", "port has to be a number"),
    ],
)
def test_a_wrong_store_url_is_explained_without_its_secret(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        parse_s3_url(url, environ={})
    assert "hush" not in str(refused.value)


class Scribe:
    """Signs by writing down what was signed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def presign_put(self, key: str, seconds: int, *, at: float | None = None) -> str:
        return f"{self._name} put {key} {seconds} {at}"

    def presign_get(self, key: str, seconds: int, *, at: float | None = None) -> str:
        return f"{self._name} get {key} {seconds} {at}"


def grant(request: Request, site: str = "site-a") -> Granted:
    return Granter(Scribe("up"), Scribe("down"), "demo").grant(site, request, 100.5)


def test_a_site_gets_urls_in_the_order_it_asked_each_signed_by_the_identity_for_it() -> None:
    keys = (f"models/{NAME}", f"records/{NAME}", "heads/demo")
    granted = grant(Request(puts=(bytes.fromhex(NAME), bytes(32)), gets=keys))
    assert granted.refused == ""
    assert granted.expires == 3700
    assert granted.urls == (
        f"up put up/site-a/{NAME} 3600 100.5",
        f"up put up/site-a/{'0' * 64} 3600 100.5",
        *(f"down get {key} 3600 100.5" for key in keys),
    )


@pytest.mark.parametrize(
    "key",
    [
        f"up/site-b/{NAME}",
        f"up/site-a/{NAME}",
        f"state/{NAME}",
        "heads/other",
        "models/",
        f"models/../state/{NAME}",
        f"models/{NAME}?versionId=1",
        f"models/{NAME}\n",
        f"/models/{NAME}",
        "",
    ],
)
def test_a_request_for_anything_else_is_refused_as_a_whole(key: str) -> None:
    granted = grant(Request(puts=(), gets=(f"models/{NAME}", key)))
    assert granted.urls == ()
    assert granted.refused == "1 of 2 objects are not published"


def test_an_operator_puts_below_a_prefix_of_its_own_and_gets_no_head() -> None:
    granter = Granter(Scribe("up"), Scribe("down"), "demo")
    request = Request(puts=(bytes.fromhex(NAME),), gets=(f"models/{NAME}", f"records/{NAME}"))
    assert granter.grant_operator("alice", request, 100.5).urls == (
        f"up put bundles/alice/{NAME} 3600 100.5",
        f"down get models/{NAME} 3600 100.5",
        f"down get records/{NAME} 3600 100.5",
    )
    for key in ("heads/demo", f"bundles/alice/{NAME}", f"up/site-a/{NAME}", f"state/{NAME}"):
        assert granter.grant_operator("alice", Request(puts=(), gets=(key,)), 100.5).urls == ()
    with pytest.raises(ConfigError, match="cannot name"):
        granter.grant_operator("../bob", request, 100.5)


def test_more_urls_than_the_limit_are_refused() -> None:
    half = limits.URLS // 2
    full = Request(puts=(bytes(32),) * half, gets=(f"models/{NAME}",) * half)
    assert len(grant(full).urls) == limits.URLS
    over = Request(puts=(bytes(32),) * half, gets=(f"models/{NAME}",) * (half + 1))
    assert grant(over).urls == ()
    assert "257 URLs at once, at most 256" in grant(over).refused


def test_a_name_that_is_no_sites_gets_nothing() -> None:
    with pytest.raises(ConfigError, match="cannot name a site"):
        grant(Request(puts=(bytes(32),), gets=()), site="../site-b")


def test_the_answer_carries_the_head_unless_it_is_too_large() -> None:
    granted = grant(Request(puts=(), gets=()))
    assert granted.answer(bytes(16), b"head") == Grant(message=bytes(16), head=b"head", urls=(), expires=3700)
    assert granted.answer(bytes(16), None).head == b""
    assert granted.answer(bytes(16), bytes(limits.HEAD + 1)).head == b""
