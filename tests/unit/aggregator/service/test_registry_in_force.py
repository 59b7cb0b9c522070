"""Which registry an aggregator goes by, at its start and while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import WrongContext
from protocol.registry import sign_registry
from tests.support.federation import FEDERATION
from tests.support.running_aggregator import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.stop()


def test_an_older_registry_file_does_not_bring_back_whom_a_newer_one_revoked(bench: Bench) -> None:
    service = bench.start()
    newer = bench.federation.registry.revoke("site-1")
    service.update_registry(sign_registry(newer, bench.federation.root, FEDERATION, bytes(16)))
    bench.wait(lambda: service.rules.registry == newer)
    service.stop()
    service.join(10)
    assert bench.start().registry == newer


def test_what_the_rules_decide_late_does_not_bring_back_whom_a_newer_registry_revoked(bench: Bench) -> None:
    service = bench.start()
    older, registries = service.rules.registry, service._parts.registries
    service.stop()
    service.join(10)  # the rules hear of nothing more, as while they are busy with a sanction
    newer = bench.federation.registry.revoke("site-1")
    registries.update(sign_registry(newer, bench.federation.root, FEDERATION, bytes(16)))
    registries.follow(older)
    assert registries.intake.registry == newer


def test_a_registry_that_is_not_newer_is_refused(bench: Bench) -> None:
    service = bench.start()
    with pytest.raises(WrongContext, match="not newer"):
        service.update_registry(bench.federation.registry_record)
    assert service.rules.registry == bench.federation.registry
