"""The level believed at CREATE against the one where the store then has the SST, for several stores and loads.

Each load runs on a volume of its own, in a fresh directory. When it has come to rest, the level and column family of
every live SST are also compared with the store's own word (`ldb`, `live_files`, the MANIFEST).
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from ending import end_by_sigterm, run_to_end
from rich.console import Console
from rich.table import Table

from tests.engines.oracles import Placed, by_ldb, tables_of
from tests.engines.stores import OPEN, key_of, value_of

console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)

SMALL = (
    "--value_size=400",
    "--compression_type=none",
    "--write_buffer_size=4194304",
    "--target_file_size_base=4194304",
    "--max_bytes_for_level_base=16777216",
)
"""Levels a sixteenth of RocksDB's own size: a load of seconds then compacts as much as one of minutes."""

RANDOM = "fillrandom,overwrite"
MIXED = "fillseq,readrandomwriterandom,overwrite"
DB_BENCH = {
    "RocksDB's own sizes": (
        RANDOM,
        "--write_buffer_size=67108864",
        "--target_file_size_base=67108864",
        "--max_bytes_for_level_base=268435456",
    ),
    "fillrandom, overwrite": (RANDOM,),
    "fillseq": ("fillseq",),
    "mixed": (MIXED, "--readwritepercent=50"),
    "subcompactions 4": (RANDOM, "--subcompactions=4", "--max_background_jobs=4"),
    "families 4": (RANDOM, "--num_column_families=4"),
    "families 4, subcompactions 4": (
        RANDOM,
        "--num_column_families=4",
        "--subcompactions=4",
        "--max_background_jobs=4",
    ),
    "dynamic levels": (RANDOM, "--level_compaction_dynamic_level_bytes=1"),
    "dynamic levels, families 4": (RANDOM, "--level_compaction_dynamic_level_bytes=1", "--num_column_families=4"),
    "universal": (RANDOM, "--compaction_style=1"),
}
EMBEDDED = {
    "rocksdb": ("random", "in order", "mixed", "info log elsewhere"),
    "speedb": ("random", "in order", "mixed", "info log elsewhere"),
    "leveldb": ("random", "in order", "mixed"),
}


@dataclass(frozen=True)
class Result:
    load: str
    files: int
    right: int
    confusion: list[dict[str, Any]]
    live: int
    wrong_at_rest: int
    context_seconds: float
    store_seconds: float


def keigo(*args: str | Path) -> str:
    return run_to_end(sys.executable, "-m", "keigo", *args)


def on_a_volume(load: str, where: Path, driver: str, run: Callable[[Path], Placed]) -> Result:
    """Run a load on a fresh volume; `run` gets a path for the database and returns where the store has its SSTs."""
    base = Path(tempfile.mkdtemp(prefix="keigo-bench-", dir=where))
    directory = base / "db"
    try:
        for name in ("db", "fast"):
            (base / name).mkdir()
        config = base / "devices.yaml"
        config.write_text(
            f"volume: bench-{os.getpid()}\n"
            f"tiers:\n  - {{name: fast, path: {base}/fast}}\n  - {{name: slow, in_place: true}}\n"
            "placement: {policy: levels}\n"
        )
        try:
            keigo("mount", directory, "-d", config, "--driver", driver, "--log-file", base / "log")
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            truth = run(directory / "store")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            context = json.loads(keigo("status", directory, "--json"))["context"]
            rows = json.loads(keigo("ls", directory, "--json"))
        finally:
            if os.path.ismount(directory):
                keigo("umount", directory)
    finally:
        shutil.rmtree(base)
    known = {
        int(found[1]): (row["level"], row["family"])
        for row in rows
        if (found := re.search(r"store/(\d+)\.(?:sst|ldb)$", row["name"]))
    }
    outcomes = context["outcomes"]
    return Result(
        load,
        sum(row["files"] for row in outcomes),
        sum(row["files"] for row in outcomes if row["believed"] == row["actual"]),
        outcomes,
        len(truth),
        sum(known.get(number) != place for number, place in truth.items()),
        context["cpu_seconds"],
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )


def by_db_bench(num: int, seed: int, benchmarks: str, *options: str) -> Callable[[Path], Placed]:
    def run(path: Path) -> Placed:
        command = ["db_bench", f"--db={path}", f"--benchmarks={benchmarks}", f"--num={num}", f"--seed={seed}"]
        subprocess.run([*command, *SMALL, *options], check=True, capture_output=True)
        return by_ldb(path)

    return run


def by_embedded(engine: str, load: str, num: int, seed: int) -> Callable[[Path], Placed]:
    def run(path: Path) -> Placed:
        command = [sys.executable, __file__, "--fill", engine, load, str(num), str(seed), str(path)]
        subprocess.run(command, check=True, capture_output=True)
        return tables_of(engine, path)

    return run


def fill(engine: str, load: str, num: int, seed: int, path: str) -> None:
    """Write into a store, in a process of its own."""
    elsewhere = str(Path(path).parent.parent / "logs") if load == "info log elsewhere" else None
    store = OPEN[engine](path, create=True, log_dir=elsewhere)
    chance = random.Random(seed)
    for version in range(3):
        in_order = load == "in order" or (load == "mixed" and version == 0)
        for start in range(0, num, 100):
            numbers = range(start, start + 100) if in_order else (chance.randrange(num) for _ in range(100))
            store.put([(key_of(number), value_of(number, version)) for number in numbers], sync=False)
    store.close()


def show(results: list[Result]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("load", "SSTs", "level right at create", "wrong at rest", "CPU", "confused: believed -> actual"):
        table.add_column(name, justify="left" if name.startswith(("load", "confused")) else "right")
    for result in results:
        confused = [row for row in result.confusion if row["believed"] != row["actual"]]
        table.add_row(
            result.load,
            str(result.files),
            f"{result.right / result.files:.1%}" if result.files else "-",
            f"{result.wrong_at_rest} of {result.live}",
            f"{result.context_seconds / (result.store_seconds + result.context_seconds):.2%}",
            ", ".join(f"{row['believed']} -> {row['actual']}: {row['files']}" for row in confused),
        )
    console.print(table)


@click.command()
@click.option("--num", default=1_000_000, show_default=True, help="Keys of db_bench; other stores get a twentieth.")
@click.option("--quick", is_flag=True, help="A quarter of the keys.")
@click.option("--seed", default=1, show_default=True)
@click.option("--driver", default="kernel", show_default=True)
@click.option("--only", default="", help="Only loads whose name contains this.")
@click.option("--where", default="/var/tmp", type=click.Path(path_type=Path), help="A directory to work in.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures here.")
@click.option("--fill", "to_fill", nargs=5, type=str, hidden=True)
def main(
    num: int,
    quick: bool,
    seed: int,
    driver: str,
    only: str,
    where: Path,
    json_file: Path | None,
    to_fill: tuple[str, str, str, str, str] | None,
) -> None:
    """How often the level believed at create is right."""
    end_by_sigterm()
    if to_fill:
        engine, load, count, seeded, path = to_fill
        fill(engine, load, int(count), int(seeded), path)
        return
    num = num // 4 if quick else num
    loads: dict[str, Callable[[Path], Placed]] = {}
    for name, options in DB_BENCH.items():
        loads[f"db_bench: {name}"] = by_db_bench(num, seed, *options)
    for engine, names in EMBEDDED.items():
        for name in names:
            loads[f"{engine}: {name}"] = by_embedded(engine, name, num // 20, seed)
    results = []
    for name, run in loads.items():
        if only in name:
            results.append(on_a_volume(name, where, driver, run))
            console.print(f"  {name}: {results[-1].right} of {results[-1].files}", style="dim")
    show(results)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(result) for result in results]))


if __name__ == "__main__":
    main()
