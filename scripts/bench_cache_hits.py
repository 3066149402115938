"""The parts of bench-cache that look at single reads: a cache of a tenth, and a scan in the middle of C."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import bench_cache_optimum as optimum
import bench_cache_trace as trace
import msgspec
import numpy as np
from bench_cache_jobs import Bench, job
from bench_cache_mounts import Mounted, Sample, hit_ratio, sampled
from bench_cache_plan import CHUNK, SLOW
from bench_cache_results import near, seconds_until
from bench_cache_session import Session
from numpy.typing import NDArray

from keigo.devices.profile import load_profile
from workloads.compare.job import Settings
from workloads.compare.tools import CompareError, environment
from workloads.compare.worker import Began

BARE: Final = Path(__file__).with_name("bench_cache_bare.py")
_REFERENCE_SEED: Final = 1000
_REFERENCE: Final = 400_000
"""Operations of another seed from which the probability of each chunk is reckoned."""
_SAMPLED: Final = ("at", "foreground", "hits", "used", "filled", "evicted")
_SECOND: Final = 1.0
_COUNTED: Final = 2.0  # seconds after which the daemon has counted what was read before


@dataclass(frozen=True, slots=True)
class Reference:
    """How likely each chunk and each file is to be read, from many reads of another seed."""

    layout: trace.Layout
    chunks: optimum.Numbers
    """How often each was read."""
    files: optimum.Numbers

    @classmethod
    def of(cls, bench: Bench, *, blocks: bool) -> Reference:
        """A run in memory, where it takes seconds, with the same block cache, or none. Raises KeigoError."""
        directory, path = bench.database("ycsb"), bench.memory / "reference"
        settings = Settings(operations=_REFERENCE, warm_up=1.0, seed=_REFERENCE_SEED)
        with trace.traced(bench.library, path):
            job(bench, directory, "ycsb-c", settings, direct=False, blocks=blocks)
        layout = trace.layout_of(directory, CHUNK)
        found = trace.touched(trace.load(path), trace.inodes_of(directory), layout)
        path.unlink()
        chunks = optimum.counts_of(found.first, found.last, int(layout.starts[-1]))
        return cls(layout, chunks, optimum.counts_of(found.file, found.file, len(layout.names)))


def tenth(on: Session) -> None:
    """The part `tenth`. Raises KeigoError."""
    if on.todo.setup == "none":
        with on.mounted(None) as volume:
            on.measure(volume.directory, "ycsb-c", on.settings(on.times.warm_up))
        return
    blocks = on.todo.setup != "no-blocks"
    room, reference = on.sizes.share(10), Reference.of(on.bench, blocks=blocks)
    if on.todo.setup == "whole-files":
        best = optimum.hottest(reference.files, reference.layout.sizes, room)
        names = [reference.layout.names[number] for number in sorted(best)]
        with on.mounted(None) as volume:
            volume.pin(names)
            on.measure(volume.directory, "ycsb-c", on.settings(on.times.warm_up))
            volume.check_homes(frozenset(names))
        on.figures["files"] = float(len(names))
        return
    with on.mounted(room) as volume, sampled(volume) as samples:
        on.settle(volume, "ycsb-c", on.times.settling, rounds=2, blocks=blocks)
        found, window = _traced(on, volume, on.settings(on.times.seconds, on.times.window), blocks=blocks)
        on.note_cache(volume)
    note_samples(on, samples)
    ratio, begin, end = hit_ratio(samples, *window)
    on.figures |= compared(reference, room, found, begin, end)
    inside = found.between(begin, end)
    on.figures |= {
        "hit_ratio": ratio,
        "to_static": ratio / on.figures["static"],
        "hit_ratio_by_latency": float((inside.took < slow_read(on.bench.profile)).mean()),
    }


def compared(reference: Reference, room: int, found: trace.Touched, begin: float, end: float) -> dict[str, float]:
    """Hit ratios that other caches of `room` bytes would have had between two moments.

    static: the chunks that are likeliest to be read; hindsight: those that were read most; belady: MIN, warm like ours;
    whole_files: the likeliest files.
    """
    layout, inside = reference.layout, found.between(begin, end)
    pieces = int(layout.starts[-1])
    hot = optimum.hottest(reference.chunks, layout.chunk_sizes(), room)
    after = optimum.hottest(optimum.counts_of(inside.first, inside.last, pieces), layout.chunk_sizes(), room)
    files = optimum.hottest(reference.files, layout.sizes, room)
    since, until = (int((found.when < moment).sum()) for moment in (begin, end))
    first, last = found.first[:until].tolist(), found.last[:until].tolist()
    return {
        "static": optimum.static_ratio(inside.first, inside.last, hot),
        "hindsight": optimum.static_ratio(inside.first, inside.last, after),
        "whole_files": optimum.static_ratio(inside.file, inside.file, files),
        "belady": optimum.belady_ratio(first, last, room // CHUNK, since),
        "places": float(room // CHUNK),
        "pieces": float(pieces),
        "reads": float(until - since),
    }


def slow_read(profile: Path | None) -> float:
    """Seconds from which on a read was served by the slow device: half of what it takes where nobody else reads."""
    found = None if profile is None else load_profile(profile)
    if found is None:
        return 1e-3
    (model,) = [tier.model for tier in found.tiers if tier.tier == SLOW]
    return model.random_read.setup[0] / 2


def _traced(
    on: Session, volume: Mounted, settings: Settings, scanner: Scanner | None = None, *, blocks: bool = True
) -> tuple[trace.Touched, tuple[float, float]]:
    """Run C, and note its reads; the reads, and between which moments it was measured."""
    path = on.bench.memory / "trace"
    began = [0.0]

    def heard(event: Any) -> None:  # noqa: ANN401
        if isinstance(event, Began) and event.what == "run":
            began[0] = event.at
            if scanner is not None:
                scanner.start()

    with trace.traced(on.bench.library, path):
        phase = on.measure(volume.directory, "ycsb-c", settings, blocks=blocks, heard=heard)
    layout = trace.layout_of(volume.directory, CHUNK)
    found = trace.touched(trace.load(path), trace.inodes_of(volume.directory), layout)
    path.unlink()
    begin = began[0] + settings.warm_up
    return found, (begin, begin + phase.seconds)


def note_samples(on: Session, samples: Sequence[Sample]) -> None:
    """Keep them in the results."""
    on.series |= {name: [float(getattr(sample, name)) for sample in samples] for name in _SAMPLED}


def scan(on: Session) -> None:
    """The part `scan`. Raises KeigoError."""
    settings = on.settings(on.times.warm_up, 6 * on.times.seconds)
    calm = 2 * on.times.seconds  # before the scan
    with on.mounted(on.sizes.share(4)) as volume, sampled(volume) as samples:
        on.settle(volume, "ycsb-c", on.times.settling, rounds=2)
        scanner = Scanner(volume.directory, settings.warm_up + calm)
        try:
            found, _ = _traced(on, volume, settings, scanner)
        finally:
            scanner.end()
        told = scanner.told()
        on.note_cache(volume)
    note_samples(on, samples)
    begin, end = told["began"], told["ended"]
    # Hits of the reader alone, by how long its reads took: the daemon counts the scanner's, too.
    fast = found.took < slow_read(on.bench.profile)
    at, ratios = ratios_by_second(found.when, fast, begin - calm)
    on.series |= {"seconds": [moment - begin for moment in at], "hit_ratio": ratios}
    hot = float(fast[(found.when >= begin - calm) & (found.when < begin)].mean())
    during, after = fast[(found.when >= begin) & (found.when < end)], fast[found.when >= end]
    if not len(after):
        raise CompareError("the scan was not over before the run")
    on.figures |= {
        "before": hot,
        "during": float(during.mean()) if len(during) else 0.0,
        "after_to_before": float(after.mean()) / hot,
        "scan_seconds": end - begin,
        "scanned": told["records"],
        "recovered": seconds_until(at, ratios, end, near(hot)),
        "before_by_status": hit_ratio(samples, begin - calm, begin)[0],
        "after_by_status": hit_ratio(samples, end + _COUNTED, float("inf"))[0],
    }


def ratios_by_second(
    when: NDArray[np.float64], hits: NDArray[np.bool_], begin: float
) -> tuple[list[float], list[float]]:
    """Share of hits among the reads of each whole second from `begin` on; the middles of the seconds, and the shares.

    Seconds without a read are left out.
    """
    at, ratios = list[float](), list[float]()
    while len(when) and begin + _SECOND <= when[-1]:
        inside = (when >= begin) & (when < begin + _SECOND)
        if inside.any():
            at.append(begin + _SECOND / 2)
            ratios.append(float(hits[inside].mean()))
        begin += _SECOND
    return at, ratios


class Scanner:
    """Scans a database once, in another process, some time after it was started."""

    def __init__(self, directory: Path, after: float) -> None:
        self._command = [sys.executable, str(BARE), "scan", str(directory)]
        self._environment = environment()
        self._after = after
        self._over = threading.Event()
        self._lock = threading.Lock()  # of `_process`, against an end while it is being started
        self._thread = threading.Thread(target=self._run, name="scan", daemon=True)
        self._process: subprocess.Popen[str] | None = None
        self._told = "it was not over in time"

    def start(self) -> None:
        """Begin to wait."""
        self._thread.start()

    def _run(self) -> None:
        self._over.wait(self._after)
        with self._lock:
            if self._over.is_set():
                return
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                self._command, stdout=pipe, stderr=pipe, text=True, env=self._environment, start_new_session=True
            )
        out, complaints = self._process.communicate()
        self._told = complaints or out if self._process.returncode else out

    def end(self) -> None:
        """Have it over: a scan that is under way is ended."""
        self._over.set()
        with self._lock:
            process = self._process
        if process is not None and process.poll() is None:
            process.kill()
        if self._thread.ident is not None:
            self._thread.join()

    def told(self) -> dict[str, float]:
        """What the scan found. Raises CompareError."""
        try:
            return msgspec.json.decode(self._told, type=dict[str, float])
        except msgspec.DecodeError:
            raise CompareError(f"the scan failed: {self._told.strip()[-300:]}") from None
