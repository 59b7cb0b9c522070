"""Plans of merges for tests."""

from __future__ import annotations

from collections.abc import Sequence

from aggregator.strategy.plan import Member, MergePlan


def member(number: int, *, weight: float = 1.0, absent: tuple[str, ...] = ()) -> Member:
    """An update of ten examples, as old as the version."""
    return Member(
        id=bytes([number]) * 16,
        order=number,
        site=f"site-{number}",
        base_version=0,
        staleness=0,
        staleness_weight=1.0,
        examples=10,
        seconds=1.0,
        example_weight=weight,
        norm=1.0,
        clip=1.0,
        absent=absent,
    )


def plan(members: Sequence[Member], *, rate: float = 1.0, decay: float = 0.0, name: str = "fedbuff") -> MergePlan:
    """Of version 1, for the mean of these members."""
    return MergePlan(
        run="run",
        version=1,
        parent=bytes(32),
        strategy=name,
        parameters={},
        members=tuple(members),
        population=(),
        divisor=float(len(members)),
        rate=rate,
        release_decay=decay,
        ids=(bytes(16), bytes(16)),
        registry=1,
    )
