"""The cost of a request: forms, interpolation, extrapolation, interference; what a foreign table must not do."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.devices.model import CostModel, DeviceModel, Form, Interference

KIB = 1 << 10
MIB = 1 << 20

setups = st.floats(1e-7, 1.0)
transfers = st.floats(1e-12, 1e-6)
sizes = st.floats(512, 16 * MIB)


@st.composite
def costs(draw: st.DrawFn) -> CostModel:
    ks = sorted(draw(st.sets(st.integers(1, 128), min_size=1, max_size=8)))

    def table(values: st.SearchStrategy[float]) -> tuple[float, ...]:
        return tuple(draw(st.lists(values, min_size=len(ks), max_size=len(ks))))

    forms: list[Form] = draw(st.lists(st.sampled_from(["additive", "max"]), min_size=len(ks), max_size=len(ks)))
    return CostModel(tuple(forms), tuple(ks), table(setups), table(transfers))


def slots(count: int, base: float, bandwidth: float, ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)) -> CostModel:
    """A device with so many slots of `base` seconds, and a bus."""
    forms: list[Form] = ["additive" if k == ks[0] else "max" for k in ks]
    setups = tuple(base * max(1, k / count) for k in ks)
    return CostModel(tuple(forms), ks, setups, tuple(k / bandwidth for k in ks))


DEVICE = DeviceModel(slots(16, 100e-6, 1e9), slots(4, 50e-6, 5e8))


def test_additive_is_setup_plus_transfer() -> None:
    cost = CostModel(("additive",), (1,), (1e-3,), (1e-8,))
    assert cost.request_time(1, 100_000) == pytest.approx(2e-3)


def test_max_is_the_slower_of_the_two() -> None:
    cost = CostModel(("max",), (1,), (1e-3,), (1e-8,))
    assert cost.request_time(1, 50_000) == pytest.approx(1e-3)
    assert cost.request_time(1, 200_000) == pytest.approx(2e-3)


@given(costs(), sizes)
def test_measured_points_are_met(cost: CostModel, size: float) -> None:
    for form, k, setup, transfer in zip(cost.form, cost.ks, cost.setup, cost.transfer, strict=True):
        expected = setup + transfer * size if form == "additive" else max(setup, transfer * size)
        assert cost.request_time(k, size) == pytest.approx(expected)


@given(costs(), st.floats(0, 1), sizes)
def test_between_measured_k_it_is_linear(cost: CostModel, share: float, size: float) -> None:
    for low, high in pairwise(cost.ks):
        there = cost.request_time(low + share * (high - low), size)
        ends = cost.request_time(low, size), cost.request_time(high, size)
        assert there == pytest.approx((1 - share) * ends[0] + share * ends[1])


@given(costs(), st.floats(0, 300), sizes, st.floats(1, 100))
def test_larger_blocks_never_take_less(cost: CostModel, k: float, size: float, times: float) -> None:
    small, large = cost.request_time(k, size), cost.request_time(k, size * times)
    assert 0 < small <= large * (1 + 1e-12)


@given(costs(), st.floats(1, 50), sizes)
def test_beyond_the_largest_k_throughput_stays(cost: CostModel, times: float, size: float) -> None:
    last = cost.ks[-1]
    assert cost.request_time(last * times, size) == pytest.approx(times * cost.request_time(last, size))


@given(costs(), st.floats(0, 1), sizes)
def test_below_the_smallest_k_time_stays(cost: CostModel, share: float, size: float) -> None:
    assert cost.request_time(share * cost.ks[0], size) == cost.request_time(cost.ks[0], size)


def test_throughput_is_k_blocks_per_time_of_one() -> None:
    assert DEVICE.throughput("read", 8, 4 * KIB) == pytest.approx(8 * 4096 / 100e-6)
    assert DEVICE.throughput("read", 64, MIB) == pytest.approx(1e9)
    idle, alone = (DEVICE.throughput("read", k, 4 * KIB) for k in (0.25, 1))
    assert idle == pytest.approx(alone / 4)


def test_saturation_is_told_of_each_direction() -> None:
    assert DEVICE.saturation("read") == 16
    assert DEVICE.saturation("write") == 4


def test_a_device_that_declines_is_saturated_before_it_does() -> None:
    # k s(k) over k: best at 4, worse beyond.
    declining = CostModel(("max",) * 4, (1, 4, 8, 16), (1e-4, 1e-4, 3e-4, 9e-4), (1e-12,) * 4)
    model = DeviceModel(DEVICE.random_read, declining)
    assert model.saturation("write") == 4
    rates = [model.throughput("write", k, 4096) for k in (1, 4, 8, 16, 64)]
    assert max(rates) == rates[1]
    assert rates[3] == pytest.approx(rates[4])


def test_a_pattern_that_was_not_measured_costs_what_random_does() -> None:
    sequential = slots(16, 10e-6, 1e9)
    model = msgspec.structs.replace(DEVICE, sequential_read=sequential)
    assert model.request_time("read", 1, 4096, pattern="sequential") == sequential.request_time(1, 4096)
    assert model.request_time("write", 1, 4096, pattern="sequential") == model.request_time("write", 1, 4096)


def test_interference_grows_until_the_other_side_is_saturated() -> None:
    model = msgspec.structs.replace(DEVICE, reads_beside_writes=Interference(1.5, 4))
    alone = model.request_time("read", 2, 4096)
    factors = [model.request_time("read", 2, 4096, beside=w) / alone for w in (0, 1, 2, 4, 8)]
    assert factors == pytest.approx([1, 1.375, 1.75, 2.5, 2.5])
    assert model.request_time("write", 2, 4096, beside=8) == model.request_time("write", 2, 4096)


@pytest.mark.parametrize(
    "broken",
    [
        {"ks": []},
        {"ks": [1]},
        {"ks": [4, 2]},
        {"ks": [0, 2]},
        {"setup": [1e-4]},
        {"form": ["max"]},
        {"setup": [1e-4, -1e-4]},
        {"setup": [0, 0], "transfer": [1e-9, 0]},
        {"form": ["max", "min"]},
        {"setup": [1e300, 1e300]},
        {"setup": [0, 0], "transfer": [5e-324, 5e-324]},
        {"ks": [1, 10**30]},
    ],
)
def test_a_foreign_table_that_makes_no_sense_is_refused(broken: dict[str, object]) -> None:
    table = {"form": ["additive", "max"], "ks": [1, 2], "setup": [1e-4, 1e-4], "transfer": [1e-9, 2e-9]}
    msgspec.convert(table, CostModel)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(table | broken, CostModel)


@pytest.mark.parametrize(
    ("slowdown", "saturation"), [(-1, 4), (1, 0), (float("nan"), 4), (1, float("inf")), (1e300, 4), (1, 1e-300)]
)
def test_interference_that_makes_no_sense_is_refused(slowdown: float, saturation: float) -> None:
    with pytest.raises(ValueError, match="is"):
        Interference(slowdown, saturation)


def test_a_model_is_the_same_after_json() -> None:
    model = msgspec.structs.replace(DEVICE, reads_beside_writes=Interference(1.5, 4))
    assert msgspec.json.decode(msgspec.json.encode(model), type=DeviceModel) == model
