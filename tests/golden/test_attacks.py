"""Every stored attack is refused, for the reason in its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import WireError
from tests.golden.make import ATTACKS, unpack
from tests.support.hostile import ACCEPTED, attacks
from tests.support.wire import read

STORED = sorted(ATTACKS.iterdir())


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name)
def test_a_stored_attack_is_refused_with_its_reason(path: Path) -> None:
    with pytest.raises(WireError) as refused:
        read(unpack(path.read_bytes()), kinds=ACCEPTED)
    assert refused.value.reason == path.name.split("--")[0]


def test_every_attack_that_can_be_made_is_stored() -> None:
    assert {path.name for path in STORED} == set(attacks())
