"""Fill a RocksDB in a plain directory, mount Keigo over it, use it, leave again, and prove that nothing was lost.

The tiers are directories in memory and on the disk: an example of a hierarchy, not of its speed.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rocksdict import DBCompressionType, Options, Rdict

from keigo.observe.tables import where_table

KEYS = 60_000
OPERATIONS = 100_000
MIB = 1 << 20
console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def key(number: int) -> bytes:
    return b"user%08d" % number


def value(number: int, version: int) -> bytes:
    """400 bytes that only this key and version have, so that a wrong or stale value cannot go unnoticed."""
    seed = hashlib.sha256(b"%d/%d" % (number, version)).digest()
    return seed * 12 + b"%016d" % version


def open_database(path: Path) -> Rdict:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(2 * MIB)
    options.set_target_file_size_base(2 * MIB)
    options.set_max_bytes_for_level_base(6 * MIB)
    options.set_compression_type(DBCompressionType.none())
    return Rdict(str(path), options)


def step(number: int, text: str) -> None:
    console.print(f"\n[bold cyan]{number}[/] [bold]{text}[/]")


def keigo(*args: str | Path) -> str:
    console.print("  $ keigo " + " ".join(map(str, args)), style="dim", soft_wrap=True)
    done = subprocess.run([sys.executable, "-m", "keigo", *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr or done.stdout)
    return done.stdout


def fill(database: Path) -> list[int]:
    db = open_database(database)
    for number in track(range(KEYS), "  writing", console=console, transient=True):
        db[key(number)] = value(number, 0)
    db.flush()
    db.close()
    return [0] * KEYS


def work(database: Path, versions: list[int]) -> None:
    """Half updates, half reads, each read checked."""
    rng = random.Random(1)
    db = open_database(database)
    began = time.monotonic()
    for _ in track(range(OPERATIONS), "  working", console=console, transient=True):
        number = rng.randrange(KEYS)
        if rng.random() < 0.5:
            versions[number] += 1
            db[key(number)] = value(number, versions[number])
        elif db[key(number)] != value(number, versions[number]):
            raise SystemExit(f"key {number}: wrong value read through the mount")
    console.print(
        f"  {OPERATIONS} operations, {OPERATIONS / (time.monotonic() - began):,.0f} per second, reads checked"
    )
    db.close()


def verify(database: Path, versions: list[int]) -> None:
    db = open_database(database)
    found = 0
    for got_key, got in track(db.items(), "  reading", total=KEYS, console=console, transient=True):
        assert isinstance(got_key, bytes)  # raw mode
        number = int(got_key[4:])
        if got != value(number, versions[number]):
            raise SystemExit(f"key {number}: wrong value")
        found += 1
    db.close()
    if found != KEYS:
        raise SystemExit(f"{KEYS - found} keys are gone")
    console.print(f"  [green]all {found:,} keys are there, each with its latest value[/]")


def run(disk: Path, memory: Path) -> None:
    database, fast, mid = disk / "db", memory / "nvmm", disk / "nvme"
    for directory in (database, fast, mid):
        directory.mkdir(mode=0o700)
    config = disk / "devices.yaml"

    step(1, f"a RocksDB in a plain directory, {database}")
    versions = fill(database)
    console.print(f"  {KEYS:,} keys in {len(list(database.glob('*.sst')))} SST files")

    step(2, "devices.yaml: three tiers, the data directory itself the last")
    config.write_text(
        f"volume: quickstart-{disk.name.rpartition('-')[2]}\n"
        "tiers:                       # fast to slow\n"
        f"  - {{name: nvmm, path: {fast}, capacity: 12MiB}}\n"
        f"  - {{name: nvme, path: {mid}, capacity: 16MiB}}\n"
        "  - {name: sata, in_place: true}\n"
        "placement:\n"
        "  policy: levels\n"
        "  levels: {nvmm: [wal, 0], nvme: [1, 2], sata: [3, 4, 5, 6]}\n"
    )
    console.print("  " + config.read_text().rstrip().replace("\n", "\n  "), markup=False)

    step(3, "Keigo mounts over the directory; nothing is copied")
    keigo("mount", database, "-d", config, "--log-file", disk / "keigo.log")
    try:
        step(4, "the same database, unmodified, read and written through the mount")
        work(database, versions)

        step(5, "where the files went, and why")
        rows: list[dict[str, Any]] = json.loads(keigo("ls", database, "--json"))
        console.print(where_table(rows))
        console.print(keigo("status", database), markup=False, end="")

        step(6, "leaving: drain brings every file back, umount gives the directory back")
        console.print("  " + keigo("drain", database).strip(), soft_wrap=True)
    finally:
        console.print("  " + keigo("umount", database).strip(), soft_wrap=True)

    step(7, "the plain directory, opened without Keigo")
    verify(database, versions)


def main() -> None:
    began = time.monotonic()
    disk = Path(tempfile.mkdtemp(prefix="keigo-quickstart-", dir="/var/tmp"))
    memory = Path(tempfile.mkdtemp(prefix="keigo-quickstart-", dir="/dev/shm"))
    try:
        run(disk, memory)
    finally:
        shutil.rmtree(memory)
        shutil.rmtree(disk)
    console.print(f"\ndone in {time.monotonic() - began:.0f} s; now your own: see README.md")


if __name__ == "__main__":
    main()
