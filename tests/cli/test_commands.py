"""The command line on a real mount."""

from __future__ import annotations

from tests.conftest import World


def test_mount_status_ls_umount(world: World) -> None:
    (world.directory / "here.txt").write_text("before")
    world.mount()
    (world.directory / "000001.log").write_bytes(b"x" * 100)
    status = world.status()
    assert status["driver"] == world.driver
    assert [tier["name"] for tier in status["tiers"]] == ["fast", "mid", "slow"]
    assert status["tiers"][0]["used"] == 100
    assert {row["name"]: row["tier"] for row in world.ls()} == {"000001.log": "fast", "here.txt": "slow"}
    world.umount()
    assert (world.directory / "here.txt").read_text() == "before"
    assert not (world.directory / "000001.log").exists()
    assert (world.tiers["fast"] / "000001.log").stat().st_size == 100
