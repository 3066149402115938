"""Where a closed database has its SSTs, by the store's own word: number -> (level, column family)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from keigo.lsm.manifest import ManifestReader

Placed = dict[int, tuple[int, str]]

_LIVE_FILES = """
import json, sys
import {module} as store
options = store.Options(raw_mode=True)
db = store.Rdict(sys.argv[1], options, access_type=store.AccessType.read_only())
print(json.dumps([(file["name"].strip("/").removesuffix(".sst"), file["level"]) for file in db.live_files()]))
"""


def by_ldb(path: Path) -> Placed:
    """By RocksDB's ldb, which reads what Debian's db_bench wrote."""
    out = subprocess.run(
        ["ldb", f"--db={path}", "list_live_files_metadata"], capture_output=True, text=True, check=True
    ).stdout
    found: Placed = {}
    family, level = "", -1
    for line in out.splitlines():
        if head := re.fullmatch(r"===== Column Family: (.*) =====", line):
            family = head[1]
        elif head := re.fullmatch(r"-+ level (\d+) -+", line):
            level = int(head[1])
        elif table := re.search(r"/(\d+)\.sst$", line):
            found[int(table[1])] = level, family
    return found


def by_live_files(module: str, path: Path) -> Placed:
    """By rocksdict or speedict, in a process of its own, opened for reading only; of a database of one family."""
    script = _LIVE_FILES.format(module=module)
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    return {int(number): (level, "default") for number, level in json.loads(done.stdout)}


def by_manifest(path: Path) -> Placed:
    """By the MANIFEST that CURRENT names, read from its first byte: for LevelDB, which cannot be opened to be read."""
    reader = ManifestReader()
    reader.feed((path / (path / "CURRENT").read_text().strip()).read_bytes())
    return {
        table.file: (table.level, family.name)
        for family in reader.families.values()
        for table in family.tables.values()
    }


def tables_of(engine: str, path: Path) -> Placed:
    match engine:
        case "leveldb":
            return by_manifest(path)
        case "speedb":
            return by_live_files("speedict", path)
        case _:
            return by_live_files("rocksdict", path)
