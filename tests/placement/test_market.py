"""Prices and plans of the `cost` policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.lsm.pressure import CALM
from keigo.lsm.roles import Role
from keigo.placement import economics, market
from keigo.placement.policy import Expectation, FileState, Group, Move, TierState
from keigo.placement.rates import assumed, rates_of

from .support import ListFiles, done

CAPACITY = 1000
SPARE = 20
"""The headroom of such a tier that nothing comes to."""
LIVES = {0: 5.0, 1: 20.0, 5: 2000.0, 6: 20_000.0}


def group(level: int) -> Group:
    return Group(0, "default", Role.SST, level)


EXPECTED = {group(level): Expectation(10, life, learned=True) for level, life in LIVES.items()}


def file(
    number: int, tier: int, *, level: int = 6, size: int = 10, heat: int | None = None, pinned: int | None = None
) -> FileState:
    reads = 0.0 if heat is None else size * 1.5 * 2.0**heat
    return FileState(number, tier, size, Role.SST, level, number, pinned, group(level), reads=reads)


def volume(files: list[FileState]) -> ListFiles:
    return ListFiles(files, expected=EXPECTED)


def tiers(files: list[FileState], *capacities: int, inflow: float = 0.0) -> list[TierState]:
    """Tiers as the files fill them, each four times slower than the one before, with their prices."""
    states = []
    for index, capacity in enumerate(capacities):
        used = sum(each.size for each in files if each.tier == index)
        rates = rates_of(assumed(index))
        states.append(
            TierState(f"t{index}", capacity, used, capacity - used, rates, inflow=inflow if index == 0 else 0)
        )
    prices = market.prices(volume(files), states)
    return [replace(state, price=price) for state, price in zip(states, prices, strict=True)]


def targets(moves: list[Move]) -> dict[int, int]:
    assert len({move.file for move in moves}) == len(moves)
    return {move.file: move.target for move in moves}


def test_what_is_read_goes_up_and_what_is_not_stays() -> None:
    files = [file(1, 2, heat=-10), file(2, 2, heat=None), file(3, 1, heat=-10)]
    assert targets(market.plan(volume(files), tiers(files, CAPACITY, CAPACITY, CAPACITY))) == {1: 0, 3: 0}


def test_what_is_rewritten_soon_does_not_move() -> None:
    """However hot it is: the copy would be over just before the file is."""
    hot = -22
    files = [file(1, 2, level=5, heat=hot), file(2, 2, level=0, heat=hot)]
    assert targets(market.plan(volume(files), tiers(files, CAPACITY, CAPACITY, CAPACITY))) == {1: 0}


def test_of_too_many_the_hottest_go_up_until_two_headrooms_are_left() -> None:
    files = [file(number, 1, heat=-10 - number % 4, size=100) for number in range(20)]
    moves = market.plan(volume(files), tiers(files, CAPACITY, 3000, CAPACITY))
    assert len(moves) == 9
    assert {number % 4 for number in targets(moves) if targets(moves)[number] == 0} == {0, 1}
    states = done(files, tiers(files, CAPACITY, 3000, CAPACITY), moves)
    assert states[0].room >= 2 * SPARE


def test_the_least_valuable_make_room_before_it_runs_out() -> None:
    """Room 10 of 20 wanted: cold files of the deep level go, the hot and the short-lived stay."""
    files = [file(number, 0, heat=-14, size=90) for number in range(9)]
    files += [file(10, 0, level=0, size=90), file(11, 0, heat=None, size=30), file(12, 0, heat=-20, size=60)]
    moves = market.plan(volume(files), tiers(files, CAPACITY, CAPACITY, CAPACITY))
    assert targets(moves) == {11: 1}
    assert not moves[0].urgent
    tight = [*files, file(13, 0, heat=-14, size=9)]
    urgent = market.plan(volume(tight), tiers(tight, CAPACITY, CAPACITY, CAPACITY))
    assert targets(urgent) == {11: 1}
    assert urgent[0].urgent


def test_room_that_was_made_is_used_again() -> None:
    """Half of the tier is free that was full a minute ago: hot files come up, and nothing is sold to keep it free."""
    files = [file(number, 0, size=50) for number in range(10)]
    files += [file(20 + number, 1, heat=-10, size=50) for number in range(8)]
    states = [replace(state, swing=500 if state.name == "t0" else 0) for state in tiers(files, CAPACITY, 3000)]
    assert targets(market.plan(volume(files), states)) == {20 + number: 0 for number in range(8)}


def test_inflow_asks_for_more_room() -> None:
    files = [file(number, 0, size=50) for number in range(18)]  # room 100
    assert market.plan(volume(files), tiers(files, CAPACITY, CAPACITY)) == []
    moves = market.plan(volume(files), tiers(files, CAPACITY, CAPACITY, inflow=24))  # 120 wanted
    assert len(moves) == 2  # to 180 and more


def test_files_change_places_for_twice_the_gain_only() -> None:
    def plan(warm: int, hot: int) -> dict[int, int]:
        files = [file(number, 0, heat=warm, size=96) for number in range(10)]
        files += [file(20, 1, heat=hot, size=96)]
        return targets(market.plan(volume(files), tiers(files, CAPACITY, CAPACITY)))

    assert plan(-12, -12) == {}
    assert plan(-12, -11) == {}
    found = plan(-12, -9)
    assert found.pop(20) == 0
    assert list(found.values()) == [1]


def test_a_slower_tier_that_has_become_the_better_one() -> None:
    """With a queue of reads on the fast device, what is read there is better read elsewhere."""
    files = [file(1, 0, heat=-10)]
    states = tiers(files, CAPACITY, CAPACITY)
    busy = [replace(states[0], rates=rates_of(assumed(0), read_k=1000)), states[1]]
    assert market.plan(volume(files), states) == []
    assert targets(market.plan(volume(files), busy)) == {1: 1}


def test_pins_come_first_and_hold() -> None:
    files = [file(1, 0, heat=-10, pinned=1), file(2, 1, heat=-5, pinned=1), file(3, 1, pinned=0, size=2000)]
    assert targets(market.plan(volume(files), tiers(files, CAPACITY, 3000))) == {1: 1}


def test_a_level_that_changed_without_a_rewrite_is_what_counts() -> None:
    """A trivial move makes a short-lived file a long-lived one."""
    deep = file(1, 1, level=6, heat=-22)
    states = tiers([deep], CAPACITY, CAPACITY)
    assert targets(market.plan(volume([deep]), states)) == {1: 0}
    assert market.plan(volume([replace(deep, level=0, group=group(0))]), states) == []


# --- prices ---


def saving(each: FileState, states: list[TierState], better: int, worse: int) -> float:
    """What files like this one save on one of two tiers, price there not included."""
    (bucket,) = volume([each]).buckets()
    costs = [economics.recurring(bucket, EXPECTED[group(each.level or 0)], CALM, state) for state in states]
    return costs[worse] - costs[better]


def test_room_for_all_is_free() -> None:
    files = [file(number, 1, heat=-10, size=98) for number in range(10)]
    assert [state.price for state in tiers(files, CAPACITY, CAPACITY)] == [0, 0]


def test_the_price_is_what_the_first_saves_that_does_not_fit() -> None:
    hot = [file(number, 1, heat=-10, size=90) for number in range(5)]
    warm = [file(10 + number, 0, heat=-14, size=90) for number in range(8)]
    cold = [file(20 + number, 1, size=90) for number in range(8)]
    states = tiers([*hot, *warm, *cold], CAPACITY, 5000)
    assert states[0].price == pytest.approx(saving(warm[0], states, 0, 1))
    states = tiers([*hot, *warm[:4], *cold], CAPACITY, 5000)
    assert states[0].price == pytest.approx(saving(cold[0], states, 0, 1))
    assert 0 < states[0].price < saving(warm[0], states, 0, 1)


def test_what_is_rewritten_often_competes_by_its_writes() -> None:
    """Nobody reads it, and little of it is there at a time; yet it is worth more than what just lies there."""
    brief = [file(number, 1, level=0, size=90) for number in range(10)]
    cold = [file(10 + number, 0, size=97) for number in range(10)]
    states = tiers([*brief, *cold], CAPACITY, 5000)
    assert states[0].price == pytest.approx(saving(cold[0], states, 0, 1))
    more = [file(20 + number, 1, level=0, size=90) for number in range(10)]
    states = tiers([*brief, *more, *cold], CAPACITY, 5000)
    assert states[0].price == pytest.approx(saving(brief[0], states, 0, 1))
    # So what just lies there makes room for it.
    left = targets(market.plan(volume([*brief, *more, *cold]), states))
    assert left
    assert set(left) <= {each.id for each in cold}
    assert set(left.values()) == {1}


def test_what_grows_has_a_price_before_it_is_full() -> None:
    files = [file(1, 0, level=1, size=300), file(2, 0, level=5, size=300)]
    states = tiers(files, 1000, 5000)
    assert [state.price for state in states] == [0, 0]
    for growth, priced in ((380, False), (600, True)):
        price, _ = market.prices(volume(files), [replace(states[0], growth=growth), states[1]])
        assert (price > 0) == priced
    # What goes does not make up for it: room that comes back is room already.
    assert market.prices(volume(files), [replace(states[0], growth=-600), states[1]])[0] == 0


def test_the_prices_of_two_tiers_stand_together() -> None:
    """Who does not fit on the first competes on the second, and there are more of them than fit."""
    hot = [file(number, 2, heat=-10, size=90) for number in range(11)]
    warm = [file(20 + number, 2, heat=-14, size=90) for number in range(11)]
    cold = [file(40 + number, 2, size=90) for number in range(5)]
    states = tiers([*hot, *warm, *cold], CAPACITY, CAPACITY, 9000)
    first, second, last = (state.price for state in states)
    assert last == 0
    assert second == pytest.approx(saving(warm[0], states, 1, 2))
    assert first == pytest.approx(second + saving(hot[0], states, 0, 1))


# --- told to people ---


def test_prospects_say_what_plans_do() -> None:
    def verdicts(each: FileState, *capacities: int) -> list[str]:
        states = tiers([each], *capacities)
        return [prospect.verdict for prospect in market.prospects(each, volume([each]), states)]

    hot, cold, brief = file(1, 1, heat=-10), file(2, 1), file(3, 1, level=0, heat=-22)
    assert [text.partition(" ")[0] for text in verdicts(hot, CAPACITY, CAPACITY, CAPACITY)] == ["saves", "is", "would"]
    assert "is due to move" in verdicts(hot, CAPACITY, CAPACITY)[0]
    assert "moves if that is more" in verdicts(hot, 5, CAPACITY)[0]
    assert "the copy costs" in verdicts(cold, CAPACITY, CAPACITY)[0]
    assert "over the 5 s it has left" in verdicts(brief, CAPACITY, CAPACITY)[0]
    pinned = file(4, 1, heat=-10, pinned=1)
    assert verdicts(pinned, CAPACITY, CAPACITY) == ["is pinned elsewhere", "is pinned here"]
    elsewhere = file(4, 1, heat=-10, pinned=0)
    assert verdicts(elsewhere, CAPACITY, CAPACITY)[0].startswith("is pinned there")
    (there, here) = market.prospects(hot, volume([hot]), tiers([hot], CAPACITY, CAPACITY))
    assert (there.tier, here.copy) == (0, 0)
    assert there.copy > 0
    assert there.keeping < here.keeping


# --- any volume ---

files_of = st.lists(
    st.builds(
        lambda tier, level, size, heat, pinned: (tier, level, size, heat, pinned),
        st.integers(0, 2),
        st.sampled_from(list(LIVES)),
        st.integers(0, 120),
        st.none() | st.integers(-40, -2),
        st.none() | st.integers(0, 2),
    ),
    max_size=40,
)


@given(files_of, st.lists(st.integers(0, 3000), min_size=3, max_size=3), st.floats(0, 100))
def test_plans_keep_the_rules_and_come_to_an_end(
    rows: list[tuple[int, int, int, int | None, int | None]], capacities: list[int], inflow: float
) -> None:
    files = [
        file(number, tier, level=level, size=size, heat=heat, pinned=pinned)
        for number, (tier, level, size, heat, pinned) in enumerate(rows, 1)
    ]
    states = tiers(files, *capacities, inflow=inflow)
    seen: dict[int, set[int]] = {each.id: {each.tier} for each in files}
    current = volume(files)
    for _ in range(10):
        moves = market.plan(current, states)
        assert moves == market.plan(current, states)
        if not moves:
            break
        states = done(current, states, moves)
        current = current.after(moves)
        for move in moves:
            if current.files[move.file - 1].pinned is None:
                assert move.target not in seen[move.file], "it had left from there"
            seen[move.file].add(move.target)
    else:
        pytest.fail("plans without end")


def test_a_plan_is_bounded_and_the_next_goes_on() -> None:
    count = 3 * market.MOST_MOVES
    files = volume([file(number, 1, heat=-10) for number in range(count)])
    states = tiers(files.files, 100 * count, 100 * count)
    rounds = 0
    while moves := market.plan(files, states):
        assert len(moves) <= market.MOST_MOVES
        states = done(files, states, moves)
        files = files.after(moves)
        rounds += 1
    assert rounds == 3
    assert {each.tier for each in files} == {0}
