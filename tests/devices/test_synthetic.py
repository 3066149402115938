"""The simulated devices that other tests rest on do what their parameters say."""

from __future__ import annotations

import pytest

from tests.devices.synthetic import BLOCKS, DEVICES, FULL_KS, KIB, Lane, measure, measure_device

LANE = Lane(base=1e-3, slots=8, bandwidth=100e6)


@pytest.mark.parametrize("k", FULL_KS)
@pytest.mark.parametrize("block", BLOCKS)
def test_throughput_is_bounded_by_clients_slots_and_bus(k: int, block: int) -> None:
    cell = measure(LANE, "read", k, block, noise=0.0)
    rate = cell.requests / cell.seconds
    alone = LANE.base + block / LANE.bandwidth
    bound = min(k / alone, LANE.slots / LANE.base, LANE.bandwidth / block)
    assert bound * 0.8 < rate <= bound * 1.0001  # slots and bus wait for one another a little where both are busy


def test_a_request_alone_takes_base_time_and_transfer() -> None:
    cell = measure(LANE, "read", 1, 64 * KIB, noise=0.0)
    assert cell.mean_us == pytest.approx((LANE.base + 64 * KIB / LANE.bandwidth) * 1e6)
    assert cell.p50_us == pytest.approx(cell.mean_us)


def test_a_declining_lane_has_its_best_k_at_its_slots() -> None:
    lane = Lane(base=1e-3, slots=4, bandwidth=1e9, decline=0.2)
    rates = {k: measure(lane, "write", k, 4 * KIB).bandwidth for k in (2, 4, 8, 32)}
    assert max(rates, key=rates.__getitem__) == 4
    assert rates[32] < rates[8] < rates[4]


def test_reads_are_slower_beside_writes() -> None:
    cells = measure_device(DEVICES["nvme"])
    (mixed,) = [c for c in cells if c.beside == 4 and c.direction == "read"]
    (alone,) = [
        c for c in cells if (c.direction, c.k, c.block_bytes, c.beside, c.pattern) == ("read", 4, 4 * KIB, 0, "random")
    ]
    assert mixed.mean_us > 1.2 * alone.mean_us


def test_one_seed_is_one_profile() -> None:
    device = DEVICES["nvmm"]
    assert measure_device(device, quick=True, seed=3) == measure_device(device, quick=True, seed=3)
    assert measure_device(device, quick=True, seed=3) != measure_device(device, quick=True, seed=4)
