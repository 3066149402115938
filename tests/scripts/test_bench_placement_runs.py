"""bench-placement's parts on real mounts: plain directories as tiers, little data, and nothing left behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_placement import tiers_of
from bench_placement_plan import DEVICES, STEPS, Part, Sizes, Times, Todo, setups
from bench_placement_results import Done
from bench_placement_runs import Bench, run, write_profile
from bench_placement_watch import Timeline

from keigo import mounts
from keigo.devices.identity import device_of
from keigo.devices.model import DeviceModel
from keigo.devices.profile import Profile, TierProfile, load_profile
from keigo.placement.rates import assumed
from workloads.compare.hierarchy import Hierarchy, prepared
from workloads.compare.setups import Setup

SIZES = Sizes(4 << 20)
TIMES = Times(1.0, 500, rewrites=1)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and drops the page cache")
needs_db_bench = pytest.mark.skipif(shutil.which("db_bench") is None, reason="db_bench is not installed")


@pytest.fixture
def hierarchy(tmp_path: Path) -> Iterator[Hierarchy]:
    for name in DEVICES:
        (tmp_path / name).mkdir()
    said: list[str] = []
    with prepared(tiers_of(SIZES, tmp_path), None, tmp_path / "table.json", said.append) as found:
        yield found
    assert mounts.mounts_below(str(tmp_path)) == []
    assert [os.listdir(tmp_path / name) for name in DEVICES] == [[], [], []]


def on(hierarchy: Hierarchy, part: Part, setup: str, made: Setup | None = None) -> tuple[Done, Timeline]:
    bench = Bench(hierarchy, SIZES, TIMES, None)
    done, timeline = run(bench, Todo(part, setup, 0), made or setups()[setup])
    assert all(not os.listdir(tier.directory) for tier in hierarchy.tiers)
    return done, timeline


@pytest.mark.parametrize(
    ("part", "setup"),
    [pytest.param("fill", "levels-0012", marks=needs_db_bench), ("ycsb", "db_paths"), ("shifting", "levels")],
)
def test_a_part_has_all_its_steps(hierarchy: Hierarchy, part: Part, setup: str) -> None:
    done, timeline = on(hierarchy, part, setup)
    assert done.error is None
    assert tuple(step.name for step in done.steps) == STEPS[part]
    assert all(step.rate() > 0 for step in done.steps)
    settled = {step.name for step in done.steps if step.settle_seconds is not None}
    assert settled == {"fillrandom", "load", "a"} & set(STEPS[part])
    if part == "shifting":
        assert [len(step.phases) for step in done.steps] == [TIMES.phases]
    begun = [what for _, what in timeline.marks]
    assert begun[-len(done.steps) :] == list(STEPS[part])
    assert timeline.seconds == sorted(timeline.seconds)
    assert {len(tier.used) for tier in timeline.tiers.values()} == {len(timeline.seconds)}
    has_daemon = any(room is not None for tier in timeline.tiers.values() for room in tier.room)
    assert has_daemon == (setup != "db_paths")


def test_files_migrate_in_every_second_window(hierarchy: Hierarchy) -> None:
    done, timeline = on(hierarchy, "migrating", "levels")
    assert done.error is None
    (step,) = done.steps
    assert step.facts["moved_bytes_per_second"] > 0
    assert step.facts["p99"] == pytest.approx(step.facts["p99_with_us"] / step.facts["p99_without_us"])
    windows = [what for _, what in timeline.marks][2:]
    assert windows == ["without", "with"] * 4


def test_what_fails_is_told_and_leaves_nothing(hierarchy: Hierarchy) -> None:
    done, _ = on(hierarchy, "migrating", "all-slow")  # nobody there could migrate anything
    assert done.error is not None
    assert done.steps == ()


def test_a_profile_is_made_to_be_of_the_devices_at_hand(hierarchy: Hierarchy, tmp_path: Path) -> None:
    models: list[DeviceModel] = [assumed(place) for place in range(len(DEVICES))]
    elsewhere = device_of(Path("/"))
    tiers = tuple(
        TierProfile(name, elsewhere, True, False, 0, (), model) for name, model in zip(DEVICES, models, strict=True)
    )
    path = tmp_path / "profile.json"
    write_profile(Profile(1, "2026-01-01T00:00:00+00:00", "6.18", "fio-3", True, tiers), hierarchy, path)
    found = load_profile(path)
    assert found is not None
    assert [tier.device for tier in found.tiers] == [device_of(tier.directory) for tier in hierarchy.tiers]
    assert [tier.model for tier in found.tiers] == models
    path.unlink()
