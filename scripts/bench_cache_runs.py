"""The parts of bench-cache, each on one setup; those that look at single reads are in `bench_cache_hits`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec
from bench_cache_hits import BARE, scan, tenth
from bench_cache_jobs import Bench, job, native
from bench_cache_mounts import filled, mounted_fast
from bench_cache_plan import Part, Todo
from bench_cache_results import Done
from bench_cache_session import INTERVAL, SEED, Session, counts_of
from bench_placement_runs import version

from keigo.errors import KeigoError
from workloads.compare.setups import made
from workloads.compare.tools import environment

_PROCESS: Final = 24 << 20
"""What the benchmark's process and its database take of a memory limit, that the page cache does not get."""
_RESTART: Final = 5.0  # seconds


def run(bench: Bench, todo: Todo) -> Done:
    """Run one. What fails is in the Done; Ctrl-C raises KeyboardInterrupt, with all taken down."""
    began, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    session = Session(bench, todo)
    error = None
    try:
        _PARTS[todo.part](session)
    except KeigoError as failed:
        error = str(failed)
    finally:
        bench.hierarchy.clear()
    took = time.monotonic() - start
    return Done(todo.part, todo.setup, todo.repetition, began, took, version(), session.figures, session.series, error)


def run_bare(todo: Todo, *, quick: bool) -> Done:
    """The same for a part without devices."""
    began, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    given = {
        "64MiB files": ("memory", 2500, 64 << 20),
        "1GiB files": ("memory", 500, 1 << 30),
        "hit": ("micro", 10 if quick else 60),
    }[todo.setup]
    figures: dict[str, float] = {}
    error = None
    command = [sys.executable, str(BARE), *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode == 0:
        figures = msgspec.json.decode(done.stdout, type=dict[str, float])
    else:
        error = f"{BARE.name} {given[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
    return Done(todo.part, todo.setup, todo.repetition, began, time.monotonic() - start, version(), figures, {}, error)


def _full(on: Session) -> None:
    settings, bench = on.settings(on.times.warm_up), on.bench
    match on.todo.setup:
        case "native-fast":
            on.measure(filled(bench.hierarchy.fastest, bench.database("ycsb")), "ycsb-c", settings)
        case "all-fast":
            with mounted_fast(bench.hierarchy, bench.database("ycsb"), bench.profile) as volume:
                on.measure(volume.directory, "ycsb-c", settings)
        case "none":
            with on.mounted(None) as volume:
                on.measure(volume.directory, "ycsb-c", settings)
                volume.check_homes()
        case _:
            with on.mounted(on.sizes.whole) as volume:
                volume.warm()
                on.measure(volume.directory, "ycsb-c", settings)
                volume.check_homes()
                on.note_cache(volume)


def _mixed(on: Session) -> None:
    what, how = on.todo.setup.split("/")
    workload, database = (what, what) if what == "mixgraph" else (f"ycsb-{what}", "ycsb")
    settings, room = on.settings(on.times.filling), on.sizes.share(4)
    if how == "page-cache":
        directory = filled(on.bench.hierarchy.slowest, on.bench.database(database))
        limited = msgspec.structs.replace(settings, memory=room + _PROCESS)
        on.measure(directory, workload, limited, direct=False)
        return
    with on.mounted(room if how == "cache" else None, database) as volume:
        if how == "cache":
            on.settle(volume, workload, on.times.filling)
            settings = on.settings(on.times.warm_up)
        on.measure(volume.directory, workload, settings)
        volume.check_homes()
        if how == "cache":
            on.note_cache(volume)


def _native(on: Session) -> None:
    """All three caches on one copy: it is too large to be copied for each."""
    what, room = on.todo.setup, on.sizes.native.share(4)
    with on.mounted(room, f"native-{what}") as volume:
        on.bench.drop(f"native-{what}")
        _native_rate(on, volume.directory, {})
        volume.rest()
        on.figures["rate"] = _native_rate(on, volume.directory, {})
        volume.check_homes()
        on.note_cache(volume)
        volume.drain()
    # The directory that was mounted over is the database again, as an ordinary one.
    place = made(on.bench.hierarchy.fastest, "read-cache")
    flags = {"none": {}, "rocksdb": {"read_cache_path": str(place), "read_cache_size": str(room)}}
    for name, more in flags.items():
        rate = _native_rate(on, volume.directory, more)
        on.figures |= {f"rate_{name}": rate, f"to_{name}": on.figures["rate"] / rate}


def _native_rate(on: Session, directory: Path, flags: dict[str, str]) -> float:
    """Operations per second, of the last of it: db_bench has no warm-up."""
    seconds = round(on.times.filling + on.times.seconds)
    counts = native(on.sizes, directory, on.todo.setup, seconds, seed=SEED + on.todo.repetition, flags=flags)
    return statistics.fmean(counts[-max(1, round(on.times.seconds)) :])


def _restart(on: Session) -> None:
    with on.mounted(on.sizes.whole) as volume:
        volume.warm()
        warm = on.measure(volume.directory, "ycsb-c", on.settings(on.times.warm_up)).throughput
        if on.todo.setup == "clean":
            volume.umount()
        else:
            volume.kill()
        volume.mount()
        on.figures["unverified"] = float(volume.status()["unverified"])
        began = job(on.bench, volume.directory, "ycsb-c", on.settings(0.0, _RESTART))
        on.note_cache(volume)
    rates = [count / INTERVAL for count in counts_of(began)[: round(_RESTART / INTERVAL)]]
    on.series["rates_after"] = rates
    last = rates[-round(1 / INTERVAL) :]  # the fifth second
    on.figures |= {"warm": warm, "mean": began.throughput / warm, "within": statistics.fmean(last) / warm}


_PARTS: Final[Mapping[Part, Callable[[Session], None]]] = MappingProxyType(
    {"full": _full, "tenth": tenth, "mixed": _mixed, "native": _native, "restart": _restart, "scan": scan}
)
