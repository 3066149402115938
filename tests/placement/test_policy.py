"""The helpers that policies share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.placement.policy import NoRoom, TierState, fallback_order, first_fit


def tiers(*rooms: int) -> list[TierState]:
    return [TierState(f"t{index}", 100, 100 - room, room) for index, room in enumerate(rooms)]


@pytest.mark.parametrize(
    ("preferred", "order"), [(0, [0, 1, 2, 3]), (1, [1, 2, 3, 0]), (2, [2, 3, 1, 0]), (3, [3, 2, 1, 0])]
)
def test_fallback_goes_down_then_up(preferred: int, order: list[int]) -> None:
    assert list(fallback_order(preferred, 4)) == order


@pytest.mark.parametrize(
    ("preferred", "size", "rooms", "tier"),
    [
        (1, 10, (50, 50, 50), 1),
        (1, 10, (50, 10, 50), 1),
        (1, 10, (50, 9, 50), 2),
        (1, 10, (50, 9, 9), 0),
        (2, 10, (50, 20, -5), 1),
        (0, 0, (0, 1), 1),
        (0, 0, (-1, 1), 1),
    ],
)
def test_first_fit(preferred: int, size: int, rooms: tuple[int, ...], tier: int) -> None:
    assert first_fit(preferred, size, tiers(*rooms)) == tier


@pytest.mark.parametrize("size", [0, 1, 10])
def test_no_room(size: int) -> None:
    with pytest.raises(NoRoom):
        first_fit(1, size, tiers(0, -3, 0))


@given(st.lists(st.integers(-50, 100), min_size=1, max_size=5), st.integers(0, 100), st.data())
def test_first_fit_has_room_and_finds_it_if_any_has(rooms: list[int], size: int, data: st.DataObject) -> None:
    preferred = data.draw(st.integers(0, len(rooms) - 1))
    needed = max(size, 1)
    try:
        tier = first_fit(preferred, size, tiers(*rooms))
    except NoRoom:
        assert all(room < needed for room in rooms)
    else:
        assert rooms[tier] >= needed
        assert tier == preferred or rooms[preferred] < needed
