"""Published models and channels: what a name means, and what may be ordered about it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from aggregator.domain.events import CommandArrived
from aggregator.rules.catalogue import Catalogue
from aggregator.rules.commands import about_models


def catalogue() -> Catalogue:
    return Catalogue(["first", "second"], {"production": ["first", "second"], "trial": ["first"], "gone": []})


def test_a_name_means_a_model_or_what_a_channel_names_now() -> None:
    found = {name: catalogue().resolve(name) for name in ("first", "production", "trial", "gone", "nothing")}
    assert found == {"first": "first", "production": "second", "trial": "first", "gone": "", "nothing": ""}
    assert catalogue().channels() == {"production": "second", "trial": "first"}
    assert [catalogue().has(name) for name in ("first", "trial", "gone", "nothing")] == [True, True, False, False]


def test_a_channel_that_is_rolled_back_names_what_it_named_before() -> None:
    models = catalogue()
    assert (models.before("production"), models.before("trial"), models.before("nothing")) == ("first", None, None)
    assert models.roll_back("production") == "first"
    assert models.resolve("production") == "first"
    models.publish("third")
    models.promote("third", "production")
    models.promote("third", "new")
    assert (models.resolve("production"), models.before("production")) == ("third", "first")
    assert models.channels()["new"] == "third"


@pytest.mark.parametrize(
    ("command", "arguments", "why"),
    [
        ("model.card", {"name": "first"}, "ok"),
        ("model.card", {"name": "production"}, "ok"),
        ("model.card", {"name": "nothing"}, "unknown_model"),
        ("model.card", {}, "bad_argument"),
        ("model.promote", {"name": "first", "channel": "production"}, "ok"),
        ("model.promote", {"name": "production", "channel": "trial"}, "unknown_model"),
        ("model.promote", {"name": "first", "channel": "second"}, "name_taken"),
        ("model.promote", {"name": "first"}, "bad_argument"),
        ("model.rollback", {"channel": "production"}, "ok"),
        ("model.rollback", {"channel": "trial"}, "no_model_before"),
        ("model.rollback", {"channel": 5}, "bad_argument"),
        ("model.list", {}, "ok"),
    ],
)
def test_an_order_about_models_needs_what_it_names(command: str, arguments: dict[str, Any], why: str) -> None:
    order = CommandArrived(delivery=cast(Any, "d"), operator="olga", counter=1, command=command, arguments=arguments)
    assert about_models(order, catalogue()) == why
