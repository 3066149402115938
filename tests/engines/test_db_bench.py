"""RocksDB's own tools on a volume. db_bench with a fixed seed writes the same database every time, so one that was
written natively says what the one on the volume must hold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import MakeWorld, World
from tests.engines.processes import OpenStore, Oracle, StoreProcess
from tests.engines.volumes import assert_nothing_left

pytestmark = pytest.mark.skipif(
    shutil.which("db_bench") is None or shutil.which("ldb") is None,
    reason="db_bench and ldb (Debian: rocksdb-tools) are not installed",
)

SMALL = {"fast": "1MiB", "mid": "1MiB"}
LEVELS = "{fast: [wal, 0], mid: [1, 2], slow: [3, 4, 5, 6]}"
NUM = 12_000
SIZES = (
    f"--num={NUM}",
    "--value_size=400",
    "--write_buffer_size=524288",
    "--target_file_size_base=524288",
    "--max_bytes_for_level_base=1048576",
    "--level0_file_num_compaction_trigger=2",
    "--compression_type=none",
    "--verify_checksum=1",
    "--threads=1",
    "--seed=7",
)
ALL = "fillrandom,overwrite,readrandom,seekrandom"


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def db_bench(path: Path, benchmarks: str, *options: str) -> list[str]:
    """Run benchmarks; returns what each read benchmark found, as "readrandom 100 of 120"."""
    out = run("db_bench", f"--db={path}", f"--benchmarks={benchmarks}", *SIZES, *options)
    found = re.findall(r"^(\w+) +:.*\((\d+ of \d+) found\)", out, re.MULTILINE)
    assert len(found) == sum("read" in name or "seek" in name for name in benchmarks.split(","))
    return [" ".join(pair) for pair in found]


def contents(path: Path) -> str:
    """Hash of all keys and values, as ldb reads them."""
    return hashlib.sha256(run("ldb", f"--db={path}", "scan", "--hex").encode()).hexdigest()


def check_consistency(path: Path) -> None:
    assert run("ldb", f"--db={path}", "checkconsistency").split()[-1] == "OK"


def live_files(path: Path) -> set[str]:
    """Names of the SSTs that RocksDB says are live, all of which are there."""
    out = run("ldb", f"--db={path}", "list_live_files_metadata", "--sort_by_filename")
    names = set(re.findall(r"(\d+\.sst)\b", out))
    assert names
    assert names <= set(os.listdir(path))
    return names


# What db_bench can be told to do to its files.
VARIANTS = {
    "plain": (),
    "mmap": ("--mmap_read=1",),
    "direct": ("--use_direct_reads=1", "--use_direct_io_for_flush_and_compaction=1"),
    "blobs": ("--enable_blob_files=1", "--min_blob_size=100", "--blob_file_size=524288"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_benchmarks(variant: str, make_world: MakeWorld, tmp_path: Path) -> None:
    options = VARIANTS[variant]
    reference = tmp_path / "reference"
    wanted = db_bench(reference, ALL, *options)
    wanted_contents = contents(reference)

    world = make_world(SMALL, LEVELS)
    world.mount()
    path = world.directory / "db"
    assert db_bench(path, ALL, *options) == wanted
    # RocksDB opens each SST again as soon as it has closed it: none may be pinned to its tier by that.
    assert world.status()["driver_facts"].get("pinning_opens", 0) == 0
    check_consistency(path)
    live = live_files(path)
    rows = {Path(row["name"]).name: row for row in world.ls()}
    assert live <= rows.keys()
    # Which levels are empty at the end depends on when compactions ran; the last one never is.
    assert "slow" in {row["tier"] for row in rows.values() if row["role"] in ("sst", "blob") and row["size"]}
    assert contents(path) == wanted_contents
    # The same seed reads the keys that fillrandom wrote.
    assert db_bench(path, "readrandom", "--use_existing_db=1", *options) == [f"readrandom {NUM} of {NUM}"]

    world.keigo("drain", world.directory)
    world.umount()
    assert_nothing_left(world)
    check_consistency(path)
    assert contents(path) == wanted_contents
    assert db_bench(path, "readrandom", "--use_existing_db=1", *options) == [f"readrandom {NUM} of {NUM}"]


def test_wal_in_another_directory(make_world: MakeWorld, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    db_bench(reference, "fillrandom,overwrite")
    world = make_world({"fast": "64MiB", "mid": "64MiB"}, LEVELS)
    world.mount()
    path, wal = world.directory / "dbs/one", world.directory / "logs/one"
    path.parent.mkdir()
    wal.parent.mkdir()
    db_bench(path, "fillrandom,overwrite", f"--wal_dir={wal}")
    rows = [row for row in world.ls() if row["role"] == "wal"]
    assert {(row["name"].rpartition("/")[0], row["tier"]) for row in rows} == {("logs/one", "fast")}
    assert any(row["size"] for row in rows)
    check_consistency(path)
    assert contents(path) == contents(reference)

    world.umount()
    assert (path / "LOCK").is_dir(), "guarded: its WAL is elsewhere"
    world.mount()
    assert db_bench(path, "readrandom", "--use_existing_db=1", f"--wal_dir={wal}") == [f"readrandom {NUM} of {NUM}"]
    world.keigo("drain", world.directory)
    world.umount()
    assert_nothing_left(world)
    assert contents(path) == contents(reference)


def test_a_new_database_over_an_old_one(make_world: MakeWorld, tmp_path: Path) -> None:
    """Without --use_existing_db db_bench destroys what it finds: guard, LOCK and directory are made again."""
    reference = tmp_path / "reference"
    db_bench(reference, "fillrandom")
    world = make_world(SMALL, LEVELS)
    world.mount()
    path = world.directory / "db"
    for _ in range(2):
        db_bench(path, "fillrandom")
        check_consistency(path)
    assert contents(path) == contents(reference)
    assert world.status()["guards"] == 1
    world.umount()
    assert (path / "LOCK").is_dir()


def test_checkpoint_by_ldb(make_world: MakeWorld) -> None:
    world = make_world({"fast": "64MiB", "mid": "64MiB"}, LEVELS)
    world.mount()
    path, copy = world.directory / "db", world.directory / "backups/first"
    copy.parent.mkdir()
    db_bench(path, "fillrandom")
    run("ldb", f"--db={path}", "checkpoint", f"--checkpoint_dir={copy}")
    shared = live_files(path) & live_files(copy)
    assert shared
    for name in shared:
        assert (path / name).stat().st_ino == (copy / name).stat().st_ino
        assert (path / name).stat().st_nlink == 2
    check_consistency(copy)
    before = contents(path)
    assert contents(copy) == before

    # Written on, the copy stays; and after a drain both stand alone, still sharing blocks.
    db_bench(path, "overwrite", "--use_existing_db=1", "--seed=8")
    after = contents(path)
    assert (contents(copy), after == before) == (before, False)
    world.keigo("drain", world.directory)
    world.umount()
    assert_nothing_left(world)
    for place, wanted in ((path, after), (copy, before)):
        check_consistency(place)
        assert contents(place) == wanted


def test_checkpoint_under_load(make_world: MakeWorld, open_store: OpenStore) -> None:
    world = make_world(SMALL, LEVELS)
    world.mount()
    path, copies = world.directory / "db", [world.directory / f"copy{number}" for number in range(3)]
    base = Oracle()
    taken: list[dict[str, int]] = []
    with open_store("rocksdb", path, create=True) as store:
        base.put(store, range(8000))
        base.put(store, range(0, 8000, 2))
        first = 10_000
        for copy in copies:
            taken.append(
                store.ask("checkpoint_under_load", path=str(copy), first=first, size=50, before=20),
            )
            check_copy(open_store("rocksdb", copy), base, taken[-1])
            first = taken[-1]["reached"]
        written = set(base.versions) | set(range(10_000, first))
        assert set(store.dump()) == written
    assert any(row["links"] > 1 for row in world.ls())
    world.keigo("drain", world.directory)
    world.umount()
    assert_nothing_left(world)
    for copy, reached in zip(copies, taken, strict=True):
        check_copy(open_store("rocksdb", copy), base, reached)
    with open_store("rocksdb", path) as store:
        assert set(store.dump()) == written


def check_copy(store: StoreProcess, base: Oracle, taken: dict[str, int]) -> None:
    """A checkpoint holds all that was written before it, and of what was written meanwhile a beginning."""
    found = store.dump()
    store.close()
    assert {number: found.get(number) for number in base.versions} == base.versions
    meanwhile = sorted(found.keys() - base.versions.keys())
    assert meanwhile == list(range(10_000, 10_000 + len(meanwhile)))
    assert taken["began"] <= 10_000 + len(meanwhile) <= taken["ended"]


@pytest.mark.parametrize("pattern", ["db/*.sst", "copy/*.sst"])
def test_links_migrate_together(pattern: str, world: World) -> None:
    """Asked for by either name, a file moves with both: one inode, one copy on the target, none elsewhere."""
    world.mount()
    path, copy = world.directory / "db", world.directory / "copy"
    db_bench(path, "fillrandom,compact")  # nothing is left to compact for ldb, whose work would part the two
    run("ldb", f"--db={path}", "checkpoint", f"--checkpoint_dir={copy}")
    pairs = [[f"copy/{name}", f"db/{name}"] for name in sorted(live_files(path) & live_files(copy))]
    assert pairs
    wanted = contents(path)

    for target in ("fast", "mid", "slow"):
        migrate = ("migrate", world.directory, pattern, target, "--json")
        done = json.loads(world.keigo(*migrate, check=target != "fast").stdout)
        assert target == "fast" or done["skipped"] == {}
        assert {tier: linked_on(world, tier) for tier in ("fast", "mid")} == {
            "fast": pairs if target == "fast" else [],
            "mid": pairs if target == "mid" else [],
        }
        tiers = {row["name"]: row["tier"] for row in world.ls()}
        for one, other in pairs:
            assert tiers[one] == tiers[other] == target
            first, second = (world.directory / one).stat(), (world.directory / other).stat()
            assert first.st_ino == second.st_ino
            assert first.st_nlink == second.st_nlink == 2
        for place in (path, copy):
            check_consistency(place)
            assert contents(place) == wanted

    world.keigo("drain", world.directory)
    world.umount()
    assert_nothing_left(world)
    for one, other in pairs:
        assert (world.directory / one).samefile(world.directory / other)
        assert (world.directory / one).stat().st_nlink == 2


def linked_on(world: World, tier: str) -> list[list[str]]:
    """The SSTs with several names on a tier that is not in place: a list of the names of each."""
    root = world.tiers[tier]
    found: dict[int, list[str]] = {}
    for path in sorted(root.rglob("*.sst")):
        found.setdefault(path.stat().st_ino, []).append(str(path.relative_to(root)))
    return sorted(names for names in found.values() if len(names) > 1)
