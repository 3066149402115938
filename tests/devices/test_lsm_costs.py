"""LSM costs: worked by hand for devices with round figures, and what must hold for any tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keigo.devices.lsm_costs import (
    WAL,
    Cost,
    Load,
    Style,
    Traffic,
    Tree,
    cycle_of,
    device_of,
    ingest,
    levels,
    lookup,
    runs,
    scan,
    shares,
    stream_time,
    traffic,
    write_amplification,
)
from keigo.devices.model import CostModel, DeviceModel, Interference

MIB = 1 << 20


def device(setup: float, byte: float) -> DeviceModel:
    """Every request takes `setup` and `byte` a byte, however many there are."""
    cost = CostModel(("additive", "additive"), (1, 1000), (setup, setup), (byte, byte))
    return DeviceModel(cost, cost)


FAST, SLOW = device(1e-4, 1e-9), device(1e-2, 1e-8)

# Levels of 1, 1, 10, 100 and 88 units.
TREE = Tree(data_bytes=200, entry_bytes=1, file_bytes=1, growth=10, level0_bytes=1)
TIERED = replace(TREE, growth=4, style="tiered", data_bytes=1 + 4 + 16 + 50)

trees = st.builds(
    Tree,
    data_bytes=st.floats(1e6, 1e13),
    entry_bytes=st.floats(16, 1e4),
    file_bytes=st.floats(1e6, 1e9),
    growth=st.floats(2, 32),
    level0_bytes=st.floats(1e6, 1e9),
    level0_runs=st.integers(1, 16),
    level1_bytes=st.one_of(st.none(), st.floats(1e6, 1e9)),
    style=st.sampled_from(["leveled", "tiered"]),
)


def test_levels_grow_by_the_factor_and_the_last_holds_the_rest() -> None:
    assert levels(TREE) == (1, 1, 10, 100, 88)
    assert levels(replace(TREE, level1_bytes=5)) == (1, 5, 50, 144)
    assert levels(TIERED) == (1, 4, 16, 50)
    assert levels(replace(TREE, data_bytes=0.5)) == (0.5,)


def test_runs_are_means_over_time() -> None:
    assert runs(TREE) == (2.5, 1, 1, 1, 1)
    assert runs(TIERED) == (2.5, 1.5, 1.5, 2)
    assert runs(replace(TIERED, data_bytes=1)) == (2.5,)


def test_leveled_traffic_by_hand() -> None:
    assert traffic(replace(TREE, data_bytes=112)) == (
        Traffic(read=1, written=1),
        Traffic(read=1 + 1, written=2),
        Traffic(read=4.5 + 1, written=5.5),
        Traffic(read=4.5, written=5.5),
    )
    assert write_amplification(replace(TREE, data_bytes=112)) == pytest.approx(1 + 2 + 2 * (10 + 1) / 2)


def test_late_merges_by_hand() -> None:
    # Level 0 has 4 + 8 runs, 3 units, and level 1 as much: the levels below are 1/3, 10/3 and 10 times that above.
    late = replace(TREE, data_bytes=112, level0_late=9)
    assert runs(late)[0] == 6.5
    written = [level.written for level in traffic(late)]
    assert written == pytest.approx([1, 1 + 1 / 3, 1 + (10 / 3 - 1) / 2, 1 + (10 - 1) / 2])


def test_universal_traffic_is_what_is_played_through() -> None:
    tree = Tree(100, 1, 1, 10, level0_bytes=4, style="universal", level_count=6)
    assert len(levels(tree)) == len(runs(tree)) == len(shares(tree)) == 6
    assert sum(shares(tree)) == pytest.approx(1)
    assert sum(levels(tree)) > 100, "older versions are there, too"
    assert [level.written for level in traffic(tree)] == list(cycle_of(tree).written)
    assert write_amplification(replace(tree, level0_late=8)) < write_amplification(tree)


def test_tiered_traffic_by_hand() -> None:
    assert traffic(TIERED) == (Traffic(1, 1), Traffic(1, 1), Traffic(1, 1), Traffic(0, 1))
    assert write_amplification(TIERED) == 4


def test_ingest_by_hand() -> None:
    tree = Tree(data_bytes=2 * MIB, entry_bytes=100, file_bytes=MIB, growth=10, level0_bytes=MIB)
    load = Load(threads=2, stream_bytes=MIB)
    cost = ingest(tree, {0: FAST, 1: SLOW}, load)
    # Level 0: a byte written, and read; level 1: two written, one read. Each with a file's small requests a MiB, 2 for
    # what is read and 5 for what is written.
    fast = (2 * (1e-4 + MIB * 1e-9) + (2 + 5) * (1e-4 + 4096 * 1e-9)) / MIB
    slow = (3 * (1e-2 + MIB * 1e-8) + (2 + 2 * 5) * (1e-2 + 4096 * 1e-8)) / MIB
    assert [level.seconds for level in cost.levels] == pytest.approx([fast, slow])
    assert cost.seconds == pytest.approx(fast + slow)
    assert cost.rate == pytest.approx(2 / (fast + slow))
    assert [(level.read_bytes, level.written_bytes) for level in cost.levels] == [(1, 1), (1, 2)]


def test_the_log_adds_a_byte_of_one_thread() -> None:
    tree = Tree(data_bytes=2 * MIB, entry_bytes=100, file_bytes=MIB, growth=10, level0_bytes=MIB)
    load = Load(threads=4)
    without = ingest(tree, {0: FAST}, load)
    with_log = ingest(tree, {WAL: SLOW, 0: FAST}, load)
    assert with_log.levels[0].level == WAL
    assert 1 / with_log.rate == pytest.approx(1 / without.rate + (1e-2 + MIB * 1e-8) / MIB)


def test_lookup_by_hand() -> None:
    tree = replace(TREE, data_bytes=4, level0_bytes=1, level1_bytes=3, level0_runs=3)
    assert levels(tree) == (1, 3)
    cost = lookup(tree, {0: FAST, 1: SLOW}, Load(block_bytes=4096), false_positives=0.1)
    # A quarter of the keys is on level 0, with 2 runs: its block and half a false one at 10%; the rest, 2 at 10%.
    on_fast = 0.25 * (1 + 0.05) + 0.75 * 0.2
    assert [level.read_bytes for level in cost.levels] == pytest.approx([on_fast * 4096, 0.75 * 4096])
    fast, slow = 1e-4 + 4096 * 1e-9, 1e-2 + 4096 * 1e-8
    assert cost.seconds == pytest.approx(on_fast * fast + 0.75 * slow)
    half = lookup(tree, {0: FAST, 1: SLOW}, Load(block_bytes=4096), false_positives=0.1, cached=0.5)
    assert half.seconds == pytest.approx(cost.seconds / 2)


def test_lookups_of_absent_keys_read_false_positives_only() -> None:
    cost = lookup(TIERED, {0: FAST}, Load(block_bytes=1), false_positives=0.01, found=0)
    assert [level.read_bytes for level in cost.levels] == pytest.approx([0.01 * count for count in runs(TIERED)])


def test_scan_by_hand() -> None:
    tree = Tree(data_bytes=4, entry_bytes=1000, file_bytes=1, growth=10, level0_bytes=1, level0_runs=3, level1_bytes=3)
    cost = scan(tree, {0: FAST, 1: SLOW}, Load(block_bytes=4096, stream_bytes=MIB), 100)
    # 25 kB are on level 0, of which two runs' blocks hold 8192 bytes; 75 kB on level 1.
    fast = 2 * (1e-4 + 4096 * 1e-9) + (25_000 - 8192) * (1e-4 + MIB * 1e-9) / MIB
    slow = (1e-2 + 4096 * 1e-8) + (75_000 - 4096) * (1e-2 + MIB * 1e-8) / MIB
    assert [level.seconds for level in cost.levels] == pytest.approx([fast, slow])
    assert [level.read_bytes for level in cost.levels] == pytest.approx([25_000, 75_000])
    half = scan(tree, {0: FAST, 1: SLOW}, Load(block_bytes=4096, stream_bytes=MIB), 100, cached=0.5)
    assert half.seconds == pytest.approx(cost.seconds / 2)
    nothing = scan(tree, {0: FAST}, Load(block_bytes=4096), 0)
    assert [level.read_bytes for level in nothing.levels] == [2 * 4096, 4096]


def test_a_stream_takes_no_longer_than_random_requests() -> None:
    # Sequential ones were measured with one thread, where they take a tenth; of 8, the model knows the random ones.
    sequential = CostModel(("additive",), (1,), (1e-3,), (0.0,))
    known = DeviceModel(SLOW.random_read, SLOW.random_write, sequential_read=sequential)
    assert stream_time(known, "read", 1, MIB) == pytest.approx(1e-3)
    assert stream_time(known, "read", 1000, MIB) == pytest.approx(SLOW.request_time("read", 1000, MIB))


def test_requests_of_the_other_direction_slow_a_lookup() -> None:
    slowed = DeviceModel(FAST.random_read, FAST.random_write, reads_beside_writes=Interference(1.5, 4))
    alone = lookup(TREE, {0: slowed}, Load()).seconds
    assert lookup(TREE, {0: slowed}, Load(beside=4)).seconds == pytest.approx(2.5 * alone)


def test_levels_without_a_device_of_their_own_are_on_the_one_above() -> None:
    devices = {WAL: FAST, 0: FAST, 2: SLOW}
    assert [device_of(devices, level) is SLOW for level in range(5)] == [False, False, True, True, True]
    with pytest.raises(ValueError, match="no device holds level 0"):
        device_of({WAL: FAST, 1: SLOW}, 0)


def test_every_cost_names_its_formula_and_source() -> None:
    for cost in (
        ingest(TREE, {0: FAST}, Load()),
        ingest(TIERED, {0: FAST}, Load()),
        lookup(TREE, {0: FAST}, Load()),
        scan(TREE, {0: FAST}, Load(), 10),
    ):
        assert cost.formula
        assert "MQSSD" in cost.source
    assert ingest(TREE, {0: FAST}, Load()).formula != ingest(TIERED, {0: FAST}, Load()).formula


@given(trees)
def test_levels_hold_all_data(tree: Tree) -> None:
    sizes = levels(tree)
    assert sum(sizes) == pytest.approx(tree.data_bytes)
    assert all(size > 0 for size in sizes)
    assert len(runs(tree)) == len(traffic(tree)) == len(sizes)


@given(trees, st.floats(1, 64), st.floats(0, 1e5))
def test_costs_are_the_sum_of_their_levels_wherever_they_are(tree: Tree, threads: float, results: float) -> None:
    load = Load(threads=threads)
    count = len(levels(tree))

    def scanned(tree: Tree, devices: Mapping[int, DeviceModel], load: Load) -> Cost:
        return scan(tree, devices, load, results)

    operations: list[Callable[[Tree, Mapping[int, DeviceModel], Load], Cost]] = [ingest, lookup, scanned]
    for made in operations:
        fast, slow = made(tree, {0: FAST}, load), made(tree, {0: SLOW}, load)
        for border in range(1, count):
            mixed = made(tree, {0: FAST, border: SLOW}, load)
            assert mixed.levels == fast.levels[:border] + slow.levels[border:]
            assert fast.seconds <= mixed.seconds <= slow.seconds
        assert fast.seconds == pytest.approx(sum(level.seconds for level in fast.levels))
        assert fast.rate == pytest.approx(threads / fast.seconds)


@given(trees, st.floats(1.1, 10))
def test_more_data_never_costs_less_to_write(tree: Tree, times: float) -> None:
    more = replace(tree, data_bytes=tree.data_bytes * times)
    assert write_amplification(more) >= write_amplification(tree) * (1 - 1e-9)


@given(trees)
def test_tiered_writes_no_more_than_leveled_with_as_many_levels(tree: Tree) -> None:
    leveled, tiered = replace(tree, style="leveled", level1_bytes=None), replace(tree, style="tiered")
    assume(len(levels(leveled)) >= len(levels(tiered)))
    assert write_amplification(tiered) <= write_amplification(leveled) * (1 + 1e-9)


@given(trees, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_worse_filters_and_colder_caches_never_help_lookups(tree: Tree, low: float, high: float, cached: float) -> None:
    low, high = sorted((low, high))
    good = lookup(tree, {0: FAST}, Load(), false_positives=low, cached=cached).seconds
    assert good <= lookup(tree, {0: FAST}, Load(), false_positives=high, cached=cached).seconds * (1 + 1e-9)
    assert good <= lookup(tree, {0: FAST}, Load(), false_positives=low).seconds * (1 + 1e-9)


@given(trees, st.floats(0, 1e6), st.floats(1, 10))
def test_longer_scans_never_cost_less(tree: Tree, results: float, times: float) -> None:
    short = scan(tree, {0: FAST}, Load(), results).seconds
    assert short <= scan(tree, {0: FAST}, Load(), results * times).seconds * (1 + 1e-9)


@pytest.mark.parametrize("style", ["leveled", "tiered"])
def test_larger_files_cost_less_to_ingest(style: Style) -> None:
    tree = Tree(1 << 30, 100, 2 * MIB, 10, 64 * MIB, style=style)
    small, large = (ingest(replace(tree, file_bytes=size), {0: SLOW}, Load()).seconds for size in (2 * MIB, 64 * MIB))
    assert large < small


@pytest.mark.parametrize(
    "broken", [{"data_bytes": 0}, {"growth": 1}, {"growth": float("nan")}, {"level0_runs": 0}, {"file_bytes": -1}]
)
def test_a_tree_that_makes_no_sense_is_refused(broken: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be|not above 0"):
        replace(TREE, **broken)  # type: ignore[arg-type]


def test_shares_and_loads_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="cached 1.5"):
        lookup(TREE, {0: FAST}, Load(), cached=1.5)
    with pytest.raises(ValueError, match="results"):
        scan(TREE, {0: FAST}, Load(), -1)
    with pytest.raises(ValueError, match="threads"):
        Load(threads=0)
