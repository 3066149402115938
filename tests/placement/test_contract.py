"""What `Policy` promises, of all policies: random volumes, most of them with too little room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keigo.lsm.roles import IMMUTABLE, Role
from keigo.lsm.threads import Job
from keigo.placement.cost import CostPolicy
from keigo.placement.fill_order import FillOrderPolicy
from keigo.placement.levels import LevelsPolicy
from keigo.placement.mutant import MutantPolicy
from keigo.placement.policy import Context, Expectation, NoRoom, Policy, TierState
from keigo.placement.popularity import PopularityPolicy

from .support import ListFiles, Volume, volumes

Factory = Callable[[int, Random], Policy]
"""Makes a policy for so many tiers; what else it needs comes from the dice."""


def levels(count: int, dice: Random) -> Policy:
    homes = {level: dice.randrange(count) for level in (0, 1, 2, 3, 4, "wal") if dice.random() < 0.7}
    listed = [frozenset(level for level, home in homes.items() if home == tier) for tier in range(count)]
    return LevelsPolicy(listed, dice.randrange(count))  # type: ignore[arg-type]


BASELINES: dict[str, Factory] = {
    "levels": levels,
    "fill-order": lambda count, dice: FillOrderPolicy(dice.randrange(count)),
    "popularity": lambda count, dice: PopularityPolicy(dice.randrange(count)),
    "mutant": lambda count, dice: MutantPolicy(dice.randrange(count)),
}
ALL: dict[str, Factory] = {"cost": lambda count, dice: CostPolicy(dice.randrange(count)), **BASELINES}

any_policy = pytest.mark.parametrize("factory", ALL.values(), ids=ALL)
any_baseline = pytest.mark.parametrize("factory", BASELINES.values(), ids=BASELINES)
DICE = st.randoms(use_true_random=False)


def made(factory: Factory, volume: Volume, dice: Random) -> Policy:
    return factory(len(volume.states), dice)


def priced(policy: Policy, volume: Volume) -> list[TierState]:
    """The tiers as they are shown to the policy: with the prices that it finds."""
    prices = policy.prices(volume.files, volume.states)
    assert len(prices) == len(volume.states)
    assert all(price >= 0 for price in prices)
    return [replace(state, price=price) for state, price in zip(volume.states, prices, strict=True)]


@pytest.mark.parametrize("name", ALL)
def test_name(name: str) -> None:
    assert ALL[name](2, Random(1)).name == name


@any_policy
@given(
    volumes(),
    DICE,
    st.sampled_from(Role),
    st.sampled_from(Job),
    st.none() | st.integers(0, 9),
    st.integers(0, 200),
    st.none() | st.builds(Expectation, st.floats(1, 1e9), st.floats(0.1, 1e6), st.floats(0, 1)),
)
def test_a_choice_has_room(
    factory: Factory,
    volume: Volume,
    dice: Random,
    role: Role,
    job: Job,
    level: int | None,
    size: int,
    expected: Expectation | None,
) -> None:
    policy = made(factory, volume, dice)
    states = priced(policy, volume)
    context = Context(role, job, level, b"x", expected=expected)
    needed = max(size, 1)
    try:
        choice = policy.choose(context, size, states)
    except NoRoom:
        assert all(state.room < needed for state in states)
    else:
        assert states[choice.tier].room >= needed
        assert choice.reason
        assert choice == policy.choose(context, size, states)


@any_policy
@settings(max_examples=200)
@given(volumes(), DICE)
def test_plans_never_overfill_and_come_to_an_end(factory: Factory, volume: Volume, dice: Random) -> None:
    """`cost` moves a file once a plan and prices anew before the next; the others leave nothing to plan."""
    policy = made(factory, volume, dice)
    for _ in range(12 if policy.name == "cost" else 1):
        volume = volume.after(policy.plan(volume.files, priced(policy, volume)))
    assert policy.plan(volume.files, priced(policy, volume)) == []


@any_policy
@given(volumes(), DICE)
def test_a_plan_is_the_same_twice(factory: Factory, volume: Volume, dice: Random) -> None:
    policy = made(factory, volume, dice)
    states = priced(policy, volume)
    files, before = list(volume.files), list(states)
    assert policy.plan(volume.files, states) == policy.plan(volume.files, states)
    assert (list(volume.files), states) == (files, before)


@any_policy
@settings(max_examples=100)
@given(volumes(), DICE)
def test_files_that_cannot_move_now_are_not_planned(factory: Factory, volume: Volume, dice: Random) -> None:
    policy = made(factory, volume, dice)
    movable = {file.id for bucket in volume.files.buckets() for file in volume.files.members(bucket)}
    assert {move.file for move in policy.plan(volume.files, priced(policy, volume))} <= movable


@any_policy
@settings(max_examples=100)
@given(volumes(), DICE)
def test_a_file_moves_twice_at_most(factory: Factory, volume: Volume, dice: Random) -> None:
    policy = made(factory, volume, dice)
    times = Counter(move.file for move in policy.plan(volume.files, priced(policy, volume)))
    assert all(count <= 2 for count in times.values())


@any_policy
def test_nothing_comes_of_nothing(factory: Factory) -> None:
    states = [TierState("a", 100, 0, 100), TierState("b", 100, 0, 100)]
    policy = factory(2, Random(1))
    assert policy.plan(ListFiles(), states) == []
    assert tuple(policy.prices(ListFiles(), states)) == (0.0, 0.0)


@any_baseline
@settings(max_examples=100)
@given(volumes(), DICE)
def test_the_order_in_which_files_are_told_does_not_matter(factory: Factory, volume: Volume, dice: Random) -> None:
    policy = made(factory, volume, dice)
    shuffled = list(volume.files)
    dice.shuffle(shuffled)
    other = ListFiles(shuffled, still=volume.files.still)
    assert policy.plan(other, volume.states) == policy.plan(volume.files, volume.states)


@any_baseline
@settings(max_examples=100)
@given(volumes(), DICE)
def test_a_tier_stays_too_full_only_where_nothing_on_it_can_go_elsewhere(
    factory: Factory, volume: Volume, dice: Random
) -> None:
    policy = made(factory, volume, dice)
    after = volume.after(policy.plan(volume.files, volume.states))
    movable = [file for bucket in after.files.buckets() for file in after.files.members(bucket)]
    for tier, state in enumerate(after.states):
        if state.room >= 0:
            continue
        free = max((other.room for index, other in enumerate(after.states) if index != tier), default=-1)
        for file in movable:
            if file.tier == tier and file.pinned != tier and file.role in IMMUTABLE and file.size:
                assert file.size > free


@any_baseline
@settings(max_examples=100)
@given(volumes(), DICE)
def test_only_what_leaves_a_tier_that_is_too_full_is_urgent(factory: Factory, volume: Volume, dice: Random) -> None:
    policy = made(factory, volume, dice)
    home = {file.id: file.tier for file in volume.files}
    for move in policy.plan(volume.files, volume.states):
        assert not move.urgent or volume.states[home[move.file]].room < 0
