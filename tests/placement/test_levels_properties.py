"""The `levels` policy, by property: random volumes, most of them with too little room."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from keigo.lsm.roles import IMMUTABLE, Role
from keigo.lsm.threads import Job
from keigo.placement.levels import LevelsPolicy
from keigo.placement.policy import Context, FileState, Move, NoRoom, TierState


def done(files: Sequence[FileState], states: Sequence[TierState], moves: Sequence[Move]) -> list[TierState]:
    """The tiers after a plan, with every rule about single moves checked on the way."""
    at = {file.id: file for file in files}
    states = list(states)
    for move in moves:
        file = at[move.file]
        assert file.tier == move.source != move.target
        assert file.role in IMMUTABLE
        assert file.pinned != move.source
        assert move.reason
        source, target = states[move.source], states[move.target]
        states[move.source] = replace(source, used=source.used - file.size, room=source.room + file.size)
        states[move.target] = replace(target, used=target.used + file.size, room=target.room - file.size)
        assert states[move.target].room >= 0
        at[move.file] = replace(file, tier=move.target)
    return states


def moved(files: Sequence[FileState], moves: Sequence[Move]) -> list[FileState]:
    """The files after a plan."""
    last = {move.file: move.target for move in moves}
    return [replace(file, tier=last.get(file.id, file.tier)) for file in files]


@st.composite
def volumes(draw: st.DrawFn) -> tuple[LevelsPolicy, list[FileState], list[TierState]]:
    """A policy, files, and tiers with whatever room is left."""
    count = draw(st.integers(1, 4))
    index = st.integers(0, count - 1)
    homes = draw(st.dictionaries(st.sampled_from([0, 1, 2, 3, 4, "wal"]), index))
    levels: list[frozenset[int | Literal["wal"]]] = [
        frozenset(level for level, home in homes.items() if home == tier)  # type: ignore[misc]
        for tier in range(count)
    ]
    files = [
        FileState(
            number,
            b"%d.sst" % number,
            draw(index),
            draw(st.integers(0, 120)),
            draw(st.sampled_from([Role.SST, Role.SST, Role.SST, Role.BLOB, Role.WAL, Role.OTHER])),
            draw(st.none() | st.integers(0, 6)),
            draw(st.none() | st.integers(1, 20)),
            draw(st.none() | st.none() | index),
        )
        for number in range(draw(st.integers(0, 14)))
    ]
    states = []
    for tier in range(count):
        used = sum(file.size for file in files if file.tier == tier)
        room = draw(st.integers(-150, 200))
        states.append(TierState(f"t{tier}", max(0, used + room + draw(st.integers(0, 40))), used, room))
    return LevelsPolicy(levels, draw(index)), files, states


@given(volumes(), st.sampled_from(Role), st.sampled_from(Job), st.none() | st.integers(0, 9), st.integers(0, 200))
def test_choice_has_room(
    volume: tuple[LevelsPolicy, list[FileState], list[TierState]],
    role: Role,
    job: Job,
    level: int | None,
    size: int,
) -> None:
    policy, _, states = volume
    context = Context(role, job, level, b"x")
    needed = max(size, 1)
    try:
        choice = policy.choose(context, size, states)
    except NoRoom:
        assert all(state.room < needed for state in states)
    else:
        assert states[choice.tier].room >= needed
        assert choice.reason
        assert choice == policy.choose(context, size, states)


@settings(max_examples=500)
@given(volumes())
def test_plan_never_overfills_and_leaves_nothing_to_plan(
    volume: tuple[LevelsPolicy, list[FileState], list[TierState]],
) -> None:
    policy, files, states = volume
    moves = policy.plan(files, states)
    assert policy.plan(moved(files, moves), done(files, states, moves)) == []


@settings(max_examples=300)
@given(volumes(), st.randoms(use_true_random=False))
def test_plan_does_not_depend_on_the_order_of_files(
    volume: tuple[LevelsPolicy, list[FileState], list[TierState]], random: Random
) -> None:
    policy, files, states = volume
    shuffled = list(files)
    random.shuffle(shuffled)
    assert policy.plan(iter(shuffled), states) == policy.plan(files, states)


@settings(max_examples=300)
@given(volumes())
def test_a_tier_stays_too_full_only_where_nothing_on_it_can_go_elsewhere(
    volume: tuple[LevelsPolicy, list[FileState], list[TierState]],
) -> None:
    policy, files, states = volume
    moves = policy.plan(files, states)
    after = done(files, states, moves)
    for tier, state in enumerate(after):
        if state.room >= 0:
            continue
        free = max((other.room for index, other in enumerate(after) if index != tier), default=-1)
        for file in moved(files, moves):
            if file.tier == tier and file.pinned != tier and file.role in IMMUTABLE and file.size:
                assert file.size > free


@settings(max_examples=300)
@given(volumes())
def test_a_file_moves_twice_at_most(
    volume: tuple[LevelsPolicy, list[FileState], list[TierState]],
) -> None:
    policy, files, states = volume
    moves = policy.plan(files, states)
    assert all(sum(move.file == file.id for move in moves) <= 2 for file in files)
