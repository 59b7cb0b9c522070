"""What a service has loaded is not searched for garbage again; garbage from before and after still goes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from fledge.process.memory import keep_what_is_here


class Ring:
    """Keeps itself alive, so that only a search for garbage ends it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_in_use_is_left_out_of_every_later_search() -> None:
    held = Ring()
    keep_what_is_here()
    assert gc.get_freeze_count() > 1000
    assert not any(each is held for each in gc.get_objects())


def test_garbage_from_before_is_gone_and_not_kept_for_ever() -> None:
    gone = weakref.ref(Ring())
    keep_what_is_here()
    assert gone() is None


def test_garbage_from_afterwards_is_found() -> None:
    keep_what_is_here()
    gone = weakref.ref(Ring())
    gc.collect()
    assert gone() is None
