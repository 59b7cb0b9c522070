"""Fingerprints of data sets: equal for equal data, and nothing without the key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protocol.errors import TrainingError
from worker.api.fingerprint import fingerprint

KEY = bytes(range(32))


def test_the_order_of_examples_does_not_matter_but_their_number_does() -> None:
    assert fingerprint([b"a", b"b"], KEY) == fingerprint([b"b", b"a"], KEY)
    assert fingerprint([b"a", b"b", b"b"], KEY) != fingerprint([b"a", b"b"], KEY)
    assert fingerprint(iter([1, 2, 3]), KEY).count == 3


def test_another_key_gives_another_root() -> None:
    assert fingerprint([b"a"], KEY).root != fingerprint([b"a"], KEY[::-1]).root


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"1", "1"),
        (1, 1.0),
        (1, True),
        (None, "None"),
        (("a", "bc"), ("ab", "c")),
        ([1, [2]], [[1], 2]),
        (([1], 2), ([1, 2],)),
        ({"a": 1}, {"a": 2}),
        (np.zeros(4, np.float32), np.zeros(4, np.int32)),
        (np.zeros((2, 2)), np.zeros(4)),
        (np.array(1.0), np.array(-1.0)),
    ],
)
def test_different_examples_have_different_fingerprints(one: Any, other: Any) -> None:
    assert fingerprint([one], KEY) != fingerprint([other], KEY)


def test_a_mapping_counts_whatever_its_order_and_an_array_whatever_its_layout() -> None:
    assert fingerprint([{"a": 1, "b": 2}], KEY) == fingerprint([{"b": 2, "a": 1}], KEY)
    array = np.arange(6.0).reshape(2, 3)
    assert fingerprint([array], KEY) == fingerprint([np.asfortranarray(array)], KEY)


def test_short_keys_and_unknown_examples_are_refused() -> None:
    with pytest.raises(TrainingError, match="at least 16 bytes, not 3"):
        fingerprint([1], b"abc")
    with pytest.raises(TrainingError, match="object"):
        fingerprint([object()], KEY)
