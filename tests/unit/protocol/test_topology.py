"""Names, and what has to exist on the broker."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol import topology
from protocol.errors import ConfigError

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize("site", ["a", "0", "site-1", "x" * 32, "a--b"])
def test_a_site_may_be_called(site: str) -> None:
    assert topology.check_site(site) == site


@pytest.mark.parametrize(
    "site",
    ["", "A", "a b", "-a", "a-", "a.b", "a_b", "x" * 33, "é", "a\n", "a/b", "..", "aggregator", "#", "*", "a\0", "٣"],
)
def test_a_site_may_not_be_called(site: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a site"):
        topology.check_site(site)
    for use in (lambda: topology.update_chunk(site, HEX), lambda: topology.topology([site])):
        with pytest.raises(ConfigError):
            use()


def test_names_are_the_documented_ones() -> None:
    assert topology.up_exchange("a") == "up.a"
    assert topology.in_queue("a") == "in.a"
    assert topology.event_exchange("a") == "ev.a"
    assert topology.event_queue("a") == "events.a"
    assert topology.down_queue("a") == "down.a"
    assert topology.inbox_queue("a") == "inbox.a"
    assert topology.update_chunk("a", HEX) == f"up/a/{HEX}"
    assert topology.model_chunk(HEX) == f"models/{HEX}"
    assert topology.state_chunk(HEX) == f"state/{HEX}"
    assert topology.bundle_key("olga", HEX) == f"bundles/olga/{HEX}"
    assert topology.record_key(HEX) == f"records/{HEX}"
    assert topology.head_key("cardiology") == "heads/cardiology"


KEYS: list[Callable[[str], str]] = [
    topology.model_chunk,
    topology.state_chunk,
    topology.record_key,
    lambda sha256: topology.update_chunk("a", sha256),
    lambda sha256: topology.bundle_key("a", sha256),
]


@pytest.mark.parametrize("sha256", ["", HEX[:-1], HEX + "0", HEX.upper(), "../" + HEX[3:], HEX[:-1] + "\n", HEX + "\n"])
@pytest.mark.parametrize("make_key", KEYS)
def test_an_object_key_ends_in_a_hash_and_nothing_else(make_key: Callable[[str], str], sha256: str) -> None:
    with pytest.raises(ConfigError, match="SHA-256"):
        make_key(sha256)


def test_every_binding_joins_what_is_declared_and_every_queue_is_bound_once() -> None:
    made = topology.topology(["a", "b"])
    exchanges = {exchange.name: exchange.type for exchange in made.exchanges}
    queues = {queue.name for queue in made.queues}
    assert len(exchanges) == len(made.exchanges)
    assert len(queues) == len(made.queues)
    assert sorted(binding.queue for binding in made.bindings) == sorted(queues)
    for binding in made.bindings:
        assert binding.exchange in exchanges
        assert bool(binding.key) == (exchanges[binding.exchange] == "direct")


def test_what_one_site_writes_only_the_aggregator_reads_and_what_it_reads_is_its_own() -> None:
    made = topology.topology(["a", "b"])
    reached = {exchange: [b.queue for b in made.bindings if b.exchange == exchange] for exchange in ("up.a", "ev.a")}
    assert reached == {"up.a": ["in.a"], "ev.a": ["events.a"]}
    assert [b.queue for b in made.bindings if b.exchange == topology.GLOBAL] == ["down.a", "down.b"]
    assert {b.key: b.queue for b in made.bindings if b.exchange == topology.DIRECT} == {
        "a": "inbox.a",
        "b": "inbox.b",
    }


def test_what_an_operator_writes_reaches_the_aggregator_alone() -> None:
    made = topology.topology(["a"], ["olga"])
    assert [b.queue for b in made.bindings if b.exchange == topology.COMMANDS] == ["inbox.aggregator"]
    assert [b.exchange for b in made.bindings if b.queue == "inbox.olga"] == [topology.DIRECT]


def test_a_flood_pushes_back_and_announcements_drop_the_oldest() -> None:
    queues = {queue.name: queue for queue in topology.topology(["a"]).queues}
    for name in ("in.a", "inbox.a", "inbox.aggregator"):
        assert queues[name].overflow == "reject-publish"
        assert queues[name].dead_letter
    for name in ("down.a", "events.a"):
        assert queues[name].overflow == "drop-head"
        assert not queues[name].dead_letter
        assert queues[name].max_length >= 16
    assert [name for name, queue in queues.items() if queue.single_active_consumer] == ["in.a"]
    assert not queues[topology.DEAD_LETTERS].dead_letter


def test_a_federation_without_sites_has_its_own_queues() -> None:
    made = topology.topology([])
    assert {queue.name for queue in made.queues} == {"dead.letters", "inbox.aggregator"}
    assert topology.topology(["a"]) == topology.topology(["a"])


def test_queues_hold_as_much_as_is_documented_and_say_no_or_forget_the_oldest() -> None:
    limits = {queue.name: (queue.max_length, queue.overflow) for queue in topology.topology(["a"], ["olga"]).queues}
    assert limits == {
        "dead.letters": (10_000, "reject-publish"),
        "in.a": (256, "reject-publish"),
        "events.a": (64, "drop-head"),
        "down.a": (64, "drop-head"),
        **dict.fromkeys(("inbox.aggregator", "inbox.olga", "inbox.a"), (1024, "reject-publish")),
    }
