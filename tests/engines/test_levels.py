"""The level and column family that Keigo has for each SST are those that the store has, and each file is where its
level belongs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from keigo.lsm.roles import file_number
from tests.background import open_files
from tests.conftest import MakeWorld, World
from tests.engines.oracles import Placed, by_ldb, by_manifest, tables_of
from tests.engines.processes import OpenStore, Oracle
from tests.engines.stores import ENGINES
from tests.engines.volumes import wait_settled
from tests.fs.support import until

ROOMY = {"fast": "64MiB", "mid": "64MiB"}
LEVELS = "{fast: [wal, 0], mid: [1, 2], slow: [3, 4, 5, 6]}"
KEYS = 12_000

needs_db_bench = pytest.mark.skipif(
    shutil.which("db_bench") is None or shutil.which("ldb") is None,
    reason="db_bench and ldb (Debian: rocksdb-tools) are not installed",
)


def placed(world: World, database: str) -> Placed:
    """What `ls` says of the SSTs of a database."""
    found: Placed = {}
    world.status()  # takes in what the database has written so far
    for row in world.ls():
        directory, _, name = row["name"].rpartition("/")
        if directory == database and row["role"] == "sst":
            number = file_number(os.fsencode(name))
            assert number is not None
            found[number] = row["level"], row["family"]
    return found


def assert_placed(world: World, database: str, truth: Placed) -> None:
    """Every live SST is known as what it is. Stores may leave behind some that are not live any more."""
    found = placed(world, database)
    assert truth
    assert {number: found[number] for number in truth} == truth


def believed(world: World) -> tuple[int, int]:
    """(SSTs whose level was right at CREATE, all)."""
    outcomes = world.status()["context"]["outcomes"]
    right = sum(row["files"] for row in outcomes if row["believed"] == row["actual"])
    return right, sum(row["files"] for row in outcomes)


@pytest.mark.parametrize("engine", ENGINES)
def test_levels_are_the_store_s_own(engine: str, make_world: MakeWorld, open_store: OpenStore) -> None:
    world = make_world(ROOMY, LEVELS)
    world.mount()
    path = world.directory / "db"
    oracle = Oracle()
    with open_store(engine, path, create=True) as store:
        oracle.put(store, range(KEYS))
        oracle.put(store, range(0, KEYS, 2))
    assert_placed(world, "db", tables_of(engine, path))
    assert len({level for level, _ in placed(world, "db").values()}) > 1, "was meant to have several levels"
    wait_settled(world, "db")

    # Opened again the store writes another MANIFEST; compacted, it moves everything down.
    with open_store(engine, path) as store:
        oracle.put(store, range(0, KEYS, 3))
        store.compact()
        oracle.check(store)
    assert_placed(world, "db", tables_of(engine, path))
    wait_settled(world, "db")
    right, all_of_them = believed(world)
    assert all_of_them > 20
    assert right / all_of_them > 0.7  # a change of the load costs some; scripts/bench-context tells how many there are

    # A mount that finds the database learns its levels from the MANIFEST.
    world.umount()
    shutil.rmtree(world.tiers["slow"] / ".keigo/catalog")
    world.mount()
    assert_placed(world, "db", tables_of(engine, path))


VARIANTS = {
    "plain": (),
    "subcompactions": ("--subcompactions=4", "--max_background_jobs=4"),
    "families": ("--num_column_families=4",),
    "dynamic": ("--level_compaction_dynamic_level_bytes=1",),
    "universal": ("--compaction_style=1",),
    "blobs": ("--enable_blob_files=1", "--min_blob_size=100", "--blob_file_size=524288"),
    "fillseq": ("--benchmarks=fillseq",),
}


# What is written does not depend on the driver, which carries it: one variant shows that the portable one does.
ON_DRIVERS = [("pyfuse3", "plain"), *(("kernel", variant) for variant in VARIANTS)]


@needs_db_bench
@pytest.mark.parametrize(("driver", "variant"), ON_DRIVERS, indirect=["driver"])
def test_levels_are_those_of_ldb(variant: str, make_world: MakeWorld) -> None:
    world = make_world(ROOMY, LEVELS)
    world.mount()
    path = world.directory / "db"
    command = [
        "db_bench",
        f"--db={path}",
        "--benchmarks=fillrandom,overwrite",
        "--num=15000",
        "--value_size=400",
        "--write_buffer_size=262144",
        "--target_file_size_base=262144",
        "--max_bytes_for_level_base=1048576",
        "--compression_type=none",
        "--seed=3",
        *VARIANTS[variant],
    ]
    subprocess.run(command, check=True, capture_output=True)
    truth = by_ldb(path)
    assert_placed(world, "db", truth)
    assert truth == by_manifest(path)
    if variant == "families":
        assert len({family for _, family in truth.values()}) == 4
    right, all_of_them = believed(world)
    assert all_of_them > 10
    assert right / all_of_them > 0.8
    if variant == "blobs":
        blobs = [row for row in world.ls() if row["role"] == "blob"]
        assert blobs
        assert {(row["level"], row["family"]) for row in blobs} == {(None, "default")}


def test_a_database_in_place_of_another(make_world: MakeWorld, open_store: OpenStore) -> None:
    """Two databases at once; one is destroyed and made anew with the same file numbers."""
    world = make_world(ROOMY, LEVELS)
    world.mount()
    one, other = world.directory / "one", world.directory / "deep/other"
    other.parent.mkdir()
    with open_store("rocksdb", one, create=True) as first, open_store("leveldb", other, create=True) as second:
        Oracle().put(first, range(6000))
        Oracle().put(second, range(6000))
    assert_placed(world, "one", tables_of("rocksdb", one))
    assert_placed(world, "deep/other", tables_of("leveldb", other))

    destroyed = [sys.executable, "-m", "tests.engines.worker", "rocksdb", str(one), "destroy"]
    subprocess.run(destroyed, check=True, cwd=Path(__file__).parent.parent.parent)
    assert placed(world, "one") == {}
    with open_store("leveldb", one, create=True) as store:
        Oracle().put(store, range(5000))
    assert_placed(world, "one", tables_of("leveldb", one))
    assert_placed(world, "deep/other", tables_of("leveldb", other))


ROLLED_OVER_AND_INGESTED = """
import sys
from rocksdict import Options, Rdict, SstFileWriter
path, outside = sys.argv[1:]
options = Options(raw_mode=True)
options.create_if_missing(True)
options.set_write_buffer_size(65536)
options.set_target_file_size_base(65536)
options.set_max_bytes_for_level_base(262144)
options.set_max_manifest_file_size(1000)
db = Rdict(path, options)
for n in range(4000):
    db[b"%06d" % (n * 7919 % 4000)] = b"x" * 400
db.flush()
writer = SstFileWriter(options)
writer.open(outside)
for n in range(5000, 5100):
    writer[b"%06d" % n] = b"y" * 100
writer.finish()
db.ingest_external_file([outside])
db.close()
"""


def test_a_manifest_that_rolls_over_an_ingested_table_and_a_repair(make_world: MakeWorld) -> None:
    world = make_world(ROOMY, LEVELS)
    world.mount()
    path = world.directory / "db"
    command = [sys.executable, "-c", ROLLED_OVER_AND_INGESTED, str(path), str(world.base / "outside.sst")]
    subprocess.run(command, check=True, capture_output=True)
    number = file_number((path / "CURRENT").read_bytes().strip())
    assert number is not None
    assert number > 50, "was meant to roll over"
    assert_placed(world, "db", tables_of("rocksdb", path))

    (path / "CURRENT").unlink()
    for manifest in path.glob("MANIFEST-*"):
        manifest.unlink()
    repair = "import sys; from rocksdict import Options, Rdict; Rdict.repair(sys.argv[1], Options(raw_mode=True))"
    subprocess.run([sys.executable, "-c", repair, path], check=True, capture_output=True)
    assert_placed(world, "db", tables_of("rocksdb", path))


def test_a_manifest_of_garbage_harms_nobody(make_world: MakeWorld, open_store: OpenStore) -> None:
    world = make_world(ROOMY, LEVELS)
    world.mount()
    bad, good = world.directory / "bad", world.directory / "good"
    bad.mkdir()
    (bad / "MANIFEST-000001").write_bytes(os.urandom(200_000))
    (bad / "CURRENT").write_bytes(b"MANIFEST-000001\n")
    (bad / "OPTIONS-000002").write_bytes(b"[Version]\n\0\xff" * 100)
    (bad / "LOG").write_bytes(os.urandom(200_000))
    (bad / "000007.sst").write_bytes(b"x" * 1000)
    with open_store("rocksdb", good, create=True) as store:
        Oracle().put(store, range(5000))
    assert_placed(world, "good", tables_of("rocksdb", good))
    assert placed(world, "bad").keys() == {7}
    assert world.log().count("its levels are not followed") == 1
    assert "Traceback" not in world.log()


def descriptors_of_the_dead(world: World) -> list[str]:
    """Files without a name that the daemon still holds open."""
    return [path for path in open_files(world.pids[-1]) if path.endswith(" (deleted)")]


def test_databases_that_come_and_go_leave_nothing_behind(make_world: MakeWorld) -> None:
    world = make_world(ROOMY, LEVELS)
    world.mount()
    for number in range(60):
        path = world.directory / f"db{number}"
        path.mkdir()
        (path / "MANIFEST-000001").write_bytes(b"")
        (path / "CURRENT").write_bytes(b"MANIFEST-000001\n")
        (path / "LOG").write_bytes(b"x" * 1000)
        (path / "000002.sst").write_bytes(b"x")
        shutil.rmtree(path)
    world.wait_closed()
    until(lambda: descriptors_of_the_dead(world) == [])
    assert world.ls() == []


def test_tables_that_are_put_back_are_known_by_the_manifest(make_world: MakeWorld, open_store: OpenStore) -> None:
    """Restored after the MANIFEST by whatever program, and in whatever way, files have the levels that they had."""
    world = make_world(ROOMY, LEVELS)
    world.mount()
    path, backup = world.directory / "db", world.base / "backup"
    with open_store("rocksdb", path, create=True) as store:
        Oracle().put(store, range(KEYS))
        store.compact()
        Oracle().put(store, range(500))
    truth = tables_of("rocksdb", path)
    shutil.copytree(path, backup)
    shutil.rmtree(path)
    assert placed(world, "db") == {}

    path.mkdir()
    metadata_first = sorted(backup.iterdir(), key=lambda file: (file.suffix == ".sst", file.name))
    for file in metadata_first:
        (path / file.name).write_bytes(file.read_bytes())
    assert_placed(world, "db", truth)
    for number in truth:
        name = f"{number:06}.sst"
        (path / (name + ".new")).write_bytes((backup / name).read_bytes())
        (path / (name + ".new")).rename(path / name)
    assert_placed(world, "db", truth)
    assert_placed(world, "db", tables_of("rocksdb", path))


def test_a_manifest_that_is_written_over(make_world: MakeWorld, open_store: OpenStore) -> None:
    """A backup is put back in place: the MANIFEST under the name of the one in use."""
    world = make_world(ROOMY, LEVELS)
    world.mount()
    path, backup = world.directory / "db", world.base / "backup"
    with open_store("leveldb", path, create=True) as store:
        Oracle().put(store, range(3000))
    shutil.copytree(path, backup)
    with open_store("leveldb", path) as store:
        Oracle().put(store, range(0, KEYS, 3))
        store.compact()
    before = by_manifest(backup)
    manifest = (path / "CURRENT").read_text().strip()
    for file in backup.iterdir():
        if file.name.startswith("MANIFEST"):
            (path / manifest).write_bytes(file.read_bytes())
        elif file.suffix in (".ldb", ".sst"):
            (path / file.name).write_bytes(file.read_bytes())
    assert_placed(world, "db", before)


def test_an_info_log_of_gigabytes_delays_nobody(make_world: MakeWorld, open_store: OpenStore) -> None:
    """Only its end is read: 200 GB, of which nothing is on the disk, would take an hour."""
    world = make_world(ROOMY, LEVELS)
    path = world.directory / "db"
    with open_store("rocksdb", path, create=True) as store:
        Oracle().put(store, range(500))
    with (path / "LOG").open("ab") as file:
        file.truncate(200 << 30)
    with (path / "MANIFEST-999999").open("wb") as file:
        file.write(os.urandom(10_000))
        file.truncate(200 << 30)
    world.mount()
    (path / "999990.sst").write_bytes(b"x")
    (path / "CURRENT").write_bytes(b"MANIFEST-999999\n")
    (path / "999991.sst").write_bytes(b"x")
    world.umount()
