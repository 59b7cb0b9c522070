"""Fixtures of tests with a worker that runs against an aggregator made for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_aggregator import AddOne, Centre


@pytest.fixture
def centre(request: pytest.FixtureRequest) -> Iterator[Centre]:
    made = Centre(request.node.name[:60])
    yield made
    made.close()


@pytest.fixture
def trainer() -> AddOne:
    return AddOne()
