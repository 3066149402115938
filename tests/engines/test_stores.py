"""RocksDB, LevelDB and Speedb on a volume: what they wrote is what they read, wherever the files are, with Keigo,
after Keigo, and after its death."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import MakeWorld, World
from tests.engines.conftest import Run
from tests.engines.processes import OpenStore, Oracle
from tests.engines.stores import ENGINES
from tests.engines.volumes import METADATA, TIER_OF_LEVEL, assert_nothing_left, sst_tiers, wait_settled

SMALL = {"fast": "2MiB", "mid": "2MiB"}
LEVELS = "{fast: [wal, 0], mid: [1, 2], slow: [3, 4, 5, 6]}"
KEYS = 18_000  # x 400 bytes: several times what the tiers above the slowest hold

engines = pytest.mark.parametrize("engine", ENGINES)


@engines
def test_whole_life(engine: str, make_world: MakeWorld, open_store: OpenStore) -> None:
    world = make_world(SMALL, LEVELS)
    world.mount()
    oracle = Oracle()
    seen: set[str] = set()
    tables: set[str] = set()
    with open_store(engine, world.directory / "db", create=True) as store:
        for start in range(0, KEYS, KEYS // 6):
            oracle.put(store, range(start, start + KEYS // 6))
            seen |= world.used_tiers()
            tables |= sst_tiers(world)
        oracle.put(store, range(0, KEYS, 3))
        oracle.delete(store, range(0, KEYS, 7))
        oracle.put(store, range(1000, 4000))
        assert max(store.levels()) >= 2, "was meant to be compacted several times"
        oracle.check(store)
    assert seen >= {"mid", "slow"}
    assert tables >= {"mid", "slow"}

    with open_store(engine, world.directory / "db") as store:
        oracle.check(store)
        oracle.delete(store, range(5, KEYS, 7))
        store.compact()
        oracle.check(store)

    world.wait_closed()
    before = {row["name"]: row["size"] for row in world.ls()}
    world.umount()
    world.mount()
    assert {row["name"]: row["size"] for row in world.ls()} == before
    with open_store(engine, world.directory / "db") as store:
        oracle.check(store)

    world.keigo("drain", world.directory)
    assert world.used_tiers() == {"slow"}
    with open_store(engine, world.directory / "db") as store:
        oracle.put(store, range(100))
        oracle.check(store)
    world.umount()
    assert_nothing_left(world)
    with open_store(engine, world.directory / "db") as store:
        oracle.check(store)


@engines
def test_drain_with_the_database_open(engine: str, make_world: MakeWorld, open_store: OpenStore, start: Run) -> None:
    world = make_world(SMALL, LEVELS)
    world.mount()
    oracle = Oracle()
    with open_store(engine, world.directory / "db", create=True) as store:
        oracle.put(store, range(KEYS // 2))
        draining = start(sys.executable, "-m", "keigo", "drain", world.directory)
        # Its WAL is open for writing, and is waited for: writing on makes the store begin a new one, in place.
        while draining.poll() is None:
            oracle.put(store, range(2000))
            oracle.check(store)
        assert draining.returncode == 0
        oracle.check(store)
        assert world.used_tiers() == {"slow"}
    world.umount()
    assert_nothing_left(world)
    with open_store(engine, world.directory / "db") as store:
        oracle.check(store)


@engines
def test_policy(engine: str, make_world: MakeWorld, open_store: OpenStore) -> None:
    world = make_world({"fast": "1GiB", "mid": "1GiB"}, LEVELS)
    world.mount()
    oracle = Oracle()
    with open_store(engine, world.directory / "db", create=True) as store:
        oracle.put(store, range(9000))
        oracle.put(store, range(0, 9000, 2))
        rows = world.ls()
        oracle.check(store)
    world.wait_closed()
    wait_settled(world, "db")
    tiers: dict[str, set[str]] = {}
    for row in rows:
        tiers.setdefault(row["role"], set()).add(row["tier"])
    assert tiers.pop("wal") == {"fast"}
    assert tiers.pop("lock") == {"fast"}, "beside the guard"
    assert "mid" in tiers.pop("sst"), "compaction output"
    assert {"manifest", "current", "infolog"} <= tiers.keys() <= METADATA
    assert set().union(*tiers.values()) == {"slow"}
    # What `ls` says is where the files are, and nothing else is there.
    for name, path in world.tiers.items():
        said = {row["name"]: row["size"] for row in world.ls() if row["tier"] == name}
        if name != "slow":
            assert {str(p.relative_to(path)): p.stat().st_size for p in path.glob("db/*")} == said


@engines
def test_adoption_in_place(engine: str, make_world: MakeWorld, open_store: OpenStore) -> None:
    world = make_world(SMALL, LEVELS)
    oracle = Oracle()
    with open_store(engine, world.directory, create=True) as store:
        oracle.put(store, range(KEYS // 2))
    inodes = {path.name: path.stat().st_ino for path in world.directory.iterdir()}

    world.mount()
    rows = world.ls()
    assert {row["name"] for row in rows} == inodes.keys()
    # LOCK goes beside the guard; of the rest only tables move, in their own time, to where their levels belong.
    moved = [row for row in rows if row["tier"] != "slow" and row["name"] != "LOCK"]
    assert all(row["role"] == "sst" and row["tier"] == TIER_OF_LEVEL[row["level"]] for row in moved)
    with open_store(engine, world.directory) as store:
        oracle.check(store)
        oracle.put(store, range(0, KEYS, 2))
        oracle.check(store)
        assert sst_tiers(world) - {"slow"}, "new files go to faster tiers"
    world.keigo("drain", world.directory)
    world.umount()
    assert_nothing_left(world)
    with open_store(engine, world.directory) as store:
        oracle.check(store)


@engines
def test_adopted_and_left_unchanged(engine: str, world: World, open_store: OpenStore) -> None:
    """A mount and a drain without use in between leave every file as it was."""
    oracle = Oracle()
    with open_store(engine, world.directory, create=True) as store:
        oracle.put(store, range(4000))
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in world.directory.iterdir()}
    world.mount()
    world.keigo("drain", world.directory)
    world.umount()
    assert_nothing_left(world)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in world.directory.iterdir()} == before


@engines
def test_daemon_killed_with_the_database_open(engine: str, make_world: MakeWorld, open_store: OpenStore) -> None:
    world = make_world(SMALL, LEVELS)
    world.mount()
    directory = world.directory / "db"
    oracle = Oracle()
    store = open_store(engine, directory, create=True)
    oracle.put(store, range(KEYS // 2))
    first = KEYS
    reached = first
    acks = store.acks(first, 10)
    for reached in acks:
        if reached >= first + 1000:
            break
    world.kill()
    for acknowledged in acks:  # whatever still got through is promised too
        reached = acknowledged
    store.kill()

    world.mount()
    with open_store(engine, directory) as store:
        found = store.dump()
        # One batch may have been written and not acknowledged.
        streamed = sorted(number for number in found if number >= first)
        assert streamed in (list(range(first, reached)), list(range(first, reached + 10)))
        # Its synced successors are there, so is what was written before, synced or not.
        assert {number: version for number, version in found.items() if number < first} == oracle.versions
        oracle.versions = found
        oracle.put(store, range(0, KEYS, 5))
        oracle.check(store)
    world.keigo("drain", world.directory)
    world.umount()
    assert_nothing_left(world)
    with open_store(engine, directory) as store:
        oracle.check(store)


@engines
def test_store_killed(engine: str, make_world: MakeWorld, open_store: OpenStore) -> None:
    """The store dies, the daemon does not: every batch that was acknowledged is there, synced or not."""
    world = make_world(SMALL, LEVELS)
    world.mount()
    oracle = Oracle()
    for number in range(3):
        store = open_store(engine, world.directory, create=True)
        oracle.check(store)
        oracle.put(store, range(number * 3000, number * 3000 + 4000), sync=True)
        store.kill()
    with open_store(engine, world.directory) as store:
        oracle.check(store)
    world.umount()


@engines
def test_several_databases_in_subdirectories(engine: str, make_world: MakeWorld, open_store: OpenStore) -> None:
    """One volume, several databases of several engines open at once, below other directories too."""
    world = make_world(SMALL, LEVELS)
    world.mount()
    others = [other for other in ENGINES if other != engine]
    places = {world.directory: engine, world.directory / "a": others[0], world.directory / "b/c": others[1]}
    oracles = {path: Oracle() for path in places}
    (world.directory / "b").mkdir()
    stores = {path: open_store(kind, path, create=True) for path, kind in places.items()}
    for start in range(0, 6000, 2000):
        for path, store in stores.items():
            oracles[path].put(store, range(start, start + 3000))
    assert sst_tiers(world) >= {"mid", "slow"}
    for path, store in stores.items():
        oracles[path].check(store)
        store.close()
    assert world.status()["guards"] == 3

    world.keigo("drain", world.directory)
    world.umount()
    assert_nothing_left(world)
    for path, kind in places.items():
        with open_store(kind, path) as store:
            oracles[path].check(store)
