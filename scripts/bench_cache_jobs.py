"""Databases and the jobs that run on them: what all parts of bench-cache have in common."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import bench_cache_trace as trace
import msgspec
from bench_cache_plan import Sizes, Times

from workloads.compare.hierarchy import Hierarchy
from workloads.compare.job import Job, Settings
from workloads.compare.run import run_job
from workloads.compare.tools import CompareError
from workloads.engines.db_bench import MIXGRAPH, DbBench
from workloads.engines.db_bench import run as run_db_bench
from workloads.engines.options import EngineOptions
from workloads.runner.result import Phase

Heard = Callable[[Any], None]
VALUE: Final = 1000
_NATIVE_THREADS: Final = 4
_SCATTER: Final = 0x5BD1E995
_NATIVE: Final[dict[str, dict[str, Any]]] = {
    # Keys are num * exp(-R u): of each power of e the same share, as by a Zipfian of 1, and scattered.
    "readrandom": {"key": 16, "value": VALUE, "extra": {"read_random_exp_range": "12"}},
    "mixgraph": {"key": 48, "value": 43, "extra": dict(MIXGRAPH)},
}


@dataclass
class Bench:
    """What all runs have in common."""

    hierarchy: Hierarchy
    memory: Path
    """A directory in memory for databases that were loaded, and traces."""
    sizes: Sizes
    times: Times
    profile: Path | None
    """Of the devices, as they are now."""
    _library: Path | None = None
    _stock: dict[str, Path] = field(default_factory=dict)

    @property
    def library(self) -> Path:
        """What is preloaded to trace reads. Raises CompareError."""
        self._library = self._library or trace.build(self.memory)
        return self._library

    def database(self, what: str) -> Path:
        """A database in memory that was loaded by `ycsb` or `mixgraph`, or by db_bench for one of `_NATIVE`."""
        if what not in self._stock:
            path = self.memory / what
            shutil.rmtree(path, ignore_errors=True)
            if what.startswith("native-"):
                run_db_bench(
                    _db_bench(self.sizes, path, what.removeprefix("native-"), "fillseq", "compact", direct=False)
                )
            else:
                job(self, path, f"{what}-c" if what == "ycsb" else what, Settings(), load=True)
            self._stock[what] = path
        return self._stock[what]

    def drop(self, what: str) -> None:
        """Give back the memory of a database."""
        path = self._stock.pop(what, None)
        if path is not None:
            shutil.rmtree(path)


def job(
    bench: Bench,
    directory: Path,
    workload: str,
    settings: Settings,
    *,
    load: bool = False,
    direct: bool = True,
    blocks: bool = True,
    heard: Heard = lambda _event: None,
) -> Phase:
    """Load a database, or run a workload on one, `blocks`: with a block cache. Raises CompareError."""
    given: dict[str, Any] = {"records": bench.sizes.records, "value_size": VALUE}
    if workload == "mixgraph":
        given = {"records": bench.sizes.graph_records}
    wanted = Job(
        directory=str(directory),
        engine="rocksdb",
        options=bench.sizes.options() | {"direct_reads": direct and not load} | ({} if blocks else {"block_cache": 0}),
        db_paths=[],
        workload=workload,
        parameters=given,
        settings=msgspec.structs.replace(settings, drop_caches=not load),
        load=load,
        run=not load,
    )
    found = run_job(wanted, bench.hierarchy, (workload, "", 0), heard)
    if found.error is not None or found.result is None:
        raise CompareError(f"{workload}: {found.error or 'no result'}")
    return found.result.phases[0]


def _db_bench(sizes: Sizes, path: Path, what: str, *benchmarks: str, direct: bool = True) -> DbBench:
    given, sizes = _NATIVE[what], sizes.native
    options = EngineOptions(**(sizes.options() | {"direct_reads": direct}))
    return DbBench(
        str(path), benchmarks, native_records(sizes, what), options, key_size=given["key"], value_size=given["value"]
    )


def native_records(sizes: Sizes, what: str) -> int:
    """How many records a database for db_bench has: without a common factor with what its readrandom scatters keys by.

    It takes 0x5bd1e995 for a prime, which is 457 times another number: one of 523,265 records has 1,145 keys to it.
    """
    records: int = sizes.data // (_NATIVE[what]["key"] + _NATIVE[what]["value"] + 10)
    while math.gcd(records, _SCATTER) != 1:
        records -= 1
    return records


def native(
    sizes: Sizes, path: Path, what: str, seconds: int, *, seed: int, flags: dict[str, str] | None = None
) -> tuple[int, ...]:
    """Run a benchmark of db_bench on a database that was loaded for it; its operations in each second.

    Raises KeigoError.
    """
    bench = replace(
        _db_bench(sizes, path, what, what),
        threads=_NATIVE_THREADS,
        duration=seconds,
        seed=seed,
        timeline=True,
        extra={**_NATIVE[what]["extra"], **(flags or {})},
    )
    counts = run_db_bench(bench).timeline
    if len(counts) < seconds / 2:
        raise CompareError(f"db_bench {what}: has told of {len(counts)} of {seconds} seconds only")
    return counts


@contextmanager
def in_memory(name: str) -> Iterator[Path]:
    """A directory in memory; what a killed run has left of it goes first."""
    path = Path("/dev/shm") / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path)
