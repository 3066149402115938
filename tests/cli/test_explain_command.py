"""`keigo explain`, and the `cost` policy, on a real mount."""

from __future__ import annotations

import json

import pytest

from tests.conftest import World
from tests.tiers.test_policies import PAGE, PAGES, adopted, configure


@pytest.fixture
def told(world: World) -> World:
    """Mounted with `cost`, with a file that was there before and one that was created through the mount."""
    adopted(world, "000001.sst")
    configure(world, "{policy: cost}")
    world.mount()
    (world.directory / "000002.sst").write_bytes(b"x" * PAGES * PAGE)
    return world


def test_the_figures_add_up(told: World) -> None:
    found = json.loads(told.keigo("explain", told.directory, "000002.sst", "--json").stdout)
    assert (found["role"], found["tier"], found["policy"]) == ("sst", "fast", "cost")
    assert found["size"] == PAGES * PAGE
    at_create = {row["tier"]: row for row in found["at_create"]}
    assert list(at_create) == ["fast", "mid", "slow"]
    for row in at_create.values():
        assert row["total"] == pytest.approx(row["write"] + row["read"] + row["room"])
    # Nobody has measured: each tier is taken to be four times slower than the one before, and room is free.
    assert at_create["slow"]["write"] == pytest.approx(16 * at_create["fast"]["write"], rel=0.5)
    assert found["reason"] == "costs least"
    assert found["now"][0]["verdict"] == "is here"
    assert found["expected"]["size"] > 0


def test_for_people(told: World) -> None:
    inside = told.keigo("explain", told.directory, told.directory / "000001.sst").stdout
    assert inside.startswith("000001.sst: sst")
    assert "found here" in inside
    assert "predicted at create" not in inside
    assert "the copy costs" in inside
    assert "predicted at create" in told.keigo("explain", told.directory, "000002.sst").stdout


def test_a_name_that_is_not_there_is_one_line(told: World) -> None:
    for name in ("nothing.sst", "000001.sst/x", "."):
        done = told.keigo("explain", told.directory, name, check=False)
        assert done.returncode == 1
        assert done.stderr.strip() == f"Error: {name}: no such file in the volume (see keigo ls)"
