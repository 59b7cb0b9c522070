"""The convergence benchmark keeps running, and its virtual clock tells the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from aggregator.strategy.base import Span, Strategy
from aggregator.strategy.strategies import FedAvg, FedBuff
from benchmarks.convergence import HORIZON, RULES, speed_up
from benchmarks.convergence_sim import Federation, History, Point, Silence
from benchmarks.convergence_tasks import Digits, Heart, dirichlet_split


class Counting:
    """A model of one number; each update adds one."""

    examples: Sequence[int] = (10, 10, 10, 10)

    def initial(self) -> Span:
        return np.zeros(1, np.float32)

    def train(self, site: int, model: Span) -> Span:
        return model + np.float32(1)

    def evaluate(self, model: Span) -> dict[str, float]:
        return {"value": float(model[0])}


def federation(strategy: Strategy, silence: Silence | None = None) -> History:
    seconds = [1.0, 2.0, 4.0, 5.0]
    return Federation(
        task=Counting(), strategy=strategy, seconds=seconds, horizon=20.0, release=0.0, silence=silence
    ).run()


def test_a_synchronous_round_takes_as_long_as_the_slowest_site() -> None:
    history = federation(FedAvg())
    assert [(point.time, point.metrics["value"]) for point in history.points] == [(5, 1), (10, 2), (15, 3), (20, 4)]


def test_a_silent_site_holds_up_a_synchronous_round_only() -> None:
    silence = Silence(site=0, start=2.0, end=12.0)
    assert [point.time for point in federation(FedAvg(), silence).points] == [5.0, 13.0, 18.0]
    assert len(federation(FedBuff(), silence).points) > 8


def test_an_asynchronous_federation_merges_what_its_sites_finish() -> None:
    history = federation(FedBuff())
    finished = 20 + 10 + 5 + 4
    assert finished - 2 <= history.merged + history.superseded + history.too_stale <= finished
    assert history.points[-1].version == history.merged // 2
    assert 1.0 < history.staleness < 2.0


def test_a_run_that_never_got_there_counts_as_if_it_had_at_the_horizon() -> None:
    def history(when: float, value: float) -> History:
        point = Point(time=when, version=1, metrics={"accuracy": value})
        return History(points=[point], merged=2, superseded=0, too_stale=0, staleness=0.0)

    base = [history(50.0, 0.96), history(80.0, 0.90)]
    other = [history(25.0, 0.95), history(100.0, 0.95)]
    assert speed_up(base, other) == (2.0 + HORIZON / 100) / 2


def test_the_same_seed_gives_the_same_history() -> None:
    def run() -> History:
        return Federation(task=Digits(7), strategy=FedBuff(), seconds=range(1, 9), horizon=12.0).run()

    first, second = run(), run()
    assert first == second
    assert first.points[-1].metrics["accuracy"] > 0.5


def test_dirichlet_shares_out_every_image_once() -> None:
    labels = np.repeat(np.arange(10), 60)
    parts = dirichlet_split(labels, 8, 0.5, np.random.default_rng(0))
    assert sorted(np.concatenate(parts).tolist()) == list(range(600))
    assert min(map(len, parts)) >= 16


def test_heart_reads_the_hospitals_as_flamby_does(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    for name in Heart.HOSPITALS:
        rows = []
        for _ in range(50):
            sick = int(dice.integers(2))
            row = [dice.normal(50 + 20 * sick, 5), dice.integers(2), dice.integers(1, 5), *dice.normal(100, 9, 2)]
            row += [dice.integers(2), dice.integers(3), *dice.normal(100, 9, 3), "?", "?", "?", sick * 3]
            rows.append(",".join(map(str, row)))
        rows.append(rows[0].replace(rows[0].split(",")[3], "?", 1))
        (tmp_path / f"processed.{name}.data").write_text("\n".join(rows) + "\n")
    task = Heart(tmp_path, 1)
    assert task.examples == [33] * 4
    model = task.initial()
    assert model.shape == (14,)
    for _ in range(20):
        model = np.mean([task.train(site, model) for site in range(4)], axis=0, dtype=np.float32)
    assert task.evaluate(model)["pooled"] > 0.9


@pytest.mark.parametrize("rule", RULES, ids=[label for label, *_ in RULES])
def test_every_rule_of_the_table_can_be_made(rule: tuple[str, str, dict[str, object], float]) -> None:
    from aggregator.strategy.strategies import strategy

    assert strategy(rule[1], **rule[2]).name == rule[1]
