"""A site is live for three heartbeats after it was last heard of, and not a moment longer."""

from __future__ import annotations

from aggregator.rules.liveness import Liveness


def test_a_site_is_live_for_exactly_three_heartbeats() -> None:
    liveness = Liveness(10.0, ["north"], 100.0)
    assert liveness.live(130.0) == {"north"}
    assert liveness.live(130.001) == frozenset()
    liveness.seen("north", 130.001)
    assert liveness.live(160.0) == {"north"}


def test_somebody_new_is_given_three_heartbeats_and_being_expected_again_is_no_sign_of_life() -> None:
    liveness = Liveness(10.0, [], 0.0)
    liveness.expect(["south"], 50.0)
    liveness.expect(["south"], 75.0)
    assert liveness.live(80.0) == {"south"}
    assert liveness.live(81.0) == frozenset()
    assert liveness.ages(81.0) == {"south": 31.0}


def test_the_moment_to_look_again_is_just_after_the_site_is_no_longer_live() -> None:
    liveness = Liveness(10.0, ["north", "south"], 0.0)
    liveness.seen("south", 5.0)
    first, second = liveness.expiring(20.0)
    assert 30.0 < first < 30.1
    assert 35.0 < second < 35.1
    assert liveness.live(first) == {"south"}
    assert liveness.expiring(first) == [second]
