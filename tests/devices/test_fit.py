"""Models fitted to devices of which everything is known."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keigo.devices.baselines import errors
from keigo.devices.fit import fit, parameters, request_seconds
from keigo.devices.model import DeviceModel
from keigo.devices.profile import SECTOR, Cell, Direction, Pattern
from tests.devices.synthetic import (
    BLOCKS,
    DEVICES,
    FULL_KS,
    KIB,
    MIB,
    NVME,
    QUICK_KS,
    Device,
    Lane,
    measure,
    measure_device,
    measure_sectors,
)

DIRECTIONS: tuple[Direction, ...] = ("read", "write")

# Real devices ten times slower, as the testbed has them. Their slots show: 4 KiB requests fill them before the bus.
SLOWED = {
    "nvmm": Device(Lane(44e-6, 2, 652e6), Lane(71e-6, 4, 222e6, decline=0.43), interference=0.26),
    "nvme": Device(Lane(515e-6, 32, 350e6), Lane(154e-6, 9, 330e6), interference=1.0),
    "sata": Device(Lane(1018e-6, 8, 50e6), Lane(436e-6, 2, 49e6), interference=1.0),
}


def cell(
    k: int, block: int, seconds: float, direction: Direction = "read", pattern: Pattern = "random", beside: int = 0
) -> Cell:
    """A cell in which a request among k took so many seconds."""
    return Cell(
        direction, pattern, k, block, 1000, seconds * 1000 / k, seconds * 1e6, seconds * 1e6, seconds * 1e6, beside
    )


def both(cells: Sequence[Cell]) -> list[Cell]:
    """The same for writes."""
    return [*cells, *(msgspec.structs.replace(one, direction="write") for one in cells)]


def shaken(cells: Sequence[Cell], by: float, seed: int = 0) -> list[Cell]:
    """Cells whose times are off by a factor each, `by` being the standard deviation of its ln."""
    chance = random.Random(seed)
    return [msgspec.structs.replace(one, seconds=one.seconds * chance.lognormvariate(0, by)) for one in cells]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SLOWED)
def test_base_slots_and_bandwidth_are_recovered(name: str, quick: bool, seed: int) -> None:
    device = SLOWED[name]
    model = fit(shaken(measure_device(device, quick=quick, noise=0.02, seed=seed), 0.02, seed))
    for direction, lane in zip(DIRECTIONS, (device.read, device.write), strict=True):
        found = parameters(model, direction)
        assert found.base_seconds == pytest.approx(lane.base, rel=0.1)
        assert found.slots == pytest.approx(lane.slots, rel=0.1)
        assert found.bandwidth == pytest.approx(lane.bandwidth, rel=0.1)


# 20 times slower: with 4 writes of 4 KiB under way the bus is as busy as the slots, and with more the device declines.
BUS_FIRST = Device(Lane(88e-6, 2, 326e6), Lane(143e-6, 4, 111e6, decline=0.43))


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["bus first", *SLOWED])
def test_slots_are_recovered_from_sectors(name: str, quick: bool, seed: int) -> None:
    device = SLOWED.get(name, BUS_FIRST)
    cells = shaken(measure_device(device, quick=quick, noise=0.02, seed=seed), 0.02, seed)
    sectors = shaken(measure_sectors(device, quick=quick, noise=0.02, seed=seed), 0.02, seed + 100)
    model = fit([*cells, *sectors])
    for direction, lane in zip(DIRECTIONS, (device.read, device.write), strict=True):
        found = parameters(model, direction, [*cells, *sectors])
        assert found.slots == pytest.approx(lane.slots, rel=0.1)
        without = parameters(fit(cells), direction)
        assert (found.base_seconds, found.bandwidth) == (without.base_seconds, without.bandwidth)


def test_without_sectors_a_bus_that_fills_first_hides_slots() -> None:
    lane = Lane(143e-6, 4, 60e6, decline=0.43)
    cells = [measure(lane, side, k, x, noise=0.02) for side in DIRECTIONS for k in FULL_KS for x in BLOCKS]
    assert parameters(fit(cells), "write").slots < 3.5
    sectors = [measure(lane, side, k, SECTOR, noise=0.02) for side in DIRECTIONS for k in QUICK_KS]
    assert parameters(fit(cells), "write", sectors).slots == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("modify", [0.5, 1.0, 5.0])
def test_sectors_tell_of_slots_alone_also_where_a_page_is_modified(modify: float) -> None:
    cells = measure_device(NVME)
    sectors = measure_sectors(NVME, modify=modify)
    assert fit([*sectors, *cells]) == fit(cells)
    found = parameters(fit(cells), "write", [*sectors, *cells])
    assert found.slots == pytest.approx(16, rel=0.1)
    assert found.base_seconds == parameters(fit(cells), "write").base_seconds


def test_slots_are_those_of_the_model_where_sectors_do_not_tell() -> None:
    cells = measure_device(BUS_FIRST)
    sectors = [cell(k, SECTOR, 1e-3 * max(1, k / 24), "read") for k in QUICK_KS]
    model = fit(cells)
    told = parameters(model, "read")
    smaller = cell(1, SECTOR // 2, 1e-3, "write")
    assert parameters(model, "read", [smaller, *cells, *sectors]).slots == pytest.approx(24)
    others = [
        *(msgspec.structs.replace(one, pattern="sequential") for one in sectors),
        *(msgspec.structs.replace(one, beside=4) for one in sectors),
        *(msgspec.structs.replace(one, direction="write") for one in sectors),
    ]
    for some in (cells, sectors[:1], sectors[1:], others):
        assert parameters(model, "read", some) == told


@pytest.mark.parametrize("met", [1, 2, 8])
def test_what_meets_one_cell_makes_no_slots(met: int) -> None:
    sectors = [cell(k, SECTOR, 1e-3 * max(1, k / 4) * (1.6 if k == met else 1)) for k in QUICK_KS]
    assert parameters(fit(both([cell(1, 4 * KIB, 1e-3)])), "read", sectors).slots == pytest.approx(4, rel=0.1)


@given(st.floats(1e-6, 1e-1), st.integers(1, 64), st.floats(0, 1))
def test_slots_between_two_k_are_told_without_decline_and_at_a_k_with_it(
    base: float, slots: int, decline: float
) -> None:
    def sectors(decline: float) -> list[Cell]:
        return [cell(k, SECTOR, (1 + decline * max(0, k - slots) / slots) * base * max(1, k / slots)) for k in QUICK_KS]

    model = fit(both([cell(1, 4 * KIB, base)]))
    assert parameters(model, "read", sectors(0)).slots == pytest.approx(slots, rel=0.1)
    found = parameters(model, "read", sectors(decline)).slots
    at_least = max(k for k in QUICK_KS if k <= slots)
    assert 0.95 * at_least <= found <= 1.1 * slots
    if slots in QUICK_KS:
        assert found == pytest.approx(slots, rel=0.1)


def test_a_bandwidth_that_seeks_hide_is_recovered_from_single_requests() -> None:
    found = parameters(fit(measure_device(DEVICES["hdd"])), "read")
    assert found.bandwidth == pytest.approx(18e6, rel=0.1)
    assert found.slots == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("name", ["nvmm", "nvme", "sata", "hdd"])
def test_a_quick_profile_predicts_a_full_one(name: str) -> None:
    model = fit(measure_device(DEVICES[name], quick=True))
    full = [one for one in measure_device(DEVICES[name], seed=7) if one.pattern == "random"]
    assert errors(model, full).median < 0.15


def test_an_additive_device_is_fitted_as_one() -> None:
    cells = [cell(k, x, k * (1e-3 + x * 1e-8)) for k in FULL_KS for x in BLOCKS]
    model = fit(shaken(both(cells), 0.02))
    assert set(model.random_read.form) == {"additive"}
    assert model.random_read.setup[0] == pytest.approx(1e-3, rel=0.1)
    assert model.random_read.transfer[-1] == pytest.approx(64e-8, rel=0.1)


def test_a_max_device_is_fitted_as_one() -> None:
    cells = [cell(k, x, k * max(1e-3, x * 1e-8)) for k in FULL_KS for x in BLOCKS]
    model = fit(shaken(both(cells), 0.02))
    assert set(model.random_read.form) == {"max"}
    assert model.random_read.setup[0] == pytest.approx(1e-3, rel=0.1)
    assert model.random_read.transfer[-1] == pytest.approx(64e-8, rel=0.1)


def test_a_device_with_slots_is_additive_alone_and_max_among_many() -> None:
    model = fit(measure_device(NVME))
    assert model.random_read.form[0] == "additive"
    assert set(model.random_read.form[2:]) == {"max"}


def test_forms_that_fit_alike_are_not_told_apart_by_noise() -> None:
    # Transfer alone from 4 KiB on at k = 16, the only k > 1 with large blocks.
    model = fit(measure_device(DEVICES["nvmm"], quick=True))
    assert model.random_read.form == ("additive", *["max"] * 6)
    assert model.random_write.form == ("additive", *["max"] * 6)


def test_a_transfer_that_noise_hides_is_not_for_nothing() -> None:
    cells = both([cell(1, x, 1e-3 * (1.05 - 0.02 * index)) for index, x in enumerate(BLOCKS)])
    model = fit([*cells, *both([cell(8, x, 1e-3 * (1.05 - 0.02 * index)) for index, x in enumerate(BLOCKS)])])
    peak = max(one.bandwidth for one in cells) * 8
    assert model.throughput("read", 1, 1 << 40) < 4.1 * peak


def test_a_transfer_that_setup_hides_is_that_of_the_other_k() -> None:
    # 1 MiB takes a little longer to move than to set up; at k = 8 it was not measured.
    cells = [cell(k, x, k * max(80e-3, x * 100e-3 / MIB)) for k in FULL_KS for x in BLOCKS if (k, x) not in [(8, MIB)]]
    assert fit(both(cells)).request_time("read", 8, MIB) == pytest.approx(8 * 100e-3, rel=0.05)


def test_a_declining_device_keeps_its_best_k() -> None:
    lane = Lane(60e-6, 4, 900e6, decline=0.15)
    cells = [measure(lane, side, k, x) for side in DIRECTIONS for k in FULL_KS for x in BLOCKS]
    model = fit(cells)
    rates = {k: model.throughput("write", k, 4 * KIB) for k in FULL_KS}
    best = max(rates, key=rates.__getitem__)
    measured = {one.k: one.bandwidth for one in cells if one.direction == "write" and one.block_bytes == 4 * KIB}
    assert best == max(measured, key=measured.__getitem__)
    assert model.saturation("write") <= best < 16
    assert rates[64] < 0.6 * rates[best]


def test_points_measured_without_noise_are_met() -> None:
    model = fit(both([cell(k, x, max(k, 8) * 1e-4 + k * x * 1e-9) for k in (1, 4, 16, 64) for x in BLOCKS]))
    for k in (1, 4, 16, 64):
        for x in BLOCKS:
            assert model.request_time("read", k, x) == pytest.approx(max(k, 8) * 1e-4 + k * x * 1e-9)


def test_k_with_small_blocks_only_get_their_transfer_from_the_others() -> None:
    cells = [cell(k, 4 * KIB, max(1e-3 + 4096e-8, k * 4096e-8)) for k in (1, 2, 4, 8, 16, 32)]
    cells += [cell(k, x, max(1e-3 + x * 1e-8, k * x * 1e-8)) for k in (1, 8) for x in BLOCKS[2:]]
    model = fit(both(cells))
    for k in (2, 4, 16, 32):
        assert model.request_time("read", k, MIB) == pytest.approx(max(1e-3 + MIB * 1e-8, k * MIB * 1e-8), rel=0.1)
        assert model.request_time("read", k, 4 * KIB) == pytest.approx(max(1e-3 + 4096e-8, k * 4096e-8), rel=0.01)


def test_without_large_blocks_at_some_k_its_few_sizes_do_not_tell_of_transfer() -> None:
    cells = [cell(k, x, 1e-3 + k * x * 1e-9) for k in (1, 8) for x in BLOCKS]
    # At k = 4 noise makes 16 KiB faster than 4 KiB.
    cells += [cell(4, 4 * KIB, 1.02e-3), cell(4, 16 * KIB, 1.00e-3)]
    assert fit(both(cells)).request_time("read", 4, MIB) == pytest.approx(1e-3 + 4 * MIB * 1e-9, rel=0.3)


def test_one_block_size_gives_no_more_than_was_seen() -> None:
    model = fit(both([cell(k, 16 * KIB, 1e-3) for k in (1, 8)]))
    assert model.request_time("read", 8, 4 * KIB) == pytest.approx(1e-3)
    assert model.request_time("read", 8, 64 * KIB) == pytest.approx(4e-3)


def test_a_single_cell_of_each_direction_is_a_model() -> None:
    model = fit(both([cell(1, 4 * KIB, 1e-3)]))
    assert model.request_time("read", 4, 4 * KIB) == pytest.approx(4e-3)
    assert parameters(model, "read").base_seconds == pytest.approx(1e-3)
    assert parameters(model, "read").slots == pytest.approx(1)


def test_sequential_requests_have_their_own_cost_where_measured() -> None:
    cells = both([cell(k, x, 8e-3 + k * x * 1e-8) for k in (1, 4) for x in BLOCKS])
    assert fit(cells).sequential_read is None
    cells += [cell(k, x, k * x * 1e-8 + 1e-5, pattern="sequential") for k in (1, 4) for x in (4 * KIB, 128 * KIB, MIB)]
    model = fit(cells)
    assert model.request_time("read", 1, 4 * KIB, pattern="sequential") == pytest.approx(5e-5, rel=0.1)
    assert model.sequential_write is None


def test_sequential_requests_of_one_size_set_up_no_longer_than_random_ones() -> None:
    cells = both([cell(k, x, 1e-4 + k * x * 1e-8) for k in (1, 4) for x in BLOCKS])
    cells += [cell(k, 128 * KIB, k * 128 * KIB * 1e-8, pattern="sequential") for k in (1, 4)]
    model = fit(cells)
    assert model.request_time("read", 1, 4 * KIB, pattern="sequential") == pytest.approx(1e-4, rel=0.05)
    assert model.request_time("read", 4, MIB, pattern="sequential") == pytest.approx(4 * MIB * 1e-8)


def test_interference_is_taken_from_mixed_cells() -> None:
    cells = [cell(k, x, max(1, k / 4) * 1e-3 + k * x * 1e-8) for k in (1, 2, 4, 8, 16) for x in BLOCKS]
    cells += [cell(k, x, max(1, k / 8) * 1e-3 + k * x * 1e-8, "write") for k in (1, 2, 4, 8, 16) for x in BLOCKS]
    assert fit(cells).reads_beside_writes is None
    saturation = fit(cells).saturation("write")
    assert saturation > fit(cells).saturation("read")
    for k, beside in ((1, 1), (4, 4), (4, 16), (8, 16)):
        alone = max(1, k / 4) * 1e-3 + k * 4096 * 1e-8
        cells.append(cell(k, 4 * KIB, alone * (1 + 1.5 * min(1, beside / saturation)), beside=beside))
    model = fit(shaken(cells, 0.01))
    found = model.reads_beside_writes
    assert found is not None
    assert found.slowdown == pytest.approx(1.5, rel=0.1)
    assert found.saturation == saturation
    assert model.writes_beside_reads is None


def test_requests_that_are_faster_beside_others_are_not_made_so() -> None:
    cells = both([cell(k, x, 1e-3 + k * x * 1e-8) for k in (1, 4) for x in BLOCKS])
    cells.append(cell(4, 4 * KIB, 0.9e-3, beside=4))
    found = fit(cells).reads_beside_writes
    assert found is not None
    assert found.slowdown == 0


def random_cells(draw: st.DrawFn) -> list[Cell]:
    """Any grid with any times."""
    found = []
    for direction in DIRECTIONS:
        points = draw(st.sets(st.tuples(st.integers(1, 64), st.sampled_from(BLOCKS)), min_size=1, max_size=12))
        found += [cell(k, x, draw(st.floats(1e-7, 10)), direction) for k, x in sorted(points)]
        sectors = draw(st.sets(st.integers(1, 64), max_size=4))
        found += [cell(k, SECTOR, draw(st.floats(1e-7, 10)), direction) for k in sorted(sectors)]
    return found


@settings(max_examples=200)
@given(st.composite(random_cells)(), st.floats(0, 128), st.sampled_from(BLOCKS))
def test_any_cells_make_a_model_that_is_finite_monotone_and_no_wonder(cells: list[Cell], k: float, size: int) -> None:
    model = fit(cells)
    for direction in DIRECTIONS:
        times = [model.request_time(direction, k, x) for x in (size / 8, size, size * 8)]
        assert all(math.isfinite(time) and time > 0 for time in times)
        assert times == sorted(times)
        for some in ((), cells):
            assert all(math.isfinite(value) and value >= 0 for value in parameters(model, direction, some))


@settings(max_examples=30)
@given(
    st.floats(2e-5, 1e-2),
    st.integers(1, 64),
    st.floats(2e7, 5e9),
    st.floats(0, 0.05),
    st.integers(0, 10),
)
def test_no_throughput_is_far_above_what_was_measured(
    base: float, slots: int, bandwidth: float, noise: float, seed: int
) -> None:
    cells = [
        cell(k, x, max(base + x / bandwidth, k * base / slots, k * x / bandwidth)) for k in FULL_KS for x in BLOCKS
    ]
    cells = shaken(both(cells), noise, seed)
    model = fit(cells)
    peak = max(one.bandwidth for one in cells)
    for k in (1, 3, 5, 10, 20, 64, 200):
        for x in (512, *BLOCKS):
            assert model.throughput("read", k, x) < 1.25 * peak
    assert errors(model, [one for one in cells if one.direction == "read"]).median < max(0.02, 1.5 * noise)


@settings(max_examples=30)
@given(st.sets(st.sampled_from([(k, x) for k in FULL_KS[1:] for x in BLOCKS[1:-1]]), max_size=30), st.integers(0, 9))
def test_any_cells_that_are_missing_leave_a_fair_model(missing: set[tuple[int, int]], seed: int) -> None:
    lane = replace(NVME.read, bandwidth=600e6)
    whole = {
        (k, x): cell(k, x, max(lane.base + x / lane.bandwidth, k * lane.base / lane.slots, k * x / lane.bandwidth))
        for k in FULL_KS
        for x in BLOCKS
    }
    some = shaken(both([one for point, one in whole.items() if point not in missing]), 0.01, seed)
    model: DeviceModel = fit(some)
    off = [abs(model.request_time("read", k, x) / request_seconds(one) - 1) for (k, x), one in whole.items()]
    assert median(off) < 0.05
    assert max(off) < 0.45


def test_what_was_not_measured_is_said() -> None:
    only_reads = [cell(1, 4 * KIB, 1e-3)]
    with pytest.raises(ValueError, match=r"^no random read was measured$"):
        fit([])
    with pytest.raises(ValueError, match=r"^no random write was measured$"):
        fit(only_reads)
    with pytest.raises(ValueError, match=r"^no random write was measured$"):
        fit([*only_reads, cell(1, 4 * KIB, 1e-3, "write", "sequential"), cell(1, 4 * KIB, 1e-3, "write", beside=1)])


@pytest.mark.parametrize(
    "broken",
    [
        {"requests": 0},
        {"seconds": 0.0},
        {"seconds": math.nan},
        {"seconds": math.inf},
        {"seconds": -1.0},
        {"k": 0},
        {"block_bytes": 0},
    ],
)
@pytest.mark.parametrize("beside", [0, 4])
def test_a_cell_without_a_measurement_is_named(broken: dict[str, float], beside: int) -> None:
    cells = both([cell(k, x, 1e-3) for k in (1, 4) for x in BLOCKS])
    for size in (4 * KIB, SECTOR):
        spoilt = msgspec.structs.replace(cell(4, size, 1e-3, beside=beside), **broken)
        with pytest.raises(ValueError, match=r"^random read of \d+ bytes at k = \d: .* are no measurement$"):
            fit([*cells, spoilt])
