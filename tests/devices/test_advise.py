"""Advice: what is recommended fits, is where it belongs, and follows the load."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keigo.devices.advise import (
    ALIKE,
    LEVEL0_FILES,
    LEVEL0_SLOWDOWN,
    LOGS,
    MEMTABLE,
    MIB,
    Advice,
    AdviseError,
    Plan,
    Tier,
    Wanted,
    advise,
    described,
    hit_ratio,
    placement,
    space,
    tree_of,
)
from keigo.devices.lsm_costs import levels, write_amplification
from keigo.devices.model import CostModel, DeviceModel
from keigo.devices.predict import Mix
from tests.devices.synthetic import synthetic_profile

GIB = 1 << 30


def tiers(*rooms: int, names: tuple[str, ...] = ("nvmm", "nvme", "sata")) -> list[Tier]:
    profile = synthetic_profile(quick=True)
    found = [Tier(tier.tier, tier.model, 0) for tier in profile.tiers if tier.tier in names]
    return [replace(tier, room=room) for tier, room in zip(found, rooms, strict=True)]


def wanted(data: int, mix: Mix, **changed: object) -> Wanted:
    return replace(Wanted(data, 400, mix), **changed)  # type: ignore[arg-type]


READS, WRITES = Mix(0.99, 0, 16), Mix(0, 0, 4)
THREE = tiers(30 * GIB, 300 * GIB, 4000 * GIB)


@settings(max_examples=15)
@given(
    st.integers(1, 400),
    st.tuples(st.integers(0, 20), st.integers(0, 600)),
    st.floats(0, 1),
    st.sampled_from([("leveled",), ("universal",)]),
)
def test_what_is_recommended_fits(data: int, rooms: tuple[int, int], reads: float, styles: tuple[str, ...]) -> None:
    asked = wanted(data * GIB, Mix(reads, 0, 8), styles=styles, skew=0.8)
    two = tiers(*(room * GIB for room in rooms), names=("nvme", "sata"))
    try:
        found = advise(asked, two)
    except AdviseError as error:
        assert sum(rooms) < 6 * data + 10, "six times the room is enough for any style"
        assert "lacks" in str(error)
        assert "\n" not in str(error)
        return
    plan = found.plan
    needed = [0.0, 0.0]
    for place, size in zip(plan.places, space(asked, plan), strict=True):
        needed[place] += size
    if plan.cache_tier is not None:
        needed[plan.cache_tier] += plan.cache_bytes
    for tier, size, used in zip(two, needed, found.used, strict=True):
        assert size <= used <= tier.room
    assert len(plan.places) == len(levels(found.tree)) + 1
    assert all(above <= below for above, below in pairwise(plan.places)), "never back to a faster tier"


def test_space_by_hand() -> None:
    # Level 0 and 1 of 256 MiB, level 2 of 2560 MiB, level 3 the rest.
    asked = wanted(10 * GIB, WRITES)
    plan = Plan("leveled", 10, (0,) * 5, compactions=2, file_bytes=64 * MIB)
    sizes = levels(tree_of(asked, plan))
    assert sizes[:3] == (LEVEL0_FILES * MEMTABLE, 256 * MIB, 2560 * MIB)
    assert space(asked, plan) == (
        LOGS * MEMTABLE,
        LEVEL0_SLOWDOWN * MEMTABLE,
        (256 + 256 + 256) * MIB,
        (2560 + 2 * 11 * 64) * MIB,
        sizes[3] + 2 * 11 * 64 * MIB,
    )


def test_universal_needs_everything_twice() -> None:
    assert sum(space(wanted(64 * GIB, WRITES), Plan("universal", 8, ()))) >= 2 * 64 * GIB


def test_deep_levels_go_to_the_large_tier_and_the_log_to_the_fast_one() -> None:
    found = advise(wanted(1024 * GIB, Mix(0.5, 0, 16)), THREE)
    assert found.plan.places[0] == found.plan.places[1] == 0
    assert found.plan.places[-1] == 2


def test_all_goes_to_the_fast_tier_where_it_fits() -> None:
    found = advise(wanted(4 * GIB, Mix(0.99, 0, 1)), THREE)
    assert set(found.plan.places) == {0}
    assert found.plan.cache_tier is None


def test_skewed_reads_get_a_cache_and_writes_none() -> None:
    reads = advise(wanted(1024 * GIB, READS, skew=0.9), THREE)
    assert reads.plan.cache_tier is not None
    assert 0 < reads.cached < 1
    assert any(change.what == "read cache" and change.rate < reads.prediction.rate for change in reads.changes)
    assert advise(wanted(1024 * GIB, WRITES, skew=0.9), THREE).plan.cache_tier is None


def test_writes_get_more_compaction_threads_than_reads() -> None:
    one = tiers(4000 * GIB, names=("sata",))
    reads, writes = (advise(wanted(100 * GIB, mix), one) for mix in (Mix(1, 0, 16), WRITES))
    assert reads.plan.compactions * reads.plan.subcompactions == 1
    assert writes.plan.compactions * writes.plan.subcompactions > 1


def test_writes_get_a_tree_that_writes_no_more_than_that_of_reads() -> None:
    one = tiers(4000 * GIB, names=("sata",))
    reads, writes = (advise(wanted(200 * GIB, mix), one) for mix in (Mix(1, 0, 16), WRITES))
    assert write_amplification(writes.tree) <= write_amplification(reads.tree)


def test_more_memory_never_hurts() -> None:
    rates = [advise(wanted(200 * GIB, READS, memory_bytes=size * GIB), THREE).prediction.rate for size in (0, 20, 200)]
    assert rates[0] <= rates[1] * (1 + ALIKE)
    assert rates[1] < rates[2]


def test_what_else_was_tried_is_no_better() -> None:
    found = advise(wanted(500 * GIB, Mix(0.7, 0.1, 16), skew=0.5), THREE)
    assert {"style", "growth", "placement", "compaction threads", "file size"} <= {c.what for c in found.changes}
    best = found.prediction.rate * (1 + 3 * ALIKE)
    assert all(change.rate <= best for change in found.changes)


def test_a_style_that_is_asked_for_is_kept() -> None:
    found = advise(wanted(100 * GIB, WRITES, styles=("universal",)), THREE)
    assert found.plan.style == "universal"
    assert not [change for change in found.changes if change.what == "style"]


def test_what_does_not_fit_is_told_with_the_tier_that_lacks_room() -> None:
    with pytest.raises(AdviseError, match=r"^8\.0 TiB do not fit.* tier sata has 3\.9 TiB and lacks 3\.\d TiB \("):
        advise(wanted(8192 * GIB, READS), THREE)


@pytest.mark.parametrize(
    ("mix", "skew", "told"),
    [
        (Mix(1.5, 0, 1), 0, "read ratio 1.5: must be between 0 and 1"),
        (Mix(0, -0.5, 1), 0, "scan ratio -0.5: must be between 0 and 1"),
        (Mix(float("nan"), 0, 1), 0, "read ratio nan: must be between 0 and 1"),
        (Mix(0.8, 0.5, 1), 0, "read ratio 0.8 and scan ratio 0.5 are more than 1 together"),
        (Mix(0.5, 0, 1), -1, "skew -1: must be 0"),
        (Mix(0.5, 0, 1), float("inf"), "skew inf: must be 0"),
    ],
)
def test_questions_that_make_no_sense(mix: Mix, skew: float, told: str) -> None:
    with pytest.raises(AdviseError, match=f"^{told}"):
        Wanted(GIB, 400, mix, skew=skew)


@given(st.floats(0, 3), st.floats(0, 1e12), st.floats(1, 4), st.sampled_from([4096, 65536]))
def test_hit_ratios_are_shares_and_grow_with_the_cache(skew: float, size: float, times: float, unit: int) -> None:
    asked = Wanted(100 * GIB, 400, READS, skew=skew)
    small, large = hit_ratio(size, unit, asked), hit_ratio(size * times, unit, asked)
    assert 0 <= small <= large * (1 + 1e-9)
    assert large <= 1


def test_hit_ratios_of_uniform_reads_are_the_share_of_bytes() -> None:
    assert hit_ratio(25 * GIB, 4096, Wanted(100 * GIB, 400, READS)) == pytest.approx(0.25)
    assert hit_ratio(GIB, 4096, Wanted(100 * GIB, 400, READS, skew=0.99)) > 0.4


def test_placement_as_in_devices_yaml() -> None:
    assert placement((0, 0, 0, 1, 2, 2), THREE) == {"nvmm": ["wal", 0, 1], "nvme": [2], "sata": [3, 4, 5, 6]}
    assert placement((1,) * 10, THREE) == {"nvme": ["wal", *range(9)]}
    assert described((0, 0, 0, 1, 2, 2), THREE) == "nvmm: wal, 0-1; nvme: 2; sata: 3-6"


def test_a_device_that_is_slow_at_writes_gets_the_style_that_writes_less() -> None:
    reads = CostModel(("max", "max"), (1, 64), (1e-5, 1e-5), (0.0, 0.0))
    writes = CostModel(("max", "max"), (1, 64), (1e-3, 64e-3), (1e-7, 64e-7))
    tier = Tier("odd", DeviceModel(reads, writes), 4000 * GIB)
    found: Advice = advise(wanted(500 * GIB, WRITES), [tier])
    assert found.plan.style == "universal"
    assert found.plan.growth == 16
