"""Models for tiers that nobody has measured, among those that somebody has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.devices.model import DeviceModel
from keigo.placement.models import STEP, models_of, scaled
from keigo.placement.rates import assumed, rates_of


def latency(model: DeviceModel) -> float:
    return model.request_time("read", 1, 4096)


def device(seconds: float) -> DeviceModel:
    """One whose random read of 4 KiB takes so long."""
    return scaled(assumed(0), seconds / latency(assumed(0)))


def shown(*seconds: float | None) -> list[float]:
    """The latencies of tiers, None where they were not measured."""
    return [latency(model) for model in models_of([None if one is None else device(one) for one in seconds])]


def test_with_nothing_measured_all_is_assumed() -> None:
    assert models_of([None] * 4) == tuple(assumed(place) for place in range(4))


def test_what_was_measured_stays() -> None:
    measured = [device(1e-3), None, device(1e-5)]
    found = models_of(measured)
    assert (found[0], found[2]) == (measured[0], measured[2])


def test_behind_and_before_what_was_measured() -> None:
    assert shown(None, 1e-3, None, None) == pytest.approx([1e-3 / STEP, 1e-3, 1e-3 * STEP, 1e-3 * STEP**2])


@pytest.mark.parametrize(
    ("seconds", "between"),
    [
        ((1e-4, None, 1e-2), [4e-4]),  # 100 times: a step is enough
        ((1e-4, None, 4e-4), [2e-4]),
        ((1e-4, None, None, 8e-4), [2e-4, 4e-4]),
        ((1e-4, None, 1e-5), [1e-4]),  # listed in another order than measured
    ],
)
def test_between(seconds: tuple[float | None, ...], between: list[float]) -> None:
    assert shown(*seconds)[1:-1] == pytest.approx(between)


@given(st.lists(st.none() | st.floats(1e-6, 1), min_size=1, max_size=6))
def test_an_unmeasured_tier_is_not_faster_than_the_one_before(seconds: list[float | None]) -> None:
    found = shown(*seconds)
    for place in range(1, len(found)):
        if seconds[place] is None:
            assert found[place] >= found[place - 1] * (1 - 1e-9)


@given(st.lists(st.none() | st.floats(1e-12, 1e6), min_size=1, max_size=6))
def test_any_measurement_gives_rates(seconds: list[float | None]) -> None:
    for model in models_of([None if one is None else device(one) for one in seconds]):
        assert rates_of(model, 3.0, 2.0, 1e8).read > 0


def test_scaling_slows_every_request() -> None:
    slow = scaled(assumed(1), 8)
    for direction in ("read", "write"):
        for k in (1, 5, 100):
            time = assumed(1).request_time(direction, k, 65536, beside=2)
            assert slow.request_time(direction, k, 65536, beside=2) == pytest.approx(8 * time)
