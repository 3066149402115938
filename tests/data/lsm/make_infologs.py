"""Makes LOG files with the real stores, infolog/logs.tar.xz, and what the stores say themselves, infolog/oracles.json.

Run it as `python tests/data/lsm/make_infologs.py`, with db_bench and ldb of RocksDB on PATH. For each database the
JSON has its logs, oldest first, and under "live" the level and column family of each table by number; under "pid"
the process of db_bench. One archive for all, since most of each LOG is the same dump of options.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "infolog"
ODD_NAME = "a] [JOB 7] [b"

Live = dict[str, tuple[int, str | None]]


def tables(text: str) -> dict[str, int]:
    """The level of each table in a property `rocksdb.sstables` or `leveldb.sstables`."""
    found, level = {}, -1
    for line in text.splitlines():
        if head := re.match(r"--- level (\d+) ---", line):
            level = int(head[1])
        elif table := re.match(r" (\d+):\d+\[", line):
            found[table[1]] = level
    return found


def live(families: Mapping[str, Any]) -> Live:
    return {
        number: (level, name)
        for name, family in families.items()
        for number, level in tables(family.property_value("rocksdb.sstables")).items()
    }


def options(store: Any, **numbers: int) -> Any:
    made = store.Options(raw_mode=True)
    made.create_if_missing(True)
    made.set_stats_dump_period_sec(0)
    made.set_write_buffer_size(1 << 16)
    made.set_target_file_size_base(1 << 14)
    made.set_max_bytes_for_level_base(1 << 16)
    made.set_level_zero_file_num_compaction_trigger(2)
    made.set_level_compaction_dynamic_level_bytes(False)
    made.set_compression_type(store.DBCompressionType.none())
    for name, value in numbers.items():
        getattr(made, f"set_{name}")(value)
    return made


def fill(family: Any, keys: Iterable[int], value: bytes = b"x" * 100) -> None:
    for key in keys:
        family[b"%08d" % key] = value
    family.flush()


def settle(store: Any, path: str, opts: Any, names: Iterable[str]) -> Live:
    """What is live once the database has been opened without compactions of its own; no LOG of this is kept."""
    opts.set_disable_auto_compactions(True)
    opts.set_db_log_dir(path + ".unused")
    db = store.Rdict(path, opts, column_families=dict.fromkeys(names, opts))
    families = {name: db.get_column_family(name) for name in names}
    found = live(families)
    for family in families.values():
        family.close()
    db.close()
    return found


def leveled(store: Any, path: str) -> Live:
    """Two families, one with a name that looks like a log line; sequential keys, so that tables move down."""
    opts = options(store)
    db = store.Rdict(path, opts)
    odd = db.create_column_family(ODD_NAME, opts)
    for i in range(8):
        fill(db, range(400 * i, 400 * i + 400))
        fill(odd, (k * 7919 % 1000 for k in range(300 * i, 300 * i + 300)))
    odd.close()
    db.close()
    return settle(store, path, opts, ["default", ODD_NAME])


def universal(store: Any, path: str) -> Live:
    opts = options(store)
    opts.set_compaction_style(store.DBCompactionStyle.universal())
    db = store.Rdict(path, opts)
    for i in range(6):
        fill(db, (k * 7919 % 2000 for k in range(300 * i, 300 * i + 300)))
    db.compact_range(None, None)
    fill(db, range(100))
    db.close()
    return settle(store, path, opts, ["default"])


def fifo(store: Any, path: str) -> Live:
    opts = options(store)
    opts.set_compaction_style(store.DBCompactionStyle.fifo())
    limit = store.FifoCompactOptions()
    limit.max_table_files_size = 1 << 17
    opts.set_fifo_compaction_options(limit)
    db = store.Rdict(path, opts)
    for i in range(8):
        fill(db, range(400 * i, 400 * i + 400))
    db.close()
    return settle(store, path, opts, ["default"])


def subcompactions(store: Any, path: str) -> Live:
    opts = options(store, max_subcompactions=4, level_zero_file_num_compaction_trigger=4)
    db = store.Rdict(path, opts)
    for i in range(9):
        fill(db, (k * 7919 % 4000 for k in range(450 * i, 450 * i + 450)))
    db.compact_range(None, None)
    db.close()
    return settle(store, path, opts, ["default"])


def ingestion(store: Any, path: str) -> Live:
    opts = options(store)
    db = store.Rdict(path, opts)
    other = db.create_column_family("other", opts)
    fill(db, range(100))
    for number, (family, first) in enumerate([(db, 50), (db, 1000), (other, 0)]):
        writer = store.SstFileWriter(opts)
        writer.open(f"{path}.{number}.sst")
        for key in range(first, first + 100):
            writer[b"%08d" % key] = b"y"
        writer.finish()
        family.ingest_external_file([f"{path}.{number}.sst"])
    other.close()
    db.close()
    return settle(store, path, opts, ["default", "other"])


def blobs(store: Any, path: str) -> Live:
    opts = options(store)
    opts.set_enable_blob_files(True)
    opts.set_enable_blob_gc(True)
    opts.set_blob_gc_age_cutoff(1.0)
    db = store.Rdict(path, opts)
    for i in range(4):
        fill(db, range(100 * i, 100 * i + 200))
    db.compact_range(None, None)
    db.close()
    return settle(store, path, opts, ["default"])


def crashed(store: Any, path: str) -> Live:
    """Killed with tables, and with a log that the next open turns into tables of two families."""
    # Nothing but the one compaction, for the last lines before the kill are lost.
    opts = options(store, max_bytes_for_level_base=1 << 20)
    if os.fork() == 0:
        db = store.Rdict(path, opts)
        other = db.create_column_family("other", opts)
        fill(db, range(400))
        fill(db, range(200, 600))
        db.compact_range(None, None)
        for key in range(300):
            db[b"%d" % key] = other[b"%d" % key] = b"z" * 50
        os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
    store.Rdict(path, opts, column_families={"default": opts, "other": opts}).close()
    return settle(store, path, opts, ["default", "other"])


def leveldb(path: str) -> Live:
    """A compacted database, killed; recovery of two tables; reads that move one of them; a flush."""
    import plyvel

    if os.fork() == 0:
        db = plyvel.DB(path, create_if_missing=True, compression=None, write_buffer_size=1 << 16)
        for key in range(6000):
            db.put(b"%08d" % (key * 7919 % 3000 * 2), b"x" * 100)
        db.compact_range(start=b"0", stop=b"9")
        db.close()
        os.rename(path + "/LOG", path + ".first")
        db = plyvel.DB(path, compression=None)
        for key in range(700):
            db.put(b"%08d" % (key * 2 + 1), b"y" * 100)
        os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
    db = plyvel.DB(path, compression=None, write_buffer_size=1 << 16)
    os.rename(path + ".first", path + "/LOG.old.0")
    before = tables(db.get_property(b"leveldb.sstables").decode())
    found = before
    # A table that is searched in vain a hundred times is compacted; this one overlaps no other at the next level.
    while found == before:
        for key in range(0, 400, 2):
            assert db.get(b"%08d" % key) is not None
        found = tables(db.get_property(b"leveldb.sstables").decode())
    db.put(b"9", b"z")
    db.compact_range(start=b"91", stop=b"92")
    found = tables(db.get_property(b"leveldb.sstables").decode())
    db.close()
    return {number: (level, None) for number, level in found.items()}


def ldb_live(path: str) -> Live:
    text = subprocess.run(
        ["ldb", f"--db={path}", "list_live_files_metadata"], check=True, capture_output=True, text=True
    ).stdout
    found: Live = {}
    level, family = -1, ""
    for line in text.splitlines():
        if head := re.match(r"===== Column Family: (.*) =====", line):
            family = head[1]
        elif head := re.match(r"-+ level (\d+) -+", line):
            level = int(head[1])
        elif table := re.search(r"/0*(\d+)\.sst$", line):
            found[table[1]] = (level, family)
    return found


def db_bench(path: str, benchmarks: str, *flags: str) -> tuple[Live, int]:
    sizes = ["--write_buffer_size=65536", "--target_file_size_base=32768", "--max_bytes_for_level_base=131072"]
    small = ["--num=3000", "--value_size=100", "--compression_type=none", "--threads=1", "--seed=1"]
    command = ["db_bench", f"--db={path}", f"--benchmarks={benchmarks}", *small, *sizes, *flags]
    done = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert done.wait() == 0
    return ldb_live(path), done.pid


EMBEDDED: dict[str, tuple[str, Callable[[Any, str], Live]]] = {
    "rocksdb-leveled": ("rocksdict", leveled),
    "rocksdb-universal": ("rocksdict", universal),
    "rocksdb-fifo": ("rocksdict", fifo),
    "rocksdb-subcompactions": ("rocksdict", subcompactions),
    "rocksdb-ingestion": ("rocksdict", ingestion),
    "rocksdb-blobs": ("rocksdict", blobs),
    "rocksdb-crashed": ("rocksdict", crashed),
    "speedb-leveled": ("speedict", leveled),
    "speedb-ingestion": ("speedict", ingestion),
    "speedb-crashed": ("speedict", crashed),
}
DB_BENCH = {
    "debian-leveled": (
        "fillrandom,overwrite,waitforcompaction",
        ["--num_column_families=2", "--subcompactions=4", "--level0_file_num_compaction_trigger=2"],
    ),
    "debian-compactfiles": (
        "fillrandom,flush,compact,overwrite,flush,compact0",
        ["--disable_auto_compactions=true"],
    ),
}


def make(name: str, path: str) -> dict[str, Any]:
    """One database at `path`, and what it says of itself; a process of its own each, for the threads outlive them."""
    if name in EMBEDDED:
        module, build = EMBEDDED[name]
        return {"live": build(__import__(module), path)}
    if name in DB_BENCH:
        found, pid = db_bench(path, DB_BENCH[name][0], *DB_BENCH[name][1])
        return {"live": found, "pid": pid}
    return {"live": leveldb(path)}


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(make(sys.argv[1], sys.argv[2])))
        return
    oracles = {}
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base, tarfile.open(HERE / "logs.tar.xz", "w:xz") as archive:
        for name in [*EMBEDDED, *DB_BENCH, "leveldb"]:
            db = Path(base) / name
            done = subprocess.run([sys.executable, __file__, name, db], check=True, capture_output=True, text=True)
            oracle = json.loads(done.stdout)
            logs = [*sorted(db.glob("LOG.old*"), key=lambda log: log.stat().st_mtime_ns), db / "LOG"]
            oracle["logs"] = [f"{name}.{number}.log" for number in range(len(logs))]
            for log, kept in zip(logs, oracle["logs"], strict=True):
                archive.add(log, kept)
            oracles[name] = oracle
    (HERE / "oracles.json").write_text(json.dumps(oracles, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
