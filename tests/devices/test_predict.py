"""The bottleneck analysis: worked by hand for devices with round figures, and against the sums of `lsm_costs`."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.devices.lsm_costs import WAL, Load, Tree, ingest, lookup, scan, write_amplification
from keigo.devices.model import CostModel, DeviceModel, Interference
from keigo.devices.predict import STREAM, Demand, Hits, Mix, Threads, Weight, Work, demands_of, predict

MIB = 1 << 20


def constant(seconds: float) -> DeviceModel:
    """Every request takes so long, however many there are, and of whatever size."""
    cost = CostModel(("max", "max"), (1, 4096), (seconds, seconds), (0.0, 0.0))
    return DeviceModel(cost, cost)


def slotted(seconds: float, slots: int, slowdown: float = 0.0) -> DeviceModel:
    """Requests take so long in one of the slots, and wait for one; reads slow down beside writes."""
    ks = (1, slots, 2 * slots)
    cost = CostModel(("max", "max", "max"), ks, (seconds, seconds, 2 * seconds), (0.0, 0.0, 0.0))
    return DeviceModel(cost, cost, reads_beside_writes=Interference(slowdown, 1) if slowdown else None)


def read(requests: float, threads: int, device: str = "d") -> Demand:
    return Demand(device, "read", False, 4096, requests, (Weight("readers", 1 / threads),))


def test_threads_are_the_bottleneck_where_the_device_has_slots_left() -> None:
    found = predict([read(2, 4)], [], {"d": slotted(0.01, 16)})
    assert found.rate == pytest.approx(4 / 0.02)
    assert found.devices["d"].read_k == pytest.approx(4, rel=0.01)
    assert found.devices["d"].read_busy == pytest.approx(4 / 16, rel=0.01)
    assert found.bottleneck == "readers: 100% of their time in d reads"


def test_the_device_is_the_bottleneck_where_threads_wait_for_slots() -> None:
    found = predict([read(1, 64)], [], {"d": slotted(0.01, 16)})
    assert found.rate == pytest.approx(16 / 0.01, rel=0.01)
    assert found.devices["d"].read_busy == pytest.approx(1.0, rel=0.01)


def test_two_devices_share_the_threads_by_their_times() -> None:
    demands = [read(1, 8, "fast"), read(0.5, 8, "slow")]
    found = predict(demands, [], {"fast": constant(0.01), "slow": constant(0.1)})
    assert found.rate == pytest.approx(8 / (0.01 + 0.05))
    assert found.devices["slow"].read_k == pytest.approx(8 * 0.05 / 0.06, rel=0.01)
    assert found.bottleneck == "readers: 83% of their time in slow reads"


def test_reads_slow_down_beside_writes() -> None:
    write = Demand("d", "write", False, 4096, 1, (Weight("writers", 1 / 64),))
    alone = predict([read(1, 4)], [], {"d": slotted(0.01, 16, slowdown=1.0)})
    beside = predict([read(1, 4), write], [], {"d": slotted(0.01, 16, slowdown=1.0)})
    assert beside.rate == pytest.approx(alone.rate / 2, rel=0.01)


def test_the_cpu_can_be_the_bottleneck() -> None:
    found = predict([read(1, 4)], [Work(0.1, (Weight("CPU", 1 / 2),))], {"d": constant(0.01)})
    assert found.rate == pytest.approx(20)
    assert found.bottleneck == "CPU"


def test_no_demand_is_refused() -> None:
    with pytest.raises(ValueError, match="demands nothing"):
        predict([], [], {})


TREE = Tree(data_bytes=100 * MIB, entry_bytes=500, file_bytes=2 * MIB, growth=4, level0_bytes=4 * MIB)
SLOW = constant(0.02)


def seconds(demands: list[Demand]) -> float:
    return math.fsum(demand.requests * 0.02 for demand in demands)


@pytest.mark.parametrize("style", ["leveled", "universal"])
def test_demands_are_what_the_costs_say(style: str) -> None:
    tree = Tree(100 * MIB, 500, 2 * MIB, 4, 4 * MIB, style="universal" if style == "universal" else "leveled")
    count = len(ingest(tree, {0: SLOW}, Load()).levels)
    places = ["d"] * count

    def demanded(mix: Mix) -> float:
        return seconds(demands_of(tree, places, "d", mix, Threads(2, 1), Hits())[0])

    load = Load(stream_bytes=STREAM)
    assert demanded(Mix(1, 0, 1)) == pytest.approx(lookup(tree, {0: SLOW}, load).seconds)
    assert demanded(Mix(0, 1, 1)) == pytest.approx(scan(tree, {0: SLOW}, load, 100).seconds)
    assert demanded(Mix(0, 0, 1)) == pytest.approx(500 * ingest(tree, {WAL: SLOW, 0: SLOW}, load).seconds)


def test_a_leveled_tree_by_hand() -> None:
    # Level 0 of 4 MiB is merged into 4 MiB: 1 and 1 more are read, 2 written; 8 threads, but one job of 2.
    tree = Tree(8 * MIB, 1000, MIB, 10, 4 * MIB)
    demands, _ = demands_of(tree, ["d", "d"], "d", Mix(0, 0, 1), Threads(4, 2), Hits())
    # Of 1 MiB, with 2 small ones for each file read, and 5 for each written.
    requests = (2 * (1 + 2) + 2 * (1 + 5)) * 1000 / STREAM
    found = predict(demands, [], {"d": constant(0.02)})
    assert found.rate == pytest.approx(2 / (requests * 0.02))
    assert found.bottleneck.startswith("compaction at levels 0 to 2")
    assert found.pools["compaction threads"] == pytest.approx(1 / 4)
    assert found.pools["flush threads"] == pytest.approx(2 / 18 * 6)


def test_caches_take_their_share_of_blocks() -> None:
    mix = Mix(1, 0, 1)
    places = ["fast", "fast", "slow", "slow", "slow"]
    plain, _ = demands_of(TREE, places, "fast", mix, Threads(1, 1), Hits())
    hits = Hits(0.5, 0.4, "fast", frozenset({"slow"}))
    cached, _ = demands_of(TREE, places, "fast", mix, Threads(1, 1), hits)
    before = {demand.device: demand.requests for demand in plain}
    after = {demand.device: demand.requests for demand in cached}
    assert after["slow"] == pytest.approx(before["slow"] * 0.5 * 0.6)
    assert after["fast"] == pytest.approx(before["fast"] * 0.5 + before["slow"] * 0.5 * 0.4)


@pytest.mark.parametrize(("compactions", "jobs"), [(1, 2), (2, 3), (3, 4), (6, 7), (12, 15)])
def test_jobs_leave_a_quarter_to_flushes(compactions: int, jobs: int) -> None:
    assert Threads(compactions, 1).jobs == jobs


@given(st.floats(1e-5, 1e-1), st.integers(2, 64), st.integers(1, 128), st.floats(0.1, 10), st.floats(0.0, 4.0))
def test_no_pool_and_no_device_is_above_its_whole(
    base: float, slots: int, threads: int, requests: float, slowdown: float
) -> None:
    write = Demand("d", "write", True, STREAM, requests / 3, (Weight("writers", 1 / 2),))
    found = predict([read(requests, threads), write], [], {"d": slotted(base, slots, slowdown)})
    assert max(found.pools.values()) == pytest.approx(1.0)
    assert found.devices["d"].read_busy <= 1.02
    assert found.devices["d"].write_busy <= 1.02
    assert found.rate > 0


def test_larger_growth_demands_more_of_compaction() -> None:
    def busy(growth: float) -> float:
        tree = Tree(4096 * MIB, 500, 2 * MIB, growth, 4 * MIB)
        assert write_amplification(tree) > 0
        count = len(ingest(tree, {0: SLOW}, Load()).levels)
        return predict(*demands_of(tree, ["d"] * count, "d", Mix(0, 0, 1), Threads(4, 1), Hits()), {"d": SLOW}).rate

    assert busy(4) > busy(20)
