"""Which updates make a version, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aggregator.strategy.buffer import BufferPolicy, Choice, Waiting, choose, next_deadline, outdated


def update(order: int, site: str, base: int = 5, since: float | None = None) -> Waiting:
    return Waiting(
        id=order.to_bytes(2, "big"),
        site=site,
        base_version=base,
        order=order,
        since=float(order) if since is None else since,
    )


POLICY = BufferPolicy(size=2, quota=2, min_sites=1, synchronous=False, max_wait=60.0, grace=10.0, max_staleness=8)
LIVE = frozenset("abcd")


def chosen(*waiting: Waiting, now: float = 0.0, live: frozenset[str] = LIVE, **changes: Any) -> Choice | None:
    return choose(waiting, replace(POLICY, **changes), version=5, live=live, now=now)


def orders(updates: tuple[Waiting, ...]) -> list[int]:
    return [update.order for update in updates]


def members(choice: Choice | None) -> list[int]:
    return [] if choice is None else orders(choice.members)


def synchronous(*waiting: Waiting, now: float = 0.0, min_sites: int = 2) -> Choice | None:
    return chosen(*waiting, now=now, size=4, quota=1, max_staleness=0, synchronous=True, min_sites=min_sites)


def test_a_version_is_made_when_k_updates_are_there() -> None:
    assert chosen(update(1, "a")) is None
    choice = chosen(update(1, "a"), update(2, "b"), update(3, "c"))
    assert members(choice) == [1, 2]
    assert choice is not None
    assert choice.divisor == 2


def test_nothing_waiting_is_no_version() -> None:
    assert chosen(now=1e9) is None


def test_the_first_to_come_are_merged_whatever_order_they_are_passed_in() -> None:
    assert members(chosen(update(9, "a"), update(3, "b"), update(4, "c"))) == [3, 4]


def test_one_site_cannot_fill_a_version_beyond_its_quota() -> None:
    mine = [update(order, "a") for order in (1, 2, 3)]
    assert chosen(*mine, size=3) is None
    assert members(chosen(*mine, update(4, "b"), size=3)) == [1, 2, 4]


def test_a_small_federation_lowers_k() -> None:
    choice = chosen(update(1, "a"), update(2, "a"), size=6, live=frozenset("a"))
    assert members(choice) == [1, 2]
    assert choice is not None
    assert choice.divisor == 2


def test_a_site_that_left_counts_while_its_update_waits() -> None:
    left, mine = update(1, "gone"), [update(2, "a"), update(3, "a")]
    assert chosen(left, mine[0], size=4, live=frozenset("a")) is None
    choice = chosen(left, *mine, update(4, "gone"), size=4, live=frozenset("a"))
    assert members(choice) == [1, 2, 3, 4]


def test_a_half_filled_buffer_is_merged_after_max_wait_and_divided_by_k() -> None:
    waiting = [update(1, "a", since=100.0), update(2, "b", since=150.0)]
    assert chosen(*waiting, now=159.0, size=4) is None
    choice = chosen(*waiting, now=160.0, size=4)
    assert members(choice) == [1, 2]
    assert choice is not None
    assert choice.divisor == 4


def test_max_wait_counts_from_the_first_validated_whatever_the_journal_order() -> None:
    waiting = [update(1, "a", since=150.0), update(2, "b", since=100.0)]
    assert members(chosen(*waiting, now=160.0, size=4)) == [1, 2]


def test_what_waits_beyond_two_quotas_is_superseded_oldest_first() -> None:
    waiting = [update(order, "a") for order in range(1, 7)]
    gone = outdated(waiting, POLICY, version=5)
    assert (orders(gone.superseded), gone.too_stale) == ([1, 2], ())
    choice = chosen(*waiting)
    assert members(choice) == [3, 4]
    assert choice is not None
    assert orders(choice.superseded) == [1, 2]


def test_an_update_older_than_the_limit_is_not_merged() -> None:
    waiting = [update(1, "a", base=0), update(2, "b", base=1), update(3, "c", base=5)]
    choice = chosen(*waiting, max_staleness=4)
    assert members(choice) == [2, 3]
    assert choice is not None
    assert orders(choice.too_stale) == [1]


def test_a_stale_update_supersedes_nothing() -> None:
    waiting = [update(1, "a", base=0), *(update(order, "a") for order in (2, 3, 4, 5))]
    gone = outdated(waiting, replace(POLICY, max_staleness=4), version=5)
    assert (gone.superseded, orders(gone.too_stale)) == ((), [1])


def test_too_few_sites_merge_nothing_however_long_it_takes() -> None:
    waiting = [update(1, "a"), update(2, "b")]
    live = frozenset("ab")
    assert chosen(*waiting, now=1e9, live=live, min_sites=3) is None
    assert next_deadline(waiting, replace(POLICY, min_sites=3), version=5, live=live) is None
    assert members(chosen(*waiting, live=frozenset("abc"), min_sites=3)) == [1, 2]


def test_synchronous_waits_for_every_live_site() -> None:
    three = [update(1, "a"), update(2, "b"), update(3, "c")]
    assert synchronous(*three) is None
    choice = synchronous(*three, update(4, "d"))
    assert members(choice) == [1, 2, 3, 4]
    assert choice is not None
    assert choice.divisor == 4


def test_synchronous_gives_stragglers_a_grace_and_divides_by_those_that_came() -> None:
    two = [update(1, "a", since=50.0), update(2, "b", since=70.0)]
    assert synchronous(*two, now=79.9) is None
    choice = synchronous(*two, now=80.0)
    assert members(choice) == [1, 2]
    assert choice is not None
    assert choice.divisor == 2


def test_synchronous_below_min_sites_waits_for_ever() -> None:
    assert synchronous(update(1, "a"), now=1e9) is None


def test_synchronous_takes_no_update_from_an_older_version() -> None:
    choice = synchronous(update(1, "a", base=4), update(2, "b"), update(3, "c"), now=1e9)
    assert members(choice) == [2, 3]
    assert choice is not None
    assert orders(choice.too_stale) == [1]


def test_the_deadline_is_when_the_first_update_has_waited_long_enough() -> None:
    waiting = [update(2, "b", since=150.0), update(1, "a", since=100.0)]
    assert next_deadline(waiting, POLICY, version=5, live=LIVE) == 160.0
    assert next_deadline([], POLICY, version=5, live=LIVE) is None


def test_the_synchronous_deadline_counts_from_the_quorum() -> None:
    policy = replace(POLICY, synchronous=True, quota=1, max_staleness=0, min_sites=2)
    assert next_deadline([update(1, "a", since=50.0)], policy, version=5, live=LIVE) is None
    assert next_deadline([update(1, "a", since=50.0), update(2, "b", since=70.0)], policy, version=5, live=LIVE) == 80.0
