"""What a training runs under: seeds, progress, the order to stop."""

from __future__ import annotations

import threading
import time

import pytest

from protocol.errors import Aborted
from tests.support.training import control
from worker.api.trainer import training_seed


def test_every_training_has_a_seed_of_its_own() -> None:
    given = [
        (b"a", "r", 1, 1),
        (b"b", "r", 1, 1),
        (b"a", "q", 1, 1),
        (b"a", "r", 2, 1),
        (b"a", "r", 1, 2),
        (b"a", "r", 11, 1),
    ]
    seeds = [training_seed(*each) for each in given]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert training_seed(b"a", "r", 1, 1) == seeds[0]


def test_progress_is_a_share_and_its_metrics_are_finite() -> None:
    seen: list[tuple[float, dict[str, float]]] = []
    watched = control(on_progress=lambda fraction, metrics: seen.append((fraction, dict(metrics))))
    for fraction in (-1, 0.5, 7, float("nan")):
        watched.progress(fraction, loss=1, broken=float("inf"))
    assert [fraction for fraction, _ in seen] == [0, 0.5, 1, 0]
    assert all(metrics == {"loss": 1.0} for _, metrics in seen)


def test_waiting_ends_with_the_order_to_stop() -> None:
    abort = threading.Event()
    waiting = control(abort=abort)
    waiting.wait(0)
    assert not waiting.aborted
    threading.Timer(0.05, abort.set).start()
    began = time.monotonic()
    with pytest.raises(Aborted, match="run r from version 1"):
        waiting.wait(60)
    assert time.monotonic() - began < 30
    assert waiting.aborted
