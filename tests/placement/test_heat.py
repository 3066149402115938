"""The score of a rate, whatever the clock does."""

from __future__ import annotations

import pytest

from keigo.lsm.roles import Role
from keigo.placement.heat import HALF_LIFE, rate_of, score_of
from keigo.placement.index import FileIndex
from keigo.placement.policy import Group

NOW = 1.8e9
MINUTE, DAY = 60.0, 86400.0


def test_a_rate_halves_in_a_half_life() -> None:
    assert rate_of(score_of(3.0, NOW), NOW) == pytest.approx(3.0)
    assert rate_of(score_of(3.0, NOW), NOW + HALF_LIFE) == pytest.approx(1.5)


@pytest.mark.parametrize("back", [MINUTE, 60 * MINUTE, DAY, 1000 * DAY])
def test_a_clock_that_was_set_back_makes_no_file_hot_for_long(back: float) -> None:
    index, group = FileIndex(), Group(2, "default", Role.SST, 1)
    index.put(1, 0, group, 1 << 20, now=NOW, created=NOW)
    index.read(1, 100, NOW)
    then = NOW - back
    index.put(1, 0, group, 1 << 20, now=then, created=NOW)  # as any close or change of level does
    index.read(1, 1, then)
    assert index.heat(1, then + 60 * MINUTE) < 1.0


def test_heat_that_a_catalog_has_from_a_time_to_come_is_none() -> None:
    index = FileIndex()
    index.put(1, 0, Group(2, "default", Role.SST, 1), 1 << 20, now=NOW, score=score_of(3.0, NOW + DAY), age=DAY)
    assert index.heat(1, NOW) == 0.0
