"""How fast a migration may copy: what never happens at any load, and what devices of some kinds make of it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.devices.model import CostModel, DeviceModel, Form, Interference
from keigo.lsm.pressure import CALM, Pressure
from keigo.placement.budget import CHUNKS, IDLE, RARE, SLOWDOWN, TAIL, Budget, Leg, Use, budget, predicted, slowest_read
from keigo.placement.rates import assumed
from tests.devices.synthetic import synthetic_profile

MIB = 1 << 20
MODELS = {tier.tier: tier.model for tier in synthetic_profile(("nvmm", "nvme", "sata", "hdd")).tiers}
STALLED = Pressure(1.0, stalled=True)
A_BIT_MORE = 1 + 1e-9  # floating point


def speed(legs: list[Leg], pressure: Pressure = CALM, *, urgent: bool = False) -> float:
    return predicted(legs, budget(legs, pressure, urgent=urgent))


def copy(source: DeviceModel, target: DeviceModel, there: Use = IDLE, here: Use = IDLE) -> list[Leg]:
    return [Leg(source, there, "read"), Leg(target, here, "write")]


FORMS: st.SearchStrategy[Form] = st.sampled_from(["additive", "max"])


@st.composite
def costs(draw: st.DrawFn) -> CostModel:
    ks = draw(st.lists(st.integers(1, 128), min_size=1, max_size=6, unique=True).map(sorted))
    forms = [draw(FORMS) for _ in ks]
    return CostModel(
        tuple(forms),
        tuple(ks),
        tuple(draw(st.floats(1e-6, 1e-1)) for _ in ks),
        tuple(draw(st.floats(1e-11, 1e-6)) for _ in ks),
    )


INTERFERENCES = st.none() | st.builds(Interference, st.floats(0, 20), st.floats(1, 64))
DEVICES = st.one_of(
    st.sampled_from(list(MODELS.values())),
    st.integers(0, 3).map(assumed),
    st.builds(DeviceModel, costs(), costs(), st.none() | costs(), st.none() | costs(), INTERFERENCES, INTERFERENCES),
)
KS = st.floats(0, 200) | st.sampled_from([0.0, 1.0, 2.0])
BANDWIDTHS = st.floats(0, 1e10)
USES = st.builds(Use, KS, KS, BANDWIDTHS, BANDWIDTHS)
LEGS = st.lists(
    st.builds(Leg, DEVICES, USES, st.sampled_from(["read", "write"]), st.sampled_from([0.0, 1e-4, 1e-2])),
    min_size=1,
    max_size=2,
)
PRESSURES = st.builds(Pressure, st.floats(0, 1))


@given(LEGS, PRESSURES, st.data())
def test_never_faster_at_more_load(legs: list[Leg], pressure: Pressure, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(legs) - 1))
    name = data.draw(st.sampled_from([field.name for field in fields(Use)]))
    more = replace(legs[at].use, **{name: getattr(legs[at].use, name) + data.draw(st.floats(0, 1e10) | KS)})
    busier = [replace(leg, use=more) if index == at else leg for index, leg in enumerate(legs)]
    for urgent in (False, True):
        assert speed(busier, pressure, urgent=urgent) <= speed(legs, pressure, urgent=urgent) * A_BIT_MORE


@given(LEGS, PRESSURES, st.lists(st.floats(1e-6, 10.0), min_size=2, max_size=2))
def test_others_lose_no_more_than_the_bound(legs: list[Leg], pressure: Pressure, times: list[float]) -> None:
    """However long the chunks really take."""
    found, took = budget(legs, pressure), times[: len(legs)]
    lost = sum(time * loss for time, loss in zip(took, found.losses, strict=False))
    assert lost <= SLOWDOWN * found.period(took) * A_BIT_MORE
    assert found.period(took) >= sum(took)
    assert all(loss >= 0 for loss in found.losses)
    assert found.chunk in CHUNKS
    assert (found.paused is None) == (pressure.level0 < 1)


@given(LEGS, PRESSURES)
def test_no_faster_than_one_stream_alone(legs: list[Leg], pressure: Pressure) -> None:
    alone = [replace(leg, use=IDLE) for leg in legs]
    fastest = max(
        chunk / sum(leg.model.request_time(leg.direction, 1, chunk, pattern="sequential") for leg in alone)
        for chunk in CHUNKS
    )
    assert speed(legs, pressure) <= fastest * A_BIT_MORE
    assert speed(legs, pressure, urgent=True) <= fastest * A_BIT_MORE


@given(LEGS, st.floats(0, 1))
def test_writers_that_wait_stop_all_but_what_makes_room(legs: list[Leg], level0: float) -> None:
    found = budget(legs, Pressure(level0, stalled=True))
    assert found.paused
    assert predicted(legs, found) == 0
    assert budget(legs, STALLED, urgent=True) == Budget(CHUNKS[0]), "no rest at all"


@given(LEGS, PRESSURES, PRESSURES)
def test_never_faster_under_more_pressure(legs: list[Leg], one: Pressure, other: Pressure) -> None:
    less, more = sorted((one, other), key=lambda pressure: pressure.level0)
    assert speed(legs, more) <= speed(legs, less) * A_BIT_MORE


@pytest.mark.parametrize("target", ["sata", "hdd"])
def test_an_idle_device_is_used_in_full(target: str) -> None:
    legs = copy(MODELS["nvme"], MODELS[target])
    chunk = 256 << 10
    times = [leg.model.request_time(leg.direction, 1, chunk, pattern="sequential") for leg in legs]
    assert speed(legs) == pytest.approx(chunk / sum(times), rel=0.1)
    assert budget(legs, CALM).chunk == chunk


def test_a_device_that_others_wait_for_is_left_to_them() -> None:
    """A disk with one reader: each chunk would double its time, so one in ten of its requests may see one."""
    busy = copy(MODELS["hdd"], MODELS["nvme"], Use(read_k=1.0))
    idle = copy(MODELS["hdd"], MODELS["nvme"])
    assert 0 < speed(busy) < 0.2 * speed(idle)


def test_parallel_devices_have_room_below_their_saturation() -> None:
    """Four readers on a device with 32 slots leave most of them free; 64 leave none."""
    idle, four, many = (speed(copy(MODELS["nvme"], MODELS["sata"], Use(read_k=k))) for k in (0, 4, 64))
    assert four > 0.5 * idle
    assert many < 0.2 * idle


def test_small_chunks_where_somebody_would_wait_behind_large_ones() -> None:
    uses = (Use(), Use(read_k=1.0))
    idle, busy = (budget(copy(MODELS["nvme"], MODELS["sata"], use, use), CALM).chunk for use in uses)
    assert (idle, busy) == (256 << 10, 16 << 10)


@given(LEGS, PRESSURES)
def test_who_waits_for_a_whole_chunk_is_rare_or_waits_shortly(legs: list[Leg], pressure: Pressure) -> None:
    given = budget(legs, pressure)
    times = [1e-3] * len(legs)
    period = given.period(times)
    for leg, time in zip(legs, times, strict=True):
        for direction, k in (("read", leg.use.read_k), ("write", leg.use.write_k)):
            cost = leg.model.cost(leg.direction, "sequential")
            moving = given.chunk / max(n * CHUNKS[0] / cost.request_time(n, CHUNKS[0]) for n in cost.ks)
            small = leg.model.request_time(direction, 1, 4096)  # type: ignore[arg-type]
            assert (
                moving <= TAIL * max(small, leg.slowest) * A_BIT_MORE
                or min(1.0, k) * time / period <= RARE * A_BIT_MORE
            )


def test_the_slowest_reads_are_those_of_the_slowest_device_that_is_read_at_all() -> None:
    models = [MODELS["nvmm"], MODELS["nvme"], MODELS["hdd"]]
    alone = [model.request_time("read", 1, 4096) for model in models]
    assert slowest_read(models, [IDLE] * 3) == 0
    assert slowest_read(models, [Use(read_k=1.0), IDLE, IDLE]) == alone[0]
    rates = [10_000.0, 500.0, 50.0]
    uses = [Use(read_k=rate * time) for rate, time in zip(rates, alone, strict=True)]
    assert slowest_read(models, uses) == alone[1]  # one read in 200 of the disk is not among the slowest hundredth
    assert slowest_read(models, [*uses[:2], Use(read_k=4 * uses[2].read_k)]) == alone[2]


def test_a_copy_between_fast_devices_is_hidden_by_reads_of_a_slow_one() -> None:
    seen, hidden = (
        [Leg(MODELS["nvmm"], Use(read_k=0.5), "read", slow), Leg(MODELS["nvme"], Use(read_k=0.5), "write", slow)]
        for slow in (0.0, MODELS["hdd"].request_time("read", 1, 4096))
    )
    assert speed(hidden) > 2 * speed(seen)


def test_a_thread_that_seldom_waits_for_the_device_hardly_counts() -> None:
    idle, seldom, always = (speed(copy(MODELS["hdd"], MODELS["nvme"], Use(read_k=k))) for k in (0, 0.02, 1))
    assert seldom > 0.9 * idle
    assert always < 0.5 * idle


def test_level_0_half_full_halves_it() -> None:
    legs = copy(MODELS["nvme"], MODELS["sata"], Use(3, 3))
    assert speed(legs, Pressure(0.5)) == pytest.approx(0.5 * speed(legs))
    assert speed(legs, Pressure(1.0)) == 0


def test_what_is_one_s_own_does_not_count() -> None:
    all_of_it = Use(1.0, 2.0, 300.0, 400.0)
    assert all_of_it.less(Use(0.25, 2.5, 100.0, 0.0)) == Use(0.75, 0.0, 200.0, 400.0)


SLOT = CostModel(("max",), (1,), (1e-3,), (1e-9,))
"""One request at a time, of 1 ms, whatever its size."""
MANY = CostModel(("max", "max"), (1, 64), (1e-3, 1e-3), (1e-9, 1e-9))
"""Any number of requests at a time."""


def alone(model: DeviceModel, use: Use = IDLE) -> list[Leg]:
    return [Leg(model, use, "read")]


def test_among_others_a_stream_gets_its_share() -> None:
    """An urgent one: it is held back by nothing else."""
    chunk = 256 << 10
    speeds = [speed(alone(DeviceModel(SLOT, SLOT), Use(read_k=k)), urgent=True) for k in (0, 1, 3)]
    assert speeds == pytest.approx([chunk / 1e-3, chunk / 2e-3, chunk / 4e-3])


def test_beside_writers_a_reading_stream_is_slower() -> None:
    model = DeviceModel(SLOT, SLOT, reads_beside_writes=Interference(3.0, 2.0))
    speeds = [speed(alone(model, Use(write_k=k)), urgent=True) for k in (0, 2)]
    assert speeds[1] == pytest.approx(speeds[0] / 4)


def test_writers_whom_reads_disturb() -> None:
    """A chunk that is read makes writes five times as long, so the copy may read for a fortieth of the time."""
    model = DeviceModel(MANY, MANY, writes_beside_reads=Interference(4.0, 1.0))
    assert budget(alone(model, Use(write_k=1.0)), CALM).period([1e-3]) == pytest.approx(1e-3 * 4 / SLOWDOWN)


def test_a_device_whose_bandwidth_is_used_up() -> None:
    """It could take many more requests, but moves no more: beside half of that a copy fits, beside all hardly."""
    bus = CostModel(("additive", "additive"), (1, 16), (1e-3, 1e-3), (1e-9, 16e-9))
    peak = 16 * (256 << 10) / (1e-3 + 16e-9 * (256 << 10))
    half, full = (speed(alone(DeviceModel(bus, bus), Use(1.0, read_bandwidth=share * peak))) for share in (0.5, 1.0))
    assert full < 0.7 * half


def test_a_bump_in_a_model_gives_no_speed_back() -> None:
    """Measured: slow at 2, fast again at 8. More load does not make it faster."""
    bump = CostModel(("max",) * 4, (1, 2, 8, 64), (1e-3, 9e-3, 1e-3, 1e-3), (1e-9,) * 4)
    at_2, at_8 = (speed(alone(DeviceModel(bump, bump), Use(read_k=k))) for k in (2, 8))
    assert at_8 <= at_2
