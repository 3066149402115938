"""Where the `cost` policy creates files."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.lsm.pressure import CALM, Pressure
from keigo.lsm.roles import Role
from keigo.lsm.threads import Job
from keigo.placement.cost import CostPolicy
from keigo.placement.policy import Context, Expectation, NoRoom, TierState
from keigo.placement.rates import assumed, rates_of

POLICY = CostPolicy(metadata_tier=2)
MIB = 1 << 20
COLD = Expectation(64 * MIB, 5000, learned=True)
HOT = replace(COLD, reads=1e-5)


def tiers(
    *rooms: int, write_k: tuple[float, float, float] = (0, 0, 0), prices: tuple[float, ...] = (0, 0, 0)
) -> list[TierState]:
    return [
        TierState(
            f"t{i}", 1000 * MIB, (1000 - rooms[i]) * MIB, rooms[i] * MIB, rates_of(assumed(i), 0, write_k[i]), prices[i]
        )
        for i in range(3)
    ]


def context(
    role: Role = Role.SST,
    job: Job = Job.COMPACTION,
    level: int | None = 5,
    expected: Expectation | None = COLD,
    pressure: Pressure = CALM,
) -> Context:
    return Context(role, job, level, b"x", expected=expected, pressure=pressure)


def test_with_room_for_all_the_fastest() -> None:
    for role, job, level in [(Role.WAL, Job.FOREGROUND, None), (Role.SST, Job.FLUSH, 0), (Role.SST, Job.COMPACTION, 6)]:
        assert POLICY.choose(context(role, job, level), 64 * MIB, tiers(900, 900, 900)).tier == 0


def test_metadata_has_its_tier() -> None:
    choice = POLICY.choose(context(Role.MANIFEST, Job.FOREGROUND, None), 0, tiers(900, 900, 900))
    assert (choice.tier, choice.costs) == (2, None)
    assert POLICY.choose(context(Role.OPTIONS), 0, tiers(900, 900, 0)).tier == 1


def test_room_that_is_dear_is_for_what_is_worth_it() -> None:
    """At a price between the two values: what is read or soon rewritten gets in, what lies about does not."""
    dear = tiers(20, 900, 900, prices=(2e-10, 0, 0))
    assert POLICY.choose(context(expected=COLD), 64 * MIB, dear).tier == 1
    assert POLICY.choose(context(expected=HOT), 4 * MIB, dear).tier == 0
    brief = replace(COLD, life=1)
    assert POLICY.choose(context(job=Job.FLUSH, level=0, expected=brief), 4 * MIB, dear).tier == 0


def test_a_tier_under_load_takes_less() -> None:
    """The same file goes elsewhere while the fast device has a long queue of writes."""
    busy = tiers(900, 900, 900, write_k=(400, 0, 0))
    flush = context(job=Job.FLUSH, level=0, expected=replace(COLD, life=10))
    assert POLICY.choose(flush, 64 * MIB, tiers(900, 900, 900)).tier == 0
    many = [replace(tier, writers=31 if index == 0 else 0) for index, tier in enumerate(busy)]
    assert POLICY.choose(flush, 64 * MIB, many).tier == 1


def test_full_tiers_are_passed_over_in_the_order_of_cost() -> None:
    choice = POLICY.choose(context(), 64 * MIB, tiers(10, 10, 900))
    assert choice.tier == 2
    assert choice.reason.endswith("t0 is full")
    with pytest.raises(NoRoom):
        POLICY.choose(context(), 64 * MIB, tiers(10, 10, 10))
    assert POLICY.choose(context(), 0, tiers(0, 10, 10)).tier == 1


def test_the_costs_are_told() -> None:
    choice = POLICY.choose(context(), 64 * MIB, tiers(900, 900, 900))
    assert choice.reason == "costs least"
    assert choice.costs is not None
    assert choice.costs[0].total == min(cost.total for cost in choice.costs)


@given(
    st.sampled_from([Role.WAL, Role.SST, Role.BLOB, Role.MANIFEST, Role.OTHER]),
    st.sampled_from(list(Job)),
    st.none() | st.integers(0, 6),
    st.integers(0, 200 * MIB),
    st.lists(st.integers(-100, 1000), min_size=3, max_size=3),
    st.builds(Pressure, st.floats(0, 1), st.booleans()),
    st.none() | st.builds(Expectation, st.floats(0, 1e12), st.floats(1e-3, 1e9), st.floats(0, 10), st.floats(1, 1e7)),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_any_choice_has_room_and_is_the_same_again(
    role: Role,
    job: Job,
    level: int | None,
    size: int,
    rooms: list[int],
    pressure: Pressure,
    expected: Expectation | None,
    prices: list[float],
) -> None:
    asked = context(role, job, level, expected, pressure)
    states = tiers(*rooms, prices=tuple(prices))
    fits = [tier.room >= max(size, 1) for tier in states]
    try:
        choice = POLICY.choose(asked, size, states)
    except NoRoom:
        assert not any(fits)
        return
    assert fits[choice.tier]
    assert choice == POLICY.choose(asked, size, states)
    if choice.costs is not None:
        assert all(
            cost.total >= choice.costs[choice.tier].total for cost, fit in zip(choice.costs, fits, strict=True) if fit
        )
