"""Plans: every scalar of a merge from journal values, the same at the merge and in the audit."""

from __future__ import annotations

from typing import Any

import pytest

from aggregator.domain.state import UpdateRow, UpdateState
from aggregator.rules.planning import members
from aggregator.strategy.strategies import strategy
from aggregator.strategy.weighting import NORMS_KEPT, SiteStatistics

FEDBUFF, FEDAVG = strategy("fedbuff"), strategy("fedavg")


def row(order: int, site: str, **changes: Any) -> UpdateRow:
    values = {
        "order": order,
        "id": order.to_bytes(16, "big"),
        "run": "run",
        "site": site,
        "epoch": 0,
        "sequence": order,
        "base_version": 0,
        "state": UpdateState.VALIDATED,
        "examples": 10,
        "seconds": 1.0,
        "absent": (),
        "norm": 1.0,
        **changes,
    }
    return UpdateRow(**values)


def test_members_keep_the_order_they_are_given_in() -> None:
    rows = [row(2, "beta"), row(1, "alpha"), row(3, "alpha")]
    assert [member.order for member in members(rows, 0, FEDBUFF, SiteStatistics(), ())] == [2, 1, 3]


def test_staleness_is_the_distance_from_the_current_version() -> None:
    made = members([row(1, "alpha", base_version=1), row(2, "beta", base_version=4)], 4, FEDBUFF, SiteStatistics(), ())
    assert [member.staleness for member in made] == [3, 0]
    assert [member.staleness_weight for member in made] == [0.5, 1.0]


def test_example_weights_average_one_over_the_sites_that_take_part() -> None:
    rows = [row(1, "alpha", examples=30), row(2, "beta", examples=10)]
    weights = {member.site: member.example_weight for member in members(rows, 0, FEDBUFF, SiteStatistics(), ())}
    assert weights == {"alpha": pytest.approx(1.5), "beta": pytest.approx(0.5)}


def test_a_slow_site_counts_for_the_updates_it_has_no_time_to_send() -> None:
    rows = [row(1, "alpha", seconds=1.0), row(2, "beta", seconds=3.0)]
    weights = {member.site: member.example_weight for member in members(rows, 0, FEDBUFF, SiteStatistics(), ())}
    assert weights == {"alpha": pytest.approx(0.5), "beta": pytest.approx(1.5)}
    synchronous = members(rows, 0, FEDAVG, SiteStatistics(), ())
    assert [member.example_weight for member in synchronous] == [1.0, 1.0]


def test_live_sites_heard_of_before_share_the_weights_and_unheard_ones_do_not() -> None:
    site_statistics = SiteStatistics()
    site_statistics.observe("gamma", examples=20, seconds=1.0)
    rows = [row(1, "alpha", examples=10)]
    [member] = members(rows, 0, FEDBUFF, site_statistics, ("alpha", "gamma", "unheard"))
    assert member.example_weight == pytest.approx(2 * 10 / 30)
    [alone] = members(rows, 0, FEDAVG, site_statistics, ("alpha", "gamma"))
    assert alone.example_weight == 1.0


def test_a_norm_far_above_the_median_is_clipped_once_enough_are_known() -> None:
    site_statistics = SiteStatistics(norms=[1.0] * 5)
    huge, plain = members([row(1, "alpha", norm=40.0), row(2, "beta", norm=9.0)], 0, FEDBUFF, site_statistics, ())
    assert (huge.clip, plain.clip) == (0.25, 1.0)
    [first] = members([row(1, "alpha", norm=40.0)], 0, FEDBUFF, SiteStatistics(norms=[1.0] * 4), ())
    assert first.clip == 1.0


def test_the_weight_is_the_product_of_its_three_factors() -> None:
    site_statistics = SiteStatistics(norms=[1.0] * 5)
    [member] = members([row(1, "alpha", norm=20.0)], 3, FEDBUFF, site_statistics, ())
    assert member.weight == 0.5 * 1.0 * 0.5


def test_planning_changes_nothing_and_gives_the_same_again() -> None:
    site_statistics = SiteStatistics(norms=[1.0, 2.0])
    site_statistics.observe("alpha", examples=10, seconds=1.0)
    rows = [row(1, "alpha", examples=99), row(2, "beta")]
    first = members(rows, 0, FEDBUFF, site_statistics, ("alpha", "beta"))
    assert site_statistics.stats["alpha"].examples == 10
    assert members(rows, 0, FEDBUFF, site_statistics, ("beta", "alpha")) == first


def test_a_members_tensors_that_are_absent_stay_named() -> None:
    [member] = members([row(1, "alpha", absent=("bias",))], 0, FEDBUFF, SiteStatistics(), ())
    assert member.absent == ("bias",)


def test_the_standing_of_merged_versions_is_folded_in_their_order_and_keeps_the_newest_norms() -> None:
    site_statistics = SiteStatistics()
    for order in range(1, NORMS_KEPT + 6):
        made = members([row(order, "alpha", norm=float(order), examples=order)], 0, FEDBUFF, site_statistics, ())
        site_statistics.merged(made)
    assert site_statistics.stats["alpha"].updates == NORMS_KEPT + 5
    assert site_statistics.stats["alpha"].examples == NORMS_KEPT + 5
    assert site_statistics.norms == [float(n) for n in range(6, NORMS_KEPT + 6)]


def test_the_default_wait_is_a_minute_or_twice_the_median_training_time() -> None:
    site_statistics = SiteStatistics()
    assert site_statistics.max_wait() == 60.0
    for site, seconds in (("alpha", 10.0), ("beta", 50.0), ("gamma", 900.0)):
        site_statistics.observe(site, examples=1, seconds=seconds)
    assert site_statistics.max_wait() == 100.0
