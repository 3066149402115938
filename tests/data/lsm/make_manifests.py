#!/usr/bin/env python3
"""Make manifest/*: MANIFESTs that real stores wrote, each beside what that store says is live.

Run from anywhere, with the project's environment, and RocksDB's tools `db_bench` and `ldb` (Debian: rocksdb-tools)
on PATH. `pebble` is written here, field by field as the tags and VersionEdit.Encode of Pebble's
internal/manifest/version_edit.go say, for want of a Pebble; its answer is by hand.

In NAME.json, `tables` has for each number [level, size, smallest, largest]; null is what the store does not say.
`families` has by name what `ldb manifest_dump` says, of the stores that it can read.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import plyvel
import rocksdict
import speedict

OUT = Path(__file__).parent / "manifest"
Tables = dict[str, list[Any]]


def fill(db: Any, rng: random.Random, rounds: int, size: int = 40, keys: int = 400) -> None:
    for _ in range(rounds):
        for _ in range(150):
            db[b"user%06d" % rng.randrange(keys)] = rng.randbytes(size)
        db.flush()


def options(module: Any, **settings: Any) -> Any:
    chosen = module.Options(True)
    chosen.create_if_missing(True)
    chosen.set_target_file_size_base(4 << 10)
    chosen.set_max_bytes_for_level_base(16 << 10)
    chosen.set_level_zero_file_num_compaction_trigger(3)
    for name, value in settings.items():
        getattr(chosen, name)(value)
    return chosen


def live_tables(db: Any) -> Tables:
    rows = sorted(db.live_files(), key=lambda row: row["name"])
    return {
        str(int(row["name"].strip("/").removesuffix(".sst"))): [
            row["level"],
            row["size"],
            row["start_key"].hex(),
            row["end_key"].hex(),
        ]
        for row in rows
    }


def on_disk(directory: Path, suffix: str) -> dict[str, int]:
    return {str(int(path.stem)): path.stat().st_size for path in sorted(directory.glob(f"*{suffix}"))}


def rocks(module: Any, chosen: Any, work: Callable[[Any], None]) -> Callable[[Path], dict[str, Any]]:
    def make(directory: Path) -> dict[str, Any]:
        db = module.Rdict(str(directory), chosen)
        work(db)
        db.close()
        families = sorted(module.Rdict.list_cf(str(directory), chosen))
        manifest = (directory / current(directory)).read_bytes()
        # Opened again, the store has what that MANIFEST says, and removes the files that are not live.
        again = module.Options(True)
        again.set_disable_auto_compactions(True)
        db = module.Rdict(str(directory), again, column_families=dict.fromkeys(families, again))
        tables = live_tables(db)
        db.close()
        assert sorted(on_disk(directory, ".sst")) == sorted(tables)
        answer = {"engine": "rocksdb", "family_names": families, "tables": tables}
        return {"manifest": manifest, **answer, "blobs": on_disk(directory, ".blob")}

    return make


def current(directory: Path) -> str:
    return (directory / "CURRENT").read_text().strip()


def families(db: Any) -> None:
    rng = random.Random(1)
    fill(db, rng, 5)
    universal = db.create_column_family("universal", universal_options())
    gone = db.create_column_family("gone", options(rocksdict))
    fill(gone, rng, 4)
    fill(universal, rng, 9)
    fill(db, rng, 4)
    db.drop_column_family("gone")
    plain = db.create_column_family("plain", options(rocksdict))
    fill(plain, rng, 6)
    plain.compact_range(None, None)
    fill(plain, rng, 1)
    db.delete_range(b"user000300", b"user000399")
    fill(db, rng, 1)


def universal_options() -> Any:
    return options(rocksdict, set_compaction_style=rocksdict.DBCompactionStyle.universal())


def blobs(db: Any) -> None:
    rng = random.Random(2)
    fill(db, rng, 6, size=300, keys=200)
    db.compact_range(None, None)
    fill(db, rng, 4, size=300, keys=200)
    db.compact_range(None, None)
    fill(db, rng, 2, size=300, keys=200)


def speedb(db: Any) -> None:
    rng = random.Random(3)
    fill(db, rng, 12)
    other = db.create_column_family("other", options(speedict))
    fill(other, rng, 4)


def leveldb(directory: Path) -> dict[str, Any]:
    rng = random.Random(4)
    with plyvel.DB(str(directory), create_if_missing=True, write_buffer_size=64 << 10, max_file_size=1 << 20) as db:
        for _ in range(12000):
            db.put(b"user%06d" % rng.randrange(4000), rng.randbytes(60))
        db.compact_range()
        for _ in range(1500):
            db.put(b"user%06d" % rng.randrange(4000), rng.randbytes(60))
        answer = db.get_property(b"leveldb.sstables").decode()
    manifest = (directory / current(directory)).read_bytes()
    tables = leveldb_tables(answer)
    plyvel.DB(str(directory)).close()
    assert set(tables) <= set(on_disk(directory, ".ldb"))
    return {"manifest": manifest, "engine": "leveldb", "family_names": ["default"], "tables": tables, "blobs": {}}


def leveldb_tables(answer: str) -> Tables:
    tables: Tables = {}
    level = 0
    for line in answer.splitlines():
        if found := re.fullmatch(r"--- level (\d+) ---", line):
            level = int(found[1])
        elif found := re.fullmatch(r" (\d+):(\d+)\['(\w+)' @ \d+ : \d .. '(\w+)' @ \d+ : \d\]", line):
            tables[found[1]] = [level, int(found[2]), found[3].encode().hex(), found[4].encode().hex()]
    return tables


def db_bench(directory: Path) -> dict[str, Any]:
    subprocess.run(
        f"db_bench --benchmarks=fillrandom,overwrite --num=20000 --value_size=60 --write_buffer_size=65536 --seed=1"
        f" --target_file_size_base=65536 --max_bytes_for_level_base=200000 --compression_type=none --disable_wal=1"
        f" --db={directory}",
        shell=True,
        check=True,
        capture_output=True,
    )
    manifest = (directory / current(directory)).read_bytes()
    command = ["ldb", f"--db={directory}", "list_live_files_metadata"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    tables: Tables = {}
    level = 0
    for line in listed.splitlines():
        if found := re.fullmatch(r"-+ level (\d+) -+", line):
            level = int(found[1])
        elif line.endswith(".sst"):
            path = Path(line)
            tables[str(int(path.stem))] = [level, path.stat().st_size, None, None]
    return {"manifest": manifest, "engine": "rocksdb", "family_names": ["default"], "tables": tables, "blobs": {}}


def manifest_dump(path: Path) -> dict[str, Tables]:
    """What RocksDB's own reader says, by family."""
    link = path.parent / "MANIFEST-000001"
    shutil.copy(path, link)
    command = ["ldb", "manifest_dump", "--hex", f"--path={link}"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout
    link.unlink()
    found: dict[str, Tables] = {}
    level = 0
    for line in text.splitlines():
        if name := re.match(r'-+ Column family "(.*)"  \(ID \d+\)', line):
            tables = found.setdefault(name[1], {})
        elif at := re.match(r"--- level (\d+) ---", line):
            level = int(at[1])
        elif row := re.match(r" (\d+):(\d+)\[.*?\]\['(\w*)' seq:\d+, type:\d+ .. '(\w*)' seq", line):
            tables[row[1]] = [level, int(row[2]), row[3].lower(), row[4].lower()]
    return found


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(*parts: int | bytes) -> bytes:
    """Numbers as varints, bytes with their length before them."""
    return b"".join(varint(part) if isinstance(part, int) else varint(len(part)) + part for part in parts)


def key(user_key: bytes) -> bytes:
    """A point key that is set, at sequence number 7."""
    return user_key + bytes([1, 7, 0, 0, 0, 0, 0, 0])


def pebble(_: Path) -> dict[str, Any]:
    created = field(6, varint(1_760_000_000))  # customTagCreationTime
    blob_references = field(69, 1, 2, 20, 1000, 21, 2000)
    edits = [
        # comparer, next file, last sequence number; then the log
        field(1, b"leveldb.BytewiseComparator", 3, 3, 4, 0),
        field(2, 4, 3, 5, 4, 10),
        # tagNewFile4 at L0, and tagNewFile2, which has no custom fields
        field(103, 0, 5, 9000, key(b"a"), key(b"m"), 1, 9) + created + b"\1" + field(3, 7, 4, 20),
        field(100, 0, 7, 4000, key(b"b"), key(b"c"), 10, 20) + field(3, 9),
        # a move to L6, and tagNewFile5: point keys b..d, range keys a..z, bounded by a point and a range key
        field(6, 0, 5, 103, 6, 5, 9000, key(b"a"), key(b"m"), 1, 9) + created + b"\1",
        field(104, 0, 9, 700)
        + b"\x03"
        + field(key(b"b"), key(b"d"), key(b"c"), key(b"z"), 21, 22)
        + created
        + field(7, b"", 1),
        # blob files 10 and 11, and a table that refers to them
        field(107, 20, 10, 5000, 4900, 1_760_000_000, 107, 21, 11, 6000, 5900, 1_760_000_000)
        + field(103, 0, 12, 800, key(b"p"), key(b"q"), 23, 24)
        + created
        + blob_references
        + b"\1",
        # table 5 becomes the backing of the virtual tables 13 and 14, without c..e, which an excise takes away
        field(10, b"c", b"e", 1, 25, 6, 6, 5, 105, 5, 9000)
        + field(103, 6, 13, 3000, key(b"a"), key(b"b"), 1, 9)
        + created
        + field(66, 5, 1)
        + field(103, 6, 14, 4000, key(b"e"), key(b"m"), 1, 9)
        + created
        + field(66, 5, 67, b"pre", 68, b"suf", 1),
        # blob 11 is rewritten as 15; table 13 is compacted away, 7 is marked for compaction
        field(108, 21, 11, 107, 21, 15, 3000, 2900, 1_760_000_000, 6, 6, 13, 11, 0, 7, 3, 16),
    ]
    log = b"".join(fragment(edit) for edit in edits)
    tables = {
        "7": [0, 4000, b"b".hex(), b"c".hex()],
        "9": [0, 700, b"b".hex(), b"z".hex()],
        "12": [0, 800, b"p".hex(), b"q".hex()],
        "14": [6, 4000, b"e".hex(), b"m".hex()],
    }
    answer = {"engine": "pebble", "family_names": ["default"], "tables": tables, "blobs": {"10": 5000, "15": 3000}}
    return {"manifest": log, **answer, "files": {"14": 5}}


def fragment(payload: bytes) -> bytes:
    crc: int = google_crc32c.value(b"\1" + payload)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked.to_bytes(4, "little") + len(payload).to_bytes(2, "little") + b"\1" + payload


def main() -> None:
    gc = {"set_enable_blob_files": True, "set_min_blob_size": 100, "set_enable_blob_gc": True}
    making: dict[str, Callable[[Path], dict[str, Any]]] = {
        "rocksdb-families": rocks(rocksdict, options(rocksdict), families),
        "rocksdb-universal": rocks(rocksdict, universal_options(), lambda db: fill(db, random.Random(5), 14)),
        "rocksdb-blobs": rocks(rocksdict, options(rocksdict, **gc, set_blob_gc_age_cutoff=0.7), blobs),
        "rocksdb-7.8": db_bench,
        "speedb": rocks(speedict, options(speedict), speedb),
        "leveldb": leveldb,
        "pebble": pebble,
    }
    OUT.mkdir(exist_ok=True)
    for name, make in making.items():
        with tempfile.TemporaryDirectory() as base:
            made = make(Path(base) / "db")
        path = OUT / f"{name}.manifest"
        path.write_bytes(made.pop("manifest"))
        if made["engine"] == "rocksdb":
            made["families"] = manifest_dump(path)
        (OUT / f"{name}.json").write_text(json.dumps(made, indent=None) + "\n")
        print(name, path.stat().st_size, len(made["tables"]), "tables", len(made["blobs"]), "blobs")


if __name__ == "__main__":
    main()
