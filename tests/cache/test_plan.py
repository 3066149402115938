"""The plan, as a pure function: what it may never do, and what it does in cases that can be reckoned by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keigo.cache.plan import HALF_LIFE, HORIZON, MARGIN, MOST_OF, Candidate, Plan, plan

SAVING = 1e-3
COPY = 1e-3
PAYS = COPY * HALF_LIFE / (SAVING * HORIZON)
"""Heat that pays for a copy just after a halving."""


def candidate(
    heat: Sequence[int],
    cached: Sequence[int] = (),
    ghosts: Sequence[int] = (),
    file: int = 1,
    saving: float = SAVING,
    copy: float = COPY,
    life: float = inf,
) -> Candidate:
    numbers = range(len(heat))
    return Candidate(
        file,
        np.array(heat, np.uint16),
        np.array([index in cached for index in numbers], np.bool_),
        np.array([index in ghosts for index in numbers], np.bool_),
        saving,
        copy,
        life,
    )


def chunks(pairs: Sequence[tuple[int, int]], file: int = 1) -> list[int]:
    return [number for one, number in pairs if one == file]


@st.composite
def files(draw: st.DrawFn) -> list[Candidate]:
    found = []
    for file in range(draw(st.integers(0, 5))):
        length = draw(st.integers(1, 24))
        bits = st.lists(st.booleans(), min_size=length, max_size=length)
        found.append(
            Candidate(
                file,
                np.array(
                    draw(st.lists(st.integers(0, 5) | st.integers(0, 65535), min_size=length, max_size=length)),
                    np.uint16,
                ),
                np.array(draw(bits), np.bool_),
                np.array(draw(bits), np.bool_),
                draw(st.sampled_from([0.0, -1.0, 1e-5, 1e-4, 1e-2])),
                draw(st.sampled_from([1e-6, 1e-3, 1.0])),
                draw(st.sampled_from([0.01, 1.0, 100.0, 1e9, inf])),
            )
        )
    return found


def worth(each: Candidate, number: int, since: float) -> float:
    """Seconds a second that a chunk saves, less its copy spread over its time."""
    cost = 0.0 if each.ghosts[number] else each.copy / min(HORIZON, each.life)
    return rate(each, number, since) - cost


def rate(each: Candidate, number: int, since: float) -> float:
    return float(each.heat[number]) * max(0.0, each.saving) / (HALF_LIFE + since)


@given(files(), st.integers(0, 60), st.integers(1, 40), st.floats(0, 120))
@settings(max_examples=4 * settings().max_examples)
def test_what_no_plan_ever_does(found: list[Candidate], free: int, most: int, since: float) -> None:
    made = plan(found, free, most, since)
    by_file = {each.file: each for each in found}
    admit, evict = made.admit, made.evict
    assert len(set(admit)) == len(admit) <= most
    assert len(set(evict)) == len(evict)
    assert len(admit) <= free + len(evict)  # never more than there is room for
    assert not evict or len(admit) == free + len(evict)  # and nothing goes in vain
    assert all(not by_file[file].cached[number] for file, number in admit)
    assert all(by_file[file].cached[number] for file, number in evict)
    assert all(by_file[file].saving > 0 for file, _ in admit)
    assert list(admit) == sorted(admit)  # runs of a file together
    if not evict:
        return
    # Full: all that comes is worth it, best first, and so is each exchange; none of the others would be better.
    come = sorted((worth(by_file[file], number, since) for file, number in admit), reverse=True)
    go = [rate(by_file[file], number, since) for file, number in evict]
    assert go == sorted(go)
    assert come[-1] > 0
    stay = [
        rate(each, int(number), since)
        for each in found
        for number in np.flatnonzero(each.cached)
        if (each.file, int(number)) not in evict
    ]
    assert not stay or min(stay) >= max(go)
    out = [
        worth(each, int(number), since)
        for each in found
        for number in np.flatnonzero(~each.cached)
        if (each.file, int(number)) not in admit
    ]
    assert not out or max(out) <= come[-1] + 1e-12
    for file, number in admit:
        assert worth(by_file[file], number, since) > 0
    assert all(better > worse for better, worse in zip(come[free:], go, strict=True))


@given(files(), st.integers(0, 60), st.floats(0, 120))
def test_what_is_done_is_done(found: list[Candidate], free: int, since: float) -> None:
    """When a plan was carried out, the next one takes none of it back: nothing goes round in circles."""
    heats = {each.file: each.heat for each in found}
    for _ in range(200):
        made = plan(found, free, 8, since)
        if made == Plan((), ()):
            break
        free += len(made.evict) - len(made.admit)
        after = []
        for each in found:
            cached, ghosts = each.cached.copy(), each.ghosts.copy()
            cached[chunks(made.admit, each.file)] = True
            cached[chunks(made.evict, each.file)] = False
            ghosts[chunks(made.evict, each.file)] = True
            ghosts[chunks(made.admit, each.file)] = False
            after.append(replace(each, cached=cached, ghosts=ghosts))
        found = after
    assert made == Plan((), ())
    assert free >= 0
    assert all((each.heat == heats[each.file]).all() for each in found)


def test_nothing_comes_of_nothing() -> None:
    assert plan([], 10, 10, 0) == Plan((), ())
    assert plan([candidate([0, 0, 0])], 10, 10, 0) == Plan((), ())
    assert plan([candidate([9, 9], [0, 1])], 0, 10, 0) == Plan((), ())


def test_a_copy_must_pay() -> None:
    """At half the saving or double the copy's cost it takes double the heat."""
    need = int(PAYS * 1000)
    for saving, copy, factor in ((1.0, 1.0, 1), (0.5, 1.0, 2), (1.0, 2.0, 2), (0.25, 2.0, 8)):
        heat = [factor * need - 1, factor * need, factor * need + 1]
        made = plan([candidate(heat, saving=saving * SAVING / 1000, copy=copy * COPY)], 10, 10, 0)
        assert chunks(made.admit) in ([2], [1, 2]), (saving, copy)


@pytest.mark.parametrize("life", [1.0, 10.0, HORIZON, 10 * HORIZON])
def test_a_short_life_must_pay_in_its_time(life: float) -> None:
    need = COPY * HALF_LIFE / (SAVING / 100 * min(life, HORIZON))
    heat = [int(need * 0.99), int(need * 1.01) + 1]
    assert chunks(plan([candidate(heat, saving=SAVING / 100, life=life)], 10, 10, 0).admit) == [1]


def test_old_heat_is_of_more_time() -> None:
    """A minute after the halving the same count is half as many reads a second."""
    heat = [round(1.5 * PAYS * 100), round(2.5 * PAYS * 100)]
    cold = candidate(heat, saving=SAVING / 100)
    assert chunks(plan([cold], 10, 10, 0).admit) == [0, 1]
    assert chunks(plan([cold], 10, 10, HALF_LIFE).admit) == [1]


def test_the_best_come_first() -> None:
    made = plan([candidate([5, 900, 7, 800, 3, 700])], 2, 10, 0)
    assert chunks(made.admit) == [1, 3]
    made = plan([candidate([5, 900, 7, 800, 3, 700])], 10, 3, 0)
    assert chunks(made.admit) == [1, 3, 5]


def test_of_two_files_the_one_on_the_slower_tier_comes() -> None:
    slow, mid = candidate([50, 50], file=1, saving=10 * SAVING), candidate([100, 100], file=2, saving=SAVING)
    assert plan([mid, slow], 2, 10, 0).admit == ((1, 0), (1, 1))


def test_the_best_take_the_place_of_the_worst() -> None:
    full = candidate([500, 10, 20, 400, 300, 100], cached=[1, 2, 4])
    made = plan([full], 0, 10, 0)
    assert made == Plan(((1, 0), (1, 3)), ((1, 1), (1, 2)))
    assert plan([full], 0, 1, 0) == Plan(((1, 0),), ((1, 1),))


def test_a_little_better_is_not_enough() -> None:
    better = [round(1000 * MARGIN) - 1, 1000]
    assert plan([candidate(better, cached=[1], copy=1e-9)], 0, 10, 0).admit == ()
    assert plan([candidate([2 * better[0], 1000], cached=[1], copy=1e-9)], 0, 10, 0).admit == ((1, 0),)


def test_what_went_out_too_early_comes_back_faster() -> None:
    heat = [1001, 1000]
    assert plan([candidate(heat, cached=[1])], 0, 10, 0).admit == ()
    assert plan([candidate(heat, cached=[1], ghosts=[0])], 0, 10, 0) == Plan(((1, 0),), ((1, 1),))
    expensive = 1e6
    assert plan([candidate([3], copy=expensive)], 10, 10, 0).admit == ()
    assert plan([candidate([3], ghosts=[0], copy=expensive)], 10, 10, 0).admit == ((1, 0),)


def test_a_scan_displaces_nothing_that_is_warm() -> None:
    """A scan touches each chunk once, and there are a thousand times as many as the cache holds."""
    warm = candidate([3] * 100, cached=range(100), file=1)
    scanned = [candidate([1] * 1000, file=2 + file) for file in range(100)]
    for most in (1, 512, 1 << 20):
        assert plan([warm, *scanned], 0, most, 0) == Plan((), ())
    assert plan([warm, *scanned], 7, 512, 0).evict == ()


def test_a_cold_chunk_makes_room_for_a_warm_one() -> None:
    made = plan([candidate([0] * 10, cached=range(10), file=1), candidate([50] * 3, file=2)], 0, 10, 0)
    assert (chunks(made.admit, 2), chunks(made.evict, 1)) == ([0, 1, 2], [0, 1, 2])


def test_the_rest_of_a_file_that_is_mostly_hot_comes_too() -> None:
    hot = [100] * 6 + [0, 0]
    assert MOST_OF <= 6 / 8
    assert chunks(plan([candidate(hot)], 100, 100, 0).admit) == list(range(8))
    assert chunks(plan([candidate(hot, cached=range(6))], 100, 100, 0).admit) == [6, 7]
    assert chunks(plan([candidate([100] * 5 + [0] * 3)], 100, 100, 0).admit) == list(range(5))


def test_the_rest_of_a_file_displaces_nothing_and_is_not_begun_in_vain() -> None:
    hot = candidate([100] * 6 + [0, 0])
    assert chunks(plan([hot], 7, 100, 0).admit) == list(range(6))
    assert chunks(plan([hot], 100, 7, 0).admit) == list(range(6))
    made = plan([hot, candidate([1], cached=[0], file=2)], 6, 100, 0)
    assert (made.evict, chunks(made.admit)) == ((), list(range(6)))


def test_a_file_that_saves_nothing_is_not_completed() -> None:
    assert plan([candidate([100] * 7 + [0], cached=range(7), saving=0.0)], 100, 100, 0) == Plan((), ())


def test_what_saves_nothing_any_more_goes_first() -> None:
    useless = candidate([60_000] * 2, cached=[0, 1], file=1, saving=0.0)
    useful = candidate([20] * 4, cached=[0, 1], file=2)
    made = plan([useful, useless], 0, 10, 0)
    assert made == Plan(((2, 2), (2, 3)), ((1, 0), (1, 1)))
