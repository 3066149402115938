"""The runs of bench-placement: one part on one setup, by the machinery of `keigo bench compare`."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from bench_placement_phases import phases_of
from bench_placement_plan import Part, Sizes, Times, Todo
from bench_placement_results import Done, Step
from bench_placement_watch import Timeline, Watch, watching

from keigo.control import ask
from keigo.devices.identity import device_of
from keigo.devices.profile import Profile, load_profile, profile_path, save_profile
from keigo.errors import KeigoError
from workloads.compare.hierarchy import Hierarchy
from workloads.compare.job import DB_BENCH, Job, Settings
from workloads.compare.run import run_job
from workloads.compare.setups import Keigo, Place, Setup
from workloads.compare.tools import ROOT, CompareError, keigo
from workloads.runner.result import Latency, Phase

WRITERS: Final = 2
READERS: Final = 8
READ_PERCENT: Final = 90
_KEY: Final = 16
_VALUE: Final = 1000
_WINDOWS: Final = 4
"""With migrations, and as many without, by turns."""
_LOAD: Final = 0.4
"""Share of the reads that one thread can do, at which reads are due while files migrate."""
_INTERVAL: Final = 0.25  # seconds between counts of the shifting workload


class RunError(KeigoError):
    """A run failed; one line."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all runs have in common."""

    hierarchy: Hierarchy
    sizes: Sizes
    times: Times
    profile: Path | None
    """Of the devices, as they are now."""


def run(bench: Bench, todo: Todo, setup: Setup) -> tuple[Done, Timeline]:
    """Run a part on a setup. What fails is in the Done; Ctrl-C raises KeyboardInterrupt, with all taken down."""
    if isinstance(setup, Keigo) and bench.profile is not None:
        setup = replace(setup, profile=bench.profile)
    times = bench.times.short if todo.short else bench.times
    began, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    steps: list[Step] = []
    error = None
    watch = Watch(bench.hierarchy.tiers, bench.hierarchy.scratch if isinstance(setup, Keigo) else None)
    try:
        with setup.up(bench.hierarchy) as place, watching(watch):
            one = _Session(bench, todo, place, times, watch)
            for step in {"fill": one.fill, "ycsb": one.ycsb, "shifting": one.shifting, "migrating": one.migrating}[
                todo.part
            ]():
                steps.append(step)
    except KeigoError as failed:
        error = str(failed)
    finally:
        bench.hierarchy.clear()
    took = time.monotonic() - start
    done = Done(todo.part, todo.setup, todo.repetition, todo.short, began, took, version(), tuple(steps), error)
    return done, watch.timeline


def engine_of(part: Part) -> str:
    """Name of the engine that does a part."""
    return DB_BENCH if part == "fill" else "rocksdb"


def version() -> str:
    """The commit that runs, and `+` where files differ from it."""
    done = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty=+", "--abbrev=10"], capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


class _Session:
    """A part on a place, step by step."""

    def __init__(self, bench: Bench, todo: Todo, place: Place, times: Times, watch: Watch) -> None:
        self._bench = bench
        self._todo = todo
        self._place = place
        self._times = times
        self._watch = watch
        self._sizes = bench.sizes
        self._peaks: dict[str, int] = {}

    def _job(
        self,
        what: str,
        workload: str,
        parameters: dict[str, Any],
        settings: Settings,
        *,
        load: bool = False,
        run: bool = True,
        settle: bool = False,
    ) -> list[Phase]:
        """Run a job in the database that was opened; its phases."""
        self._watch.mark(what)
        job = Job(
            directory=str(self._place.directory),
            engine=engine_of(self._todo.part),
            options=self._sizes.options(),
            db_paths=list(self._place.db_paths),
            workload=workload,
            parameters=parameters,
            settings=msgspec.structs.replace(settings, seed=self._todo.repetition, drop_caches=run and not load),
            load=load,
            run=run,
            settle=settle,
        )
        key = (what, self._todo.setup, self._todo.repetition)
        found = run_job(job, self._bench.hierarchy, key, lambda _event: None)
        if found.error is not None or found.result is None:
            raise RunError(f"{what}: {found.error or 'no result'}")
        self._peaks = self._watch.peaks_since(self._watch.timeline.marks[-1][0])
        return found.result.phases

    def _step(self, name: str, phase: Phase) -> Step:
        """What the one phase of the last job says."""
        reads = phase.latency.get("read")
        facts = {f"level{level.level}_bytes": float(level.bytes) for level in phase.levels}
        return Step(
            name,
            phase.operations,
            phase.seconds,
            phase.settle_seconds,
            (),
            None if reads is None else percentile([reads], 99.0) / 1e3,
            phase.stall_seconds,
            {**facts, **{f"peak_{name}_bytes": float(peak) for name, peak in self._peaks.items()}},
        )

    def fill(self) -> Iterator[Step]:
        """The part `fill`."""
        records = self._sizes.data // (_KEY + _VALUE)
        common = {"records": records, "key_size": _KEY, "value_size": _VALUE}
        settings = Settings(threads=WRITERS, operations=self._times.rewrites * records)
        (phase,) = self._job("fillrandom", DB_BENCH, {**common, "benchmark": "fillrandom"}, settings, settle=True)
        yield self._step("fillrandom", phase)
        mixed = {**common, "benchmark": "readrandomwriterandom", "load": "fillrandom", "read_percent": READ_PERCENT}
        (phase,) = self._job("mixed", DB_BENCH, mixed, Settings(threads=READERS, seconds=self._times.seconds))
        yield self._step("mixed", phase)

    def ycsb(self) -> Iterator[Step]:
        """The part `ycsb`."""
        given = {"records": self._sizes.records, "value_size": _VALUE}
        (phase,) = self._job("load", "ycsb-a", given, Settings(), load=True, run=False)
        yield self._step("load", phase)
        settings = Settings(seconds=self._times.seconds, warm_up=self._times.seconds / 2)
        for letter in "abc":
            (phase,) = self._job(letter, f"ycsb-{letter}", given, settings, settle=letter == "a")
            yield self._step(letter, phase)

    def shifting(self) -> Iterator[Step]:
        """The part `shifting`."""
        times = self._times
        given = {
            "records": self._sizes.records,
            "value_size": _VALUE,
            "phase_operations": times.phase,
            "hot_records": 0.1,
        }
        settings = Settings(operations=times.phase * times.phases, interval=_INTERVAL)
        self._job("load", "shifting", given, Settings(), load=True, run=False)
        (phase,) = self._job("shifting", "shifting", given, settings)
        counts = [sum(column) for column in zip(*phase.per_interval.values(), strict=True)]
        step = self._step("shifting", phase)
        found = phases_of(counts, phase.interval, phase.seconds, times.phase)
        yield msgspec.structs.replace(step, phases=tuple(found))

    def migrating(self) -> Iterator[Step]:
        """The part `migrating`."""
        records = self._sizes.records * 2 // 3
        given = {"records": records, "value_size": _VALUE, "distribution": "uniform"}
        self._job("load", "ycsb-c", given, Settings(), load=True, run=False)
        cold = _cold_files(self._place.directory, self._sizes.fast // 2, self._sizes.fast // 32)
        volume = self._bench.hierarchy.scratch
        (phase,) = self._job("free", "ycsb-c", given, Settings(seconds=self._times.seconds / 2))
        rate = _LOAD * phase.throughput
        # Opening the database, and the first look into each table, are no migration's fault.
        settings = Settings(seconds=self._times.seconds / 2, rate=rate, warm_up=self._times.seconds / 10)
        found: dict[bool, list[Latency]] = {False: [], True: []}
        moved, seconds = 0, 0.0
        for window in range(2 * _WINDOWS):
            busy = window % 2 == 1
            with _migrating(volume, cold, [tier.name for tier in self._bench.hierarchy.tiers], busy=busy) as count:
                before, start = count(), time.monotonic()
                (phase,) = self._job("with" if busy else "without", "ycsb-c", given, settings)
                if busy:
                    moved, seconds = moved + count() - before, seconds + time.monotonic() - start
            found[busy].append(phase.latency["read"])
        calm, moving = (percentile(found[busy], 99.0) / 1e3 for busy in (False, True))
        yield Step(
            "migrating",
            sum(latency.count for latencies in found.values() for latency in latencies),
            settings.seconds * 2 * _WINDOWS if settings.seconds else 0.0,
            facts={
                "p99": moving / calm,
                "p99_without_us": calm,
                "p99_with_us": moving,
                "p50_without_us": percentile(found[False], 50.0) / 1e3,
                "p50_with_us": percentile(found[True], 50.0) / 1e3,
                "due_per_second": rate,
                "moved_bytes_per_second": moved / seconds,
            },
        )


def percentile(found: Sequence[Latency], percent: float) -> float:
    """Of all these latencies together, in nanoseconds."""
    values = np.concatenate([np.array(latency.values, np.float64) for latency in found])
    counts = np.concatenate([np.array(latency.counts, np.int64) for latency in found])
    up = np.argsort(values, kind="stable")
    reached = np.cumsum(counts[up])
    return float(values[up][np.searchsorted(reached, percent / 100 * reached[-1])])


def _cold_files(directory: Path, size: int, each: int) -> str:
    """Tables that no database knows and nobody reads; the pattern of their names."""
    place = directory / "cold"
    place.mkdir()
    for number in range(size // each):
        with (place / f"{number + 1:06}.sst").open("wb") as file:
            file.write(os.urandom(each))
            os.fsync(file.fileno())
    return "cold/*"


@contextmanager
def _migrating(volume: str, pattern: str, tiers: Sequence[str], *, busy: bool) -> Iterator[Callable[[], int]]:
    """Keep files migrating, by pinning them to one tier after the other; a function for the bytes moved so far.

    Not `busy`: wait until nothing migrates.
    """

    def moves() -> dict[str, Any]:
        found: dict[str, Any] = ask(volume, "status")["migrations"]
        return found

    def at_rest() -> bool:
        now = moves()
        return not now["waiting"] and now["current"] is None

    over = threading.Event()
    failed: list[KeigoError] = []

    def push() -> None:
        turn = 0
        try:
            while not over.is_set():
                # Between the slower two, then to the fastest and back: each pair of devices in turn.
                ask(volume, "pin", pattern=pattern, tier=tiers[(-1, 1, -1, 0)[turn % 4]])
                turn += 1
                over.wait(0.5)  # the mover plans twice a second
                while not over.wait(0.2) and not at_rest():
                    pass
        except KeigoError as error:
            failed.append(error)

    limit = time.monotonic() + 30
    while not busy and not at_rest() and time.monotonic() < limit:
        over.wait(0.2)
    thread = threading.Thread(target=push, name="moves", daemon=True)
    if busy:
        thread.start()
    try:
        yield lambda: int(moves()["bytes"])
    finally:
        over.set()
        if busy:
            thread.join()
    if failed:
        raise RunError(f"migrating: {failed[0]}")


def measured(hierarchy: Hierarchy, beside: Path) -> Profile:
    """Profile the devices of a hierarchy as a user would. Raises KeigoError."""
    config = beside.with_suffix(".yaml")
    tiers = [f"  - {{name: {tier.name}, path: {tier.directory}}}" for tier in hierarchy.tiers]
    config.write_text("\n".join([f"volume: {hierarchy.scratch}", "tiers:", *tiers, ""]))
    try:
        keigo("profile", "-d", config, "--quick")
        found = load_profile(profile_path(config))
    finally:
        config.unlink()
        profile_path(config).unlink(missing_ok=True)
    if found is None:
        raise CompareError("keigo profile wrote nothing")
    return found


def write_profile(profile: Profile, hierarchy: Hierarchy, path: Path) -> None:
    """Write a profile of these devices: an emulated one is the same each time it comes up, but for its UUID."""
    devices = {tier.name: device_of(tier.directory) for tier in hierarchy.tiers}
    tiers = tuple(msgspec.structs.replace(tier, device=devices[tier.tier]) for tier in profile.tiers)
    save_profile(path, msgspec.structs.replace(profile, tiers=tiers))
