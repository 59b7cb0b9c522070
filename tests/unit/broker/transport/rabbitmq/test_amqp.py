"""AMQP URLs."""

from __future__ import annotations

import pytest

from broker.transport.open import open_transport
from broker.transport.rabbitmq.amqp import parse_amqp_url, queue_arguments
from protocol.errors import ConfigError
from protocol.topology import Queue


def test_a_full_url_is_taken_apart() -> None:
    url = parse_amqp_url("amqp://us%40er:p%2Fw%3A@broker.example:5999/my%2Fvhost?heartbeat=7")
    assert (url.host, url.port, url.vhost, url.user, url.password) == (
        "broker.example",
        5999,
        "my/vhost",
        "us@er",
        "p/w:",
    )
    assert (url.tls, url.heartbeat, url.tls_context()) == (False, 7, None)


@pytest.mark.parametrize(
    ("text", "port", "vhost"),
    [("amqp://h", 5672, "/"), ("amqps://h/", 5671, "/"), ("amqp://h/v", 5672, "v"), ("amqp://[::1]:1/v", 1, "v")],
)
def test_what_a_url_leaves_out_has_the_usual_value(text: str, port: int, vhost: str) -> None:
    url = parse_amqp_url(text)
    assert (url.port, url.vhost, url.user, url.password, url.heartbeat) == (port, vhost, "guest", "guest", 30)


def test_a_client_certificate_is_the_login_unless_a_user_is_named() -> None:
    assert parse_amqp_url("amqps://h/?certfile=c.pem&keyfile=k.pem").user is None
    assert parse_amqp_url("amqps://u:p@h/?certfile=c.pem").user == "u"
    assert parse_amqp_url("amqps://h/?cacertfile=ca.pem").user == "guest"


def test_neither_text_nor_repr_shows_a_password() -> None:
    url = parse_amqp_url("amqp://user:hunter2@h:1/a%2Fb")
    assert str(url) == "amqp://h:1/a%2Fb"
    assert "hunter2" not in repr(url)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://u:hunter2@h/", "expected amqp"),
        ("amqp://u:hunter2@/v", "expected amqp"),
        ("amqp://u:hunter2@h:port/", "port has to be a number"),
        ("amqp://u:hunter2@h/?heartbeat=soon", "heartbeat has to be a number"),
        ("amqp://u:hunter2@h/?heartbeat", "name=value"),
        ("amqp://u:hunter2@h/?heartbeat=0", "between 1 and 30"),
        ("amqp://u:hunter2@h/?heartbeat=31", "between 1 and 30"),
        ("amqp://u:hunter2@h/?verify=none", "unknown options"),
        ("amqp://u:hunter2@h/?cacertfile=ca.pem", "need amqps"),
        ("amqps://u:hunter2@h/?keyfile=k.pem", "keyfile without certfile"),
        ("amqp://u:hunter2@h/a/b", "%2F"),
    ],
)
def test_a_wrong_url_is_refused_in_words_and_without_its_password(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        parse_amqp_url(text)
    assert "hunter2" not in str(refused.value)


def test_an_unknown_scheme_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match="unknown scheme") as refused:
        open_transport("kafka://user:hunter2@broker/")
    assert "hunter2" not in str(refused.value)


def test_queues_are_declared_with_what_never_changes_and_nothing_else() -> None:
    queue = Queue(name="q", max_length=1, overflow="drop-head")
    assert queue_arguments(queue) == {"x-queue-type": "quorum"}
    single = Queue(name="q", max_length=1, overflow="drop-head", single_active_consumer=True)
    assert queue_arguments(single) == {"x-queue-type": "quorum", "x-single-active-consumer": True}
