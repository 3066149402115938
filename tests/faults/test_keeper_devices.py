"""A devices.yaml by which the next daemon could not go on: a restart tells it, a death passes it over."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keigo.config import load
from keigo.control import ControlError
from keigo.serving.succession import Succession
from tests.conftest import MakeWorld, World
from tests.faults import keeping
from tests.faults.keeping import kept, replace

pytestmark = pytest.mark.timeout(180)


driver = keeping.driver


@pytest.fixture
def world(make_world: MakeWorld) -> Iterator[World]:
    made = make_world({"fast": "64MiB"}, "{slow: [0]}")
    text = made.config.read_text()
    made.config.write_text(text.replace("{policy: levels, levels: {slow: [0]}}", "{policy: fill-order}"))
    yield made
    if made.is_mounted():
        made.umount()


def with_tier(text: str, name: str, path: Path) -> str:
    return text.replace("tiers:\n", f"tiers:\n  - {{name: {name}, path: {path}}}\n")


def is_served(world: World) -> None:
    """By the daemon that has been there."""
    assert world.status()["pid"] == world.pids[-1]
    assert {tier["name"] for tier in world.status()["tiers"]} == set(world.tiers)


ANOTHER: dict[str, tuple[Callable[[str], str], str]] = {
    "a tier is missing": (
        lambda text: "".join(line for line in text.splitlines(keepends=True) if "name: mid" not in line),
        "tier mid is missing",
    ),
    "another volume": (lambda text: text.replace("volume: ", "volume: x"), "is volume x"),
    "another primary tier": (
        lambda text: text.replace("{name: slow, in_place: true}", "{name: slow, path: /somewhere}"),
        "tier slow is in place",
    ),
    "another catalog": (lambda text: text + "catalog: fast\n", "the catalog is on tier slow"),
}
"""What the next daemon cannot do, for the kernel knows the volume as it is."""


@pytest.mark.parametrize("case", ANOTHER)
def test_what_no_daemon_can_change_under_a_mount(world: World, case: str) -> None:
    change, why = ANOTHER[case]
    kept(world)
    good = world.config.read_text()
    with (world.directory / "file").open("wb", buffering=0) as file:
        file.write(b"before")
        world.config.write_text(change(good))
        refused = world.keigo("restart", world.directory, check=False)
        assert refused.returncode == 1
        assert why in refused.stderr
        is_served(world)
        replace(world)
        is_served(world)
        file.write(b" and after")
    assert "going on with what it said before" in world.log()
    assert (world.directory / "file").read_bytes() == b"before and after"
    world.config.write_text(good)
    replace(world)
    is_served(world)


def _missing(text: str, base: Path) -> str:
    return with_tier(text, "new", base / "nowhere")


def _not_empty(text: str, base: Path) -> str:
    (base / "new").mkdir()
    (base / "new" / "file").write_bytes(b"")
    return with_tier(text, "new", base / "new")


def _one_in_the_other(text: str, base: Path) -> str:
    (base / "new" / "below").mkdir(parents=True)
    return with_tier(with_tier(text, "new", base / "new"), "below", base / "new" / "below")


def _too_large(text: str, base: Path) -> str:
    (base / "new").mkdir()
    return text.replace("tiers:\n", f"tiers:\n  - {{name: new, path: {base / 'new'}, capacity: 1PiB}}\n")


def _too_large_a_cache(text: str, _base: Path) -> str:
    return text + "cache:\n  capacity: 1PiB\n  tier: mid\n"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_missing, "No such file or directory"),
        (_not_empty, "is not empty"),
        (_one_in_the_other, "one inside the other"),
        (_too_large, "is above the device's"),
        (_too_large_a_cache, "leaves no room for files"),
    ],
)
def test_a_restart_says_what_the_next_daemon_would_refuse(
    world: World, tmp_path: Path, change: Callable[[str, Path], str], why: str
) -> None:
    kept(world)
    good = world.config.read_text()
    world.config.write_text(change(good, tmp_path))
    refused = world.keigo("restart", world.directory, check=False)
    assert refused.returncode == 1
    assert why in refused.stderr
    is_served(world)
    replace(world)
    is_served(world)
    world.config.write_text(good)


def test_a_death_makes_nothing_of_a_change_that_is_good(world: World, tmp_path: Path) -> None:
    """Until a restart: nobody has said that the change is whole."""
    kept(world)
    good = world.config.read_text()
    (tmp_path / "new").mkdir(mode=0o700)
    world.config.write_text(with_tier(good, "new", tmp_path / "new"))
    for _ in range(2):
        replace(world)
        is_served(world)
    assert "has been changed, and is used after keigo restart" in world.log()
    world.keigo("restart", world.directory)
    for _ in range(2):
        assert len(world.status()["tiers"]) == len(world.tiers) + 1
        world.pids.append(world.status()["pid"])
        replace(world)


def test_a_restart_takes_a_tier_that_was_written_into_devices_yaml(world: World, tmp_path: Path) -> None:
    kept(world)
    (tmp_path / "new").mkdir(mode=0o700)
    world.config.write_text(with_tier(world.config.read_text(), "new", tmp_path / "new"))
    world.keigo("restart", world.directory)
    world.pids.append(world.status()["pid"])
    (world.directory / "000001.sst").write_bytes(b"here")
    assert (tmp_path / "new" / "000001.sst").read_bytes() == b"here"


def test_a_program_that_does_not_start_is_told_before(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade that was cut off, perhaps."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'ImportError: no click' >&2\nexit 1\n")
    program.chmod(0o755)
    succession = Succession(load(world.config), world.directory, None, None)
    succession.check_next()
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ControlError, match="does not start: ImportError: no click"):
        succession.check_next()


def test_a_mount_that_could_not_be_noted_is_taken_over(world: World) -> None:
    """Where the device was full when it was mounted."""
    below = os.open(world.directory, os.O_RDONLY | os.O_DIRECTORY)
    kept(world)
    note = Path(f"/proc/self/fd/{below}/.keigo/mounted.json")
    said = note.read_bytes()
    note.unlink()
    with (world.directory / "file").open("wb", buffering=0) as file:
        replace(world)
        file.write(b"here")
    assert (world.directory / "file").read_bytes() == b"here"
    note.write_bytes(said)
    os.close(below)
