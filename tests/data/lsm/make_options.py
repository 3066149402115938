"""Makes options/: OPTIONS files of real stores, and traces of what their pickers picked.

    .venv/bin/python tests/data/lsm/make_options.py [DIRECTORY [FACTOR]]

Needs db_bench and ldb of RocksDB, rocksdict, speedict and plyvel. FACTOR multiplies the number of writes.

NAME.OPTIONS.gz is the store's own file. NAME.picks.json.gz is a list, in the order of time, of

    ["add", level, number, size, smallest, largest, largest_seqno]   a table is live; keys in hexadecimal
    ["move", number, level]                                          a trivial move
    ["drop", [number, ...]]                                          tables are gone
    ["pick", output level, [input, ...]]                             a compaction that writes tables was picked
    ["flush", level, smallest, largest]                              LevelDB chose a level for a memtable

The info log says what happened when, the MANIFEST (as ldb prints it) what keys a table has.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plyvel
import rocksdict
import speedict

Event = list[Any]

SMALL = {
    "write_buffer_size": 65536,
    "target_file_size_base": 32768,
    "max_bytes_for_level_base": 131072,
    "max_bytes_for_level_multiplier": 4,
}
DB_BENCH = {
    "bench-static": ("fillrandom,overwrite", {"level_compaction_dynamic_level_bytes": 0, "max_background_jobs": 4}),
    "bench-dynamic": ("fillrandom,overwrite", {"level_compaction_dynamic_level_bytes": 1, "max_background_jobs": 4}),
    "bench-mixed": ("fillseq,readrandomwriterandom", {"level_compaction_dynamic_level_bytes": 1}),
    "bench-universal": ("fillrandom,overwrite", {"compaction_style": 1, "max_background_jobs": 4}),
}

ADDED = re.compile(r"AddFile: (\d+) (\d+) (\d+) '([0-9A-F]*)' seq:\d+, type:\d+ \.\. '([0-9A-F]*)' seq:")
DELETED = re.compile(r"DeleteFile: (\d+) (\d+)")
COMPACTING = re.compile(r"\[default\] \[JOB (\d+)\] Compacting .* files to L(\d+)")


def manifest_edits(database: Path) -> list[str]:
    (manifest,) = database.glob("MANIFEST-*")
    command = ["ldb", "--hex", "manifest_dump", "--verbose", f"--path={manifest}"]
    dump = subprocess.run(command, capture_output=True, text=True, errors="replace").stdout
    return dump.split("VersionEdit {")[1:]


def edit_events(edit: str, seqnos: dict[int, int]) -> list[Event]:
    gone = {int(number) for _, number in DELETED.findall(edit)}
    added = [(int(lv), int(n), int(size), first, last) for lv, n, size, first, last in ADDED.findall(edit)]
    events: list[Event] = [["move", number, to] for to, number, *_ in added if number in gone]
    events += [["drop", sorted(gone - {number for _, number, *_ in added})]]
    events += [["add", *table, seqnos.get(table[1], 0)] for table in added if table[1] not in gone]
    return [event for event in events if event != ["drop", []]]


def edit_time(edit: list[Event], finished: dict[int, int], moving: Iterator[int]) -> int:
    if any(event[0] == "move" for event in edit):
        return next(moving, sys.maxsize)
    times = [finished[event[2]] for event in edit if event[0] == "add" and event[2] in finished]
    return min(times, default=sys.maxsize)


def rocksdb_trace(database: Path) -> list[Event]:
    """The MANIFEST gives the order of the edits, and the info log the latest time at which each was made."""
    finished: dict[int, int] = {}
    created: dict[int, list[int]] = {}
    seqnos: dict[int, int] = {}
    moves: list[int] = []
    output: dict[int, int] = {}
    picks: list[tuple[int, Event]] = []
    for line in (database / "LOG").read_text(errors="replace").splitlines():
        if found := COMPACTING.search(line):
            output[int(found[1])] = int(found[2])
        if "EVENT_LOG_v1" not in line:
            continue
        event = json.loads(line.split("EVENT_LOG_v1", 1)[1])
        when, job = event["time_micros"], event.get("job", -1)
        match event["event"]:
            case "table_file_creation":
                created.setdefault(job, []).append(event["file_number"])
                seqnos[event["file_number"]] = event["largest_seqno"]
            case "flush_finished" | "compaction_finished":
                for number in created.get(job, []):
                    finished.setdefault(number, when)
            case "trivial_move":
                moves.append(when)
            case "compaction_started" if job in output:
                inputs = [number for name, many in event.items() if name.startswith("files_L") for number in many]
                picks.append((when, ["pick", output[job], inputs]))
                # What is picked was there, even if a line about it comes later.
                finished |= {number: min(when, finished.get(number, when)) for number in inputs}
    edits = [edit_events(edit, seqnos) for edit in manifest_edits(database)]
    moving = iter(moves)
    times = [edit_time(edit, finished, moving) for edit in edits]
    for i in reversed(range(len(times) - 1)):
        times[i] = min(times[i], times[i + 1])
    # Of what happened at one time, edits keep their order, and come before picks.
    timed = [(time, event) for time, edit in zip(times, edits, strict=True) for event in edit]
    return [event for _, event in sorted(timed + picks, key=lambda each: each[0])]


def leveldb_trace(database: Path) -> list[Event]:
    edits = [edit for edit in manifest_edits(database) if ADDED.search(edit) or DELETED.search(edit)]
    events: list[Event] = []

    def land() -> None:
        edit = edits.pop(0)
        if gone := [int(number) for _, number in DELETED.findall(edit)]:
            events.append(["drop", gone])
        for level, number, size, smallest, largest in ADDED.findall(edit):
            if not gone:
                events.append(["flush", int(level), smallest, largest])
            events.append(["add", int(level), int(number), int(size), smallest, largest, 0])

    for line in (database / "LOG").read_text(errors="replace").splitlines():
        if found := re.search(r"Compacting \d+@(\d+) \+ \d+@(\d+) files", line):
            events.append(["pick", int(found[2]), []])
        # The last compaction may be cut short by the end of the run, and have no edit.
        elif edits and re.search(r"Level-0 table #\d+: [1-9]\d* bytes OK|compacted to: |Moved #", line):
            land()
    return events


def keys(kind: str, writes: int) -> list[bytes]:
    chance = random.Random(kind)
    if kind == "mixed":
        # Runs of ascending keys among random ones: some flushes and compactions overlap nothing.
        starts = [chance.randrange(writes) for _ in range(writes // 500)]
        return [b"%012d" % (start + i) for start in starts for i in range(chance.choice([1, 999]))]
    return [b"%012d" % chance.randrange(writes) for _ in range(writes)]


def bench(database: Path, benchmarks: str, options: dict[str, int], writes: int) -> None:
    every = {"num": writes, "compression_type": "none", "sync": 0, "threads": 1, **SMALL, **options}
    flags = [f"--{name}={value}" for name, value in every.items()]
    command = ["db_bench", f"--db={database}", f"--benchmarks={benchmarks}", *flags]
    subprocess.run(command, check=True, capture_output=True)


def rust_options(module: Any, universal: bool) -> Any:
    options = module.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(SMALL["write_buffer_size"])
    options.set_target_file_size_base(SMALL["target_file_size_base"])
    options.set_max_bytes_for_level_base(SMALL["max_bytes_for_level_base"])
    options.set_max_bytes_for_level_multiplier(SMALL["max_bytes_for_level_multiplier"])
    options.set_compression_type(module.DBCompressionType.none())
    if universal:
        options.set_compaction_style(module.DBCompactionStyle.universal())
    return options


def rust(module: Any, database: Path, universal: bool, kind: str, writes: int) -> None:
    db = module.Rdict(str(database), rust_options(module, universal))
    for i, key in enumerate(keys(kind, writes)):
        db[key] = b"%0100d" % i
    db.close()


def level(database: Path, kind: str, writes: int) -> None:
    db = plyvel.DB(str(database), create_if_missing=True, write_buffer_size=65536, compression=None)
    for i, key in enumerate(keys(kind, writes)):
        db.put(key, b"%0100d" % i)
    db.close()


def families(module: Any, database: Path) -> None:
    db = module.Rdict(str(database), rust_options(module, False))
    universal = rust_options(module, True)
    chosen = module.UniversalCompactOptions()
    chosen.size_ratio = 7
    chosen.max_size_amplification_percent = 150
    universal.set_universal_compaction_options(chosen)
    universal.set_num_levels(5)
    db.create_column_family("spaced name #1: \\ done", universal)
    fifo = rust_options(module, False)
    fifo.set_compaction_style(module.DBCompactionStyle.fifo())
    fifo.set_disable_auto_compactions(True)
    db.create_column_family("fifo", fifo)
    db.close()


def keep(database: Path, name: str, into: Path, trace: list[Event] | None) -> None:
    newest = max(database.glob("OPTIONS-*"), default=None)
    if newest is not None:
        (into / f"{name}.OPTIONS.gz").write_bytes(gzip.compress(newest.read_bytes(), mtime=0))
    if trace is not None:
        packed = json.dumps(trace, separators=(",", ":")).encode()
        (into / f"{name}.picks.json.gz").write_bytes(gzip.compress(packed, mtime=0))


def main(into: Path, factor: float) -> None:
    into.mkdir(parents=True, exist_ok=True)
    writes = int(10_000 * factor)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        for name, (benchmarks, options) in DB_BENCH.items():
            bench(base / name, benchmarks, options, writes)
            keep(base / name, name, into, rocksdb_trace(base / name))
        for name, module, universal, kind in (
            ("rocksdict-random", rocksdict, False, "random"),
            ("rocksdict-mixed", rocksdict, False, "mixed"),
            ("rocksdict-universal", rocksdict, True, "random"),
            ("speedict-random", speedict, False, "random"),
            ("speedict-universal", speedict, True, "random"),
        ):
            rust(module, base / name, universal, kind, 2 * writes)
            keep(base / name, name, into, rocksdb_trace(base / name))
        for kind in ("random", "mixed"):
            level(base / kind, kind, 2 * writes)
            keep(base / kind, f"leveldb-{kind}", into, leveldb_trace(base / kind))
        for module in (rocksdict, speedict):
            name = f"{module.__name__}-families"
            families(module, base / name)
            keep(base / name, name, into, None)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("options"),
        float(sys.argv[2]) if len(sys.argv) > 2 else 1,
    )
