"""What comes to a tier and goes: its inflow, its growth, and how its room swings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.tiers.flow import LATELY, MINUTE, Flow

SAMPLES = st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 1 << 40)), min_size=1, max_size=60)


def test_a_steady_inflow_is_its_own_mean() -> None:
    flow = Flow()
    for step in range(2000):
        flow.came(1000, step * 0.1)
    assert flow.inflow(200.0) == pytest.approx(10_000, rel=0.01)


def test_inflow_halves_when_nothing_comes() -> None:
    flow = Flow()
    flow.came(1 << 20, 100.0)
    at_once = flow.inflow(100.0)
    assert at_once > 0
    assert flow.inflow(100.0 + LATELY) == pytest.approx(at_once / 2)
    assert flow.inflow(100.0 + 3 * LATELY) == pytest.approx(at_once / 8)


def test_a_clock_that_goes_back_makes_no_inflow() -> None:
    flow = Flow()
    flow.came(1000, 100.0)
    assert flow.inflow(10.0) == flow.inflow(100.0)
    flow.came(1000, 10.0)
    assert flow.inflow(100.0) == pytest.approx(2 * 1000 * 0.693 / LATELY, rel=0.001)


def test_nothing_is_known_at_first() -> None:
    flow = Flow()
    assert (flow.inflow(0.0), flow.growth(100), flow.swing(100)) == (0, 0, 0)


@given(SAMPLES)
def test_growth_and_swing_are_those_of_their_time(samples: list[tuple[float, int]]) -> None:
    """Against all samples kept."""
    flow, now, seen = Flow(), 0.0, []
    for after, used in samples:
        now += after
        seen.append((now, used))
        flow.sample(-used, used, now)
        assert flow.growth(used + 7) == used + 7 - next(then for at, then in seen if at >= now - LATELY)
        most = max(then for at, then in seen if at >= now - MINUTE)
        assert flow.swing(-used) == most - used
