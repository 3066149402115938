"""The runs of bench-model: db_bench on one emulated device at a time, and how much was done in how long."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from keigo.devices.profile import TierProfile, load_profile, profile_path
from keigo.errors import KeigoError
from testbed import bed, parameters
from workloads.engines.db_bench import DbBench
from workloads.engines.db_bench_output import parse_result
from workloads.engines.db_bench_settled import run_settled
from workloads.engines.options import CompactionStyle, EngineOptions

Workload = Literal["write", "read-mostly"]
WORKLOADS: Final[tuple[Workload, ...]] = ("write", "read-mostly")

DILATION: Final = {"nvme": 20.0, "sata": 10.0}
"""Slower than the real devices by so much that two CPUs are not what is measured."""

MIB: Final = 1 << 20
ENTRY: Final = 1000
"""Bytes of a key and its value."""
MEMTABLE: Final = MIB
LEVEL0_FILES: Final = 4
LEVEL0_STOP: Final = 12
"""Files of level 0 at which writes stop. (RocksDB's own 36 would be a third of this data.) They are not slowed down
before: `delayed_write_rate`, not the device, would set the pace."""
TRIGGERS: Final = {
    "level0_file_num_compaction_trigger": str(LEVEL0_FILES),
    "level0_slowdown_writes_trigger": str(LEVEL0_STOP),
    "level0_stop_writes_trigger": str(LEVEL0_STOP),
    "delayed_write_rate": str(1 << 30),
}
FILE: Final = MIB
READERS: Final = 8
READ_PERCENT: Final = 90


class RunError(KeigoError):
    """A run failed; one line."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What differs between runs on a device."""

    style: CompactionStyle
    growth: int
    jobs: int
    """max_background_jobs."""
    subcompactions: int

    def __str__(self) -> str:
        shape = f"growth {self.growth}" if self.style == "leveled" else "universal"
        return f"{shape}, jobs {self.jobs}, subcompactions {self.subcompactions}"

    def options(self) -> EngineOptions:
        """The same in the words of the engines."""
        return EngineOptions(
            write_buffer=MEMTABLE,
            file_size=FILE,
            level_base=LEVEL0_FILES * MEMTABLE,
            growth_factor=self.growth,
            background_jobs=self.jobs,
            subcompactions=self.subcompactions,
            compaction_style=self.style,
            block_cache=0,
            bloom_bits=10,
            direct_reads=True,
            direct_writes=True,
            compression="none",
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What one run did."""

    ops_per_second: float
    write_amplification: float | None
    """Bytes written to tables for each byte flushed; None for read-mostly."""


@contextmanager
def testbed_of(device: str, base: Path) -> Iterator[Path]:
    """An emulated device, from its data directory; taken down whatever happens."""
    directory = base / f"bed-{device}"
    found = bed.up(directory, {device: parameters.load(parameters.shipped_file(device))}, DILATION[device], _silent)
    try:
        yield bed.database(directory, found)
    finally:
        bed.down(directory)


def _silent(_line: str) -> None:
    """Notes of the testbed are for its own command."""


def profile_of(database: Path) -> TierProfile:
    """Measure the device below a testbed's data directory, as `keigo profile` does."""
    devices = database.parent.parent / bed.CONFIG
    command = [
        sys.executable,
        "-m",
        "keigo",
        "profile",
        str(database),
        "-d",
        str(devices),
        "--quick",
        "--runtime",
        "0.5",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, told = process.communicate()
        finally:
            process.terminate()  # not killed: it ends its fio, whose open file would keep the device up
            process.wait()
    if process.returncode != 0:
        raise RunError(told.strip().splitlines()[-1])
    path = profile_path(devices)
    profile = load_profile(path)
    path.unlink()
    if profile is None:
        raise RunError(f"{path}: keigo profile wrote none")
    return profile.tiers[0]


class Databases:
    """Loaded databases to begin from: made in memory, in a second or two, and copied to the device for each run."""

    def __init__(self, base: Path, entries: int) -> None:
        self._base = base
        self._entries = entries

    def copy_to(self, setting: Setting, target: Path) -> None:
        """Put a database with the levels of this setting at `target`."""
        kept = self._base / f"{setting.style}-{setting.growth}"
        if not kept.exists():
            _written(_bench(kept, setting, ("fillrandom", "overwrite"), self._entries, seed=0))
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(kept, target)
        # Or the kernel would write the copy back while the run is measured.
        subprocess.run(["sync", "--file-system", target], check=True)


def run(setting: Setting, workload: Workload, database: Path, entries: int, seconds: int, seed: int) -> Run:
    """One run on the database there; leaves it changed. Raises KeigoError."""
    if workload == "write":
        return _written(_bench(database, setting, ("overwrite",), entries, seed))
    bench = _bench(database, setting, ("readrandomwriterandom",), entries, seed)
    extra = {**bench.extra, "readwritepercent": str(READ_PERCENT)}
    bench = replace(bench, threads=READERS, duration=seconds, extra=extra)
    with _started(bench) as process:
        assert process.stdout is not None
        rates = [found.ops_per_second for line in process.stdout if (found := parse_result(line.rstrip("\n")))]
    if not rates:
        raise RunError(f"db_bench {database}: exit {process.returncode}, no result")
    return Run(rates[-1], None)


def _bench(database: Path, setting: Setting, benchmarks: tuple[str, ...], entries: int, seed: int) -> DbBench:
    return DbBench(
        str(database),
        benchmarks,
        entries,
        setting.options(),
        key_size=16,
        value_size=ENTRY - 16,
        seed=seed + 1,
        extra=TRIGGERS,
    )


def _written(bench: DbBench) -> Run:
    """Write, and wait until no compaction is due: the time from the first write to the end of the last compaction."""
    found = run_settled(bench)
    count = bench.num * len(bench.benchmarks)
    return Run(count / (found.seconds + found.settle_seconds), found.write_amplification)


@contextmanager
def _started(bench: DbBench) -> Iterator[subprocess.Popen[str]]:
    """db_bench; ended at the end."""
    command = ["stdbuf", "-oL", *bench.command()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
