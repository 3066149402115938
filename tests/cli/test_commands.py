"""The command line on a real mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keigo.config import load
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


def refused(world: World, *args: str | Path) -> str:
    """The one line with which a command is refused."""
    done = world.keigo(*args, check=False)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert done.stdout == ""
    return line


MISTAKES = [
    ("tiers: [{name: a, path: absent}, {name: b, in_place: true}]", "devices.yaml:2: tiers: a: path: "),
    (
        "tiers: [{name: a, path: mid, capacity: 900PiB}, {name: b, in_place: true}]",
        ":2: tiers: a: capacity",
    ),
    (
        "tiers: [{name: a, path: mid}, {name: b, path: mid}, {name: c, in_place: true}]",
        ":2: tiers: b: path",
    ),
    ("tiers: [{name: a, path: db/in}, {name: b, in_place: true}]", "devices.yaml:2: tiers: a: path: "),
    ("tiers: [{name: a, path: mid}]", "devices.yaml:2: tiers: "),
    ("tiers: [{name: a, in_place: true}]\ncahe: {}", "devices.yaml:3: cahe: unknown key"),
]


@pytest.mark.parametrize(("text", "start"), MISTAKES)
def test_mistakes_in_devices_yaml_are_told_at_the_mount(world: World, text: str, start: str) -> None:
    (world.directory / "in").mkdir()
    world.config.write_text(f"volume: {world.volume}\n{text}\n")
    line = refused(world, "mount", world.directory, "-d", world.config, "--log-file", world.log_file)
    assert start in line
    assert not world.is_mounted()
    assert os.listdir(world.directory) == ["in"]


def test_a_policy_for_one_mount(world: World) -> None:
    options = ("-d", world.config, "--log-file", world.log_file, "--driver", world.driver)
    line = refused(world, "mount", world.directory, *options, "--policy", "best")
    assert "'best' is not a policy (known: cost, levels, fill-order, popularity, mutant)" in line
    assert not world.is_mounted()
    world.keigo("mount", world.directory, *options, "--policy", "fill-order")
    assert world.status()["policy"] == "fill-order"
    (world.directory / "000001.sst").write_bytes(b"x" * 100)
    (row,) = world.ls()
    assert row["tier"] == "fast"


def test_a_volume_mounts_once(mounted: World, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert "is mounted already" in refused(mounted, "mount", mounted.directory, "-d", mounted.config)
    assert "is mounted already" in refused(mounted, "mount", other, "-d", mounted.config)


@pytest.mark.parametrize("command", ["status", "ls", "umount", "drain"])
def test_of_a_directory_that_is_not_mounted(world: World, command: str) -> None:
    assert "no volume is mounted here" in refused(world, command, world.directory)


def test_of_a_dead_daemon(mounted: World) -> None:
    mounted.kill()
    for command in ("status", "ls", "drain"):
        assert "it has died: stop the database, umount, and mount again" in refused(mounted, command, mounted.directory)
    mounted.umount()


def test_umount_tells_of_files_elsewhere(mounted: World) -> None:
    (mounted.directory / "000001.log").write_bytes(b"x")
    done = mounted.keigo("umount", mounted.directory)
    assert "note: 1 file(s) are on other tiers" in done.stderr
    mounted.mount()
    mounted.keigo("drain", mounted.directory)
    assert mounted.keigo("umount", mounted.directory).stderr == ""


def test_migrate_fails_unless_all_files_are_there_in_the_end(mounted: World) -> None:
    for name in ("000001.sst", "000002.sst"):
        (mounted.directory / name).write_bytes(b"x" * 1000)
    with (mounted.directory / "000002.sst").open("ab"):
        done = mounted.keigo("migrate", mounted.directory, "*.sst", "mid", check=False)
    assert done.returncode == 1
    assert "000002.sst: not moved: is open" in done.stdout
    mounted.keigo("migrate", mounted.directory, "*.sst", "mid")
    done = mounted.keigo("migrate", mounted.directory, "*.sst", "mid", check=False)
    assert done.returncode == 1
    assert "is on mid already" in done.stdout


def test_init_writes_what_mount_takes(world: World) -> None:
    made = world.base / "made.yaml"
    world.keigo("init", world.directory, "-d", made)
    found = load(made)
    assert found.tiers[-1].in_place
    assert "exists already" in refused(world, "init", world.directory, "-d", made)
    world.keigo("init", world.directory, "-d", made, "--force")
