"""kill -9 at every failpoint: no file lost, none doubled, contents equal, each operation done or not done."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from keigo.failpoints import FAILPOINTS
from tests.conftest import MIB, MakeWorld, World

DATA = os.urandom(3 * MIB + 17)
MIGRATE = [name for name in FAILPOINTS if name.startswith("migrate.")]
RENAME = [name for name in FAILPOINTS if name.startswith("rename.")]
GUARD = [name for name in FAILPOINTS if name.startswith("guard.")]


def test_every_failpoint_is_tried() -> None:
    # tests/cache/test_crash.py, tests/faults/test_keeper.py, tests/cli/test_tier_command.py
    elsewhere = {
        name for name in FAILPOINTS if name.startswith(("cache.", "names.", "open.", "release.", "tier.", "leave."))
    }
    assert {*MIGRATE, *RENAME, *GUARD, "unguard.exchanged"} == set(FAILPOINTS) - elsewhere


def copies(world: World, name: str) -> list[str]:
    """The tiers whose tree has `name`; the daemon must be down, or the in-place tier is what the mount shows."""
    return [tier for tier, path in world.tiers.items() if (path / name).is_file()]


def leftovers(world: World) -> list[Path]:
    """Anything in the state directories that a crash left behind; the volume must not be mounted."""
    states = [path / ".keigo" for path in world.tiers.values()]
    return [item for state in states for part in ("incoming", "intent") for item in (state / part).glob("*")]


def crash(world: World, act: Callable[[], object]) -> None:
    """Do what ends the daemon, whatever the caller then sees."""
    try:
        act()
    except (OSError, AssertionError):
        pass
    world.wait_dead()


def check_clean(world: World) -> None:
    """Nothing left behind, and fsck agrees."""
    world.umount()
    assert leftovers(world) == []
    done = world.keigo("fsck", world.directory, "-d", world.config)
    assert "0 problem(s)" in done.stdout


@pytest.mark.parametrize("failpoint", MIGRATE)
def test_migration(world: World, failpoint: str) -> None:
    world.mount(env={"KEIGO_FAILPOINT": failpoint})
    directory = world.directory / "db"
    directory.mkdir()
    (directory / "000001.sst").write_bytes(DATA)
    os.link(directory / "000001.sst", world.directory / "linked.sst")
    os.utime(directory / "000001.sst", ns=(10**18 + 1, 10**18 + 2))
    assert world.tier_of("db/000001.sst") == "fast"
    crash(world, lambda: world.keigo("migrate", world.directory, "db/*", "mid"))

    world.mount()
    for path in (directory / "000001.sst", world.directory / "linked.sst"):
        assert path.read_bytes() == DATA
        assert path.stat().st_nlink == 2
        assert path.stat().st_mtime_ns == 10**18 + 2
    home = world.tier_of("db/000001.sst")
    assert world.tier_of("linked.sst") == home
    late = MIGRATE.index("migrate.intent-redo")
    assert home == ("mid" if MIGRATE.index(failpoint) >= late else "fast")
    check_clean(world)
    assert copies(world, "db/000001.sst") == copies(world, "linked.sst") == [home]


@pytest.mark.parametrize("failpoint", RENAME)
def test_rename_over_a_file_on_another_tier(world: World, failpoint: str) -> None:
    world.mount(env={"KEIGO_FAILPOINT": failpoint})
    new, old = world.directory / "000001.log", world.directory / "plain"
    new.write_bytes(b"new")
    old.write_bytes(b"old")
    crash(world, lambda: new.rename(old))

    world.mount()
    done = not new.exists()
    assert old.read_bytes() == (b"new" if done else b"old")
    assert done or new.read_bytes() == b"new"
    # The intent is durable before the first step: from then on the rename is only ever finished.
    assert done
    check_clean(world)
    assert len(copies(world, "plain")) == 1


@pytest.mark.parametrize("failpoint", RENAME)
def test_exchange_between_tiers(world: World, failpoint: str) -> None:
    from keigo.tiers.fds import RENAME_EXCHANGE, renameat2

    world.mount(env={"KEIGO_FAILPOINT": failpoint})
    one, other = world.directory / "000001.log", world.directory / "plain"
    one.write_bytes(b"one")
    other.write_bytes(b"other!")
    crash(world, lambda: renameat2(-100, os.fsencode(one), -100, os.fsencode(other), RENAME_EXCHANGE))

    world.mount()
    assert (one.read_bytes(), other.read_bytes()) == (b"other!", b"one")
    check_clean(world)


@pytest.mark.parametrize("failpoint", [*RENAME, "rename.step:2"])
def test_rename_of_a_mirrored_directory(world: World, failpoint: str) -> None:
    world.mount(env={"KEIGO_FAILPOINT": failpoint})
    before, after = world.directory / "copy.tmp", world.directory / "copy"
    before.mkdir()
    contents = {"000001.log": b"wal", "000002.sst": b"table", "plain": b"other"}
    for name, data in contents.items():
        (before / name).write_bytes(data)
    world.keigo("migrate", world.directory, "*/000002.sst", "mid")
    crash(world, lambda: before.rename(after))

    world.mount()
    assert not before.exists()
    assert {path.name: path.read_bytes() for path in after.iterdir()} == contents
    check_clean(world)


def make_leveldb(path: Path) -> str:
    """A real database with a LOCK; returns the hash of its CURRENT and MANIFEST."""
    import plyvel

    with plyvel.DB(str(path), create_if_missing=True) as db:
        for number in range(1000):
            db.put(b"%d" % number, b"value %d" % number)
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if not file.name.startswith("LOG"):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def check_leveldb(path: Path) -> None:
    import plyvel

    with plyvel.DB(str(path)) as db:
        assert all(db.get(b"%d" % number) == b"value %d" % number for number in range(1000))


@pytest.mark.parametrize("failpoint", GUARD)
def test_guard_at_adoption(world: World, failpoint: str) -> None:
    make_leveldb(world.directory)
    with pytest.raises(AssertionError, match="died before it mounted"):
        world.mount(env={"KEIGO_FAILPOINT": failpoint})
    world.mount()
    check_leveldb(world.directory)
    world.keigo("drain", world.directory)
    world.umount()
    check_leveldb(world.directory)


def test_guard_at_drain(world: World) -> None:
    make_leveldb(world.directory)
    world.mount(env={"KEIGO_FAILPOINT": "unguard.exchanged"})
    check_leveldb(world.directory)
    crash(world, lambda: world.keigo("drain", world.directory))
    world.mount()
    check_leveldb(world.directory)
    world.keigo("drain", world.directory)
    world.umount()
    check_leveldb(world.directory)
    assert not (world.directory / ".keigo").exists()


def test_names_that_differ_without_an_intent_are_both_kept(make_world: MakeWorld) -> None:
    world = make_world()
    world.mount()
    (world.directory / "plain").write_bytes(b"served")
    world.umount()
    (world.tiers["fast"] / "plain").write_bytes(b"from nowhere")
    done = world.keigo("fsck", world.directory, "-d", world.config, check=False)
    assert done.returncode == 1
    assert "plain: duplicate" in done.stdout
    assert (world.tiers["fast"] / "plain").read_bytes() == b"from nowhere"  # without --repair nothing moves
    world.mount()
    assert (world.directory / "plain").read_bytes() == b"served"
    world.umount()
    (aside,) = (world.tiers["fast"] / ".keigo" / "lost").iterdir()
    assert aside.read_bytes() == b"from nowhere"


def test_identical_copies_become_one(make_world: MakeWorld) -> None:
    world = make_world()
    world.mount()
    (world.directory / "plain").write_bytes(DATA)
    world.umount()
    (world.tiers["fast"] / "plain").write_bytes(DATA)
    world.mount()
    assert world.tier_of("plain") == "slow"
    assert (world.directory / "plain").read_bytes() == DATA
