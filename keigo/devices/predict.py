"""How many operations a second a database does on given devices, and what stops it from doing more.

An operation of the mix causes requests (`Demand`): n requests of x bytes at device d, made by threads that wait for
them. With X operations a second, Little's law (Little, 1961) gives the requests under way at a device,

    k(d) = X sum n T(d, k(d), x)

with T the MQSSD model's time of a request among k (reads beside k writes, and so on): foreground readers, flushes and
compactions share a device. A pool of threads is full when

    load(pool) = X sum n T(d, k(d), x) weight = 1

with a weight of 1 / threads for each thread that waits. The throughput is the X at which the first pool is full, the k
being those of this X: a fixed point, found by iteration. No device can be above 100% there, for k / T(d, k, x) is what
it does at k. (The combination is ours; it is the usual one for closed queueing networks: Lazowska et al.,
"Quantitative System Performance", 1984.)

What the pools are follows RocksDB: `demands` says which.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from keigo.devices.lsm_costs import FILE_REQUESTS, Tree, cycle_of, levels, runs, shares, stream_time, traffic
from keigo.devices.model import SMALL_BLOCK, DeviceModel
from keigo.devices.profile import Direction

STREAM: Final = 1 << 20
"""Bytes of a request of compaction: RocksDB's writable_file_max_buffer_size; its readahead is 2 MiB of direct reads."""

READ_CPU: Final = 4.5e-6
WRITE_CPU: Final = 3.2e-6
COMPACTION_CPU: Final = 4e-9
"""CPU seconds of a lookup, of a Put, and of compaction for each byte read: db_bench of RocksDB 7.8.3 on ext4 in the
page cache did 221 k readrandom/s and 310 k fillrandom/s with one thread (values of 400 bytes)."""

_ITERATIONS: Final = 40
_CONVERGED: Final = 5e-3


class Weight(NamedTuple):
    """A pool of threads that a request occupies."""

    pool: str
    share: float
    """Of the pool for each second: 1 / threads."""


class Demand(NamedTuple):
    """Requests of an operation at a device."""

    device: str
    direction: Direction
    stream: bool
    """Sequential, else random."""
    block_bytes: float
    requests: float
    weights: tuple[Weight, ...]


class Work(NamedTuple):
    """Time of an operation that no device takes: CPU."""

    seconds: float
    weights: tuple[Weight, ...]


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """A device at the predicted throughput."""

    read_k: float
    """Requests under way, on average."""
    write_k: float
    read_busy: float
    """Share of what it does at its best number of requests."""
    write_busy: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a configuration does."""

    rate: float
    """Operations per second."""
    bottleneck: str
    """The pool that is full, and where its threads are."""
    pools: Mapping[str, float]
    """Share of each that is occupied; the highest is 1."""
    devices: Mapping[str, DeviceLoad]


class _Solution(NamedTuple):
    """The fixed point."""

    rate: float
    ks: Mapping[tuple[str, Direction], float]
    times: Sequence[float]
    """Seconds of a request of each demand."""
    loads: Mapping[str, float]
    """Seconds of each pool for one operation."""


class Throughput(NamedTuple):
    """How much, and which pool is full."""

    rate: float
    """Operations per second."""
    full: str


def throughput(demands: Sequence[Demand], work: Sequence[Work], models: Mapping[str, DeviceModel]) -> Throughput:
    """Operations per second: see the module. Raises ValueError where nothing is demanded."""
    found = _solve(demands, work, models)
    return Throughput(found.rate, max(found.loads, key=lambda pool: found.loads[pool]))


def predict(demands: Sequence[Demand], work: Sequence[Work], models: Mapping[str, DeviceModel]) -> Prediction:
    """The throughput, and what goes with it. Raises ValueError where nothing is demanded."""
    rate, ks, times, loads = _solve(demands, work, models)
    pools = {pool: rate * load for pool, load in loads.items()}
    devices = {name: _device_load(name, demands, models[name], ks, rate) for name in models}
    return Prediction(rate, _bottleneck(demands, work, times, pools), pools, devices)


def _solve(demands: Sequence[Demand], work: Sequence[Work], models: Mapping[str, DeviceModel]) -> _Solution:
    if not demands and not work:
        raise ValueError("an operation that demands nothing has no throughput")
    ks: dict[tuple[str, Direction], float] = defaultdict(float)
    rate = 0.0
    for _ in range(_ITERATIONS):
        times = _times(demands, models, ks)
        loads = _loads(demands, work, times)
        before, rate = rate, 1 / max(loads.values())
        found: dict[tuple[str, Direction], float] = defaultdict(float)
        for demand, seconds in zip(demands, times, strict=True):
            found[demand.device, demand.direction] += rate * demand.requests * seconds
        steady = all(abs(k - ks[key]) <= _CONVERGED * max(1.0, k) for key, k in found.items())
        # Half of the step: the whole one swings where the time grows with k.
        ks = defaultdict(float, {key: (ks[key] + k) / 2 for key, k in found.items()})
        if steady and abs(rate - before) <= _CONVERGED * rate:
            break
    return _Solution(rate, ks, times, loads)


def _times(
    demands: Sequence[Demand], models: Mapping[str, DeviceModel], ks: Mapping[tuple[str, Direction], float]
) -> list[float]:
    """T of each demand; many are alike."""
    known: dict[tuple[str, Direction, bool, float], float] = {}
    times = []
    for device, direction, stream, block_bytes, _, _ in demands:
        key = (device, direction, stream, block_bytes)
        if key not in known:
            other: Direction = "write" if direction == "read" else "read"
            k, beside = ks.get((device, direction), 0.0), ks.get((device, other), 0.0)
            if stream:
                known[key] = stream_time(models[device], direction, k, block_bytes, beside)
            else:
                known[key] = models[device].request_time(direction, k, block_bytes, beside=beside)
        times.append(known[key])
    return times


def _loads(demands: Sequence[Demand], work: Sequence[Work], times: Sequence[float]) -> dict[str, float]:
    """Seconds of each pool for one operation."""
    loads: dict[str, float] = defaultdict(float)
    for demand, seconds in zip(demands, times, strict=True):
        for pool, share in demand.weights:
            loads[pool] += demand.requests * seconds * share
    for spent, weights in work:
        for pool, share in weights:
            loads[pool] += spent * share
    return loads


def _bottleneck(
    demands: Sequence[Demand], work: Sequence[Work], times: Sequence[float], pools: Mapping[str, float]
) -> str:
    full = max(pools, key=lambda pool: pools[pool])
    places: dict[str, float] = defaultdict(float)
    for demand, seconds in zip(demands, times, strict=True):
        share = sum(weight.share for weight in demand.weights if weight.pool == full)
        places[f"{demand.device} {demand.direction}s"] += demand.requests * seconds * share
    for spent, weights in work:
        places["CPU"] += sum(spent * weight.share for weight in weights if weight.pool == full)
    where = max(places, key=lambda place: places[place])
    return full if where == full else f"{full}: {places[where] / sum(places.values()):.0%} of their time in {where}"


def _device_load(
    name: str,
    demands: Sequence[Demand],
    model: DeviceModel,
    ks: Mapping[tuple[str, Direction], float],
    rate: float,
) -> DeviceLoad:
    busy: dict[Direction, float] = {"read": 0.0, "write": 0.0}
    for demand in demands:
        if demand.device == name:
            best = min(
                stream_time(model, demand.direction, k, demand.block_bytes) / k
                if demand.stream
                else model.request_time(demand.direction, k, demand.block_bytes) / k
                for k in model.cost(demand.direction).ks
            )
            busy[demand.direction] += rate * demand.requests * best
    return DeviceLoad(ks[name, "read"], ks[name, "write"], busy["read"], busy["write"])


@dataclass(frozen=True, slots=True)
class Mix:
    """What the foreground does: shares of operations, which add up to 1 with the writes."""

    reads: float
    scans: float
    threads: int
    scan_results: float = 100
    """Entries that a scan returns."""
    false_positives: float = 0.01
    """Of the tables' filters: 10 bits a key."""
    block_bytes: float = SMALL_BLOCK
    cpus: int = 2

    @property
    def writes(self) -> float:
        """Share of operations that write an entry."""
        return max(0.0, 1 - self.reads - self.scans)


@dataclass(frozen=True, slots=True)
class Threads:
    """Background threads of RocksDB."""

    compactions: int
    """At once; a job has `subcompactions` threads at level 0, and everywhere in universal compaction."""
    subcompactions: int
    flushes: int = 1

    @property
    def jobs(self) -> int:
        """The least max_background_jobs of which RocksDB gives compactions so many: it takes a quarter for flushes."""
        return next(jobs for jobs in range(2, 64) if jobs - max(1, jobs // 4) >= self.compactions)


@dataclass(frozen=True, slots=True)
class Hits:
    """Shares of block reads that caches serve."""

    memory: float = 0.0
    cache: float = 0.0
    """Of the blocks whose level is on a slower tier than the cache."""
    cache_device: str | None = None
    slower: frozenset[str] = frozenset()
    """Devices in front of which the cache is."""


FOREGROUND: Final = "foreground threads"
CPU: Final = "CPU"


def demands_of(
    tree: Tree, placement: Sequence[str], log: str, mix: Mix, threads: Threads, hits: Hits
) -> tuple[list[Demand], list[Work]]:
    """What one operation of the mix demands, with the device of each level from 0, and of the log.

    Pools: `foreground threads` wait for the blocks of lookups and scans. `flush threads` write level 0. The log is
    written back by the kernel, one request at a time, and nobody waits (no sync). `compaction threads` are the
    jobs. A tree of levels also merges into levels 1 and 2 `at levels 0 to 2` one after the other: level 0's files span
    all keys, so a job from it takes all of level 1, and only its subcompactions and not other jobs help (RocksDB's
    picker). A universal tree's full compactions are one job likewise.
    """
    reading = _reading(tree, placement, mix, hits)
    writing = _writing(tree, placement, log, mix, threads)
    moved = math.fsum(level.read for level in traffic(tree)) * mix.writes * tree.entry_bytes
    cpu = Weight(CPU, 1 / mix.cpus)
    foreground = Weight(FOREGROUND, 1 / mix.threads)
    spent = (mix.reads + mix.scans) * READ_CPU + mix.writes * WRITE_CPU
    return [*reading, *writing], [Work(spent, (cpu, foreground)), Work(moved * COMPACTION_CPU, (cpu,))]


def _reading(tree: Tree, placement: Sequence[str], mix: Mix, hits: Hits) -> list[Demand]:
    """As `lsm_costs.lookup` and `lsm_costs.scan`, request by request, with caches in front."""
    weights = (Weight(FOREGROUND, 1 / mix.threads),)
    blocks: dict[str, float] = defaultdict(float)
    streamed: dict[str, float] = defaultdict(float)
    reached = 1.0
    for device, share, size, count in zip(placement, shares(tree), levels(tree), runs(tree), strict=True):
        wanted = share * (1 + mix.false_positives * max(0.0, count - 1) / 2)
        wanted += max(0.0, reached - share) * mix.false_positives * count
        reached -= share
        needed = (mix.reads * wanted + mix.scans * count) * (1 - hits.memory)
        scanned = mix.scan_results * tree.entry_bytes * size / tree.data_bytes
        more = max(0.0, scanned - count * mix.block_bytes)
        cached = hits.cache if device in hits.slower else 0.0
        blocks[device] += needed * (1 - cached)
        if cached and hits.cache_device is not None:
            blocks[hits.cache_device] += needed * cached
        streamed[device] += mix.scans * more / STREAM
    found = [Demand(device, "read", False, mix.block_bytes, count, weights) for device, count in blocks.items()]
    found += [Demand(device, "read", True, STREAM, count, weights) for device, count in streamed.items()]
    return [demand for demand in found if demand.requests > 0]


def _writing(tree: Tree, placement: Sequence[str], log: str, mix: Mix, threads: Threads) -> list[Demand]:
    """As `lsm_costs.ingest`, request by request."""
    written = mix.writes * tree.entry_bytes
    if not written:
        return []
    found = [Demand(log, "write", True, STREAM, written / STREAM, (Weight("log", 1.0),))]
    found += _stream(placement[0], "write", written, tree, (Weight("flush threads", 1 / threads.flushes),))
    for level, direction, moved, weights in _merges(tree, threads):
        found += _stream(placement[level], direction, written * moved, tree, weights)
    return found


def _merges(tree: Tree, threads: Threads) -> Iterable[tuple[int, Direction, float, tuple[Weight, ...]]]:
    """(level, direction, bytes for each byte ingested, who waits) of all compactions."""
    moved = traffic(tree)
    wide = threads.compactions * threads.subcompactions
    if tree.style == "universal":
        full = cycle_of(tree).full / math.fsum(level.written for level in moved)
        one = Weight("full compactions", full / threads.subcompactions)
        for level, here in enumerate(moved):
            yield level, "read", here.read, (Weight("compaction threads", 1 / wide), one)
            yield level, "write", here.written - (level == 0), (Weight("compaction threads", 1 / wide), one)
        return
    for level, here in enumerate(moved[1:], 1):
        if level == 1:
            at_top = Weight("compaction at levels 0 to 2", 1 / threads.subcompactions)
            weights: tuple[Weight, ...] = (Weight("compaction threads", 1 / wide), at_top)
        else:
            jobs = Weight("compaction threads", 1 / threads.compactions)
            weights = (jobs, Weight("compaction at levels 0 to 2", jobs.share)) if level == 2 else (jobs,)
        yield level - 1, "read", moved[level - 1].read - (moved[level - 1].written - 1), weights
        yield level, "read", here.written - 1, weights
        yield level, "write", here.written, weights


def _stream(device: str, direction: Direction, moved: float, tree: Tree, weights: tuple[Weight, ...]) -> list[Demand]:
    """Bytes in large requests, and some small ones for each file."""
    if moved <= 0:
        return []
    block = min(STREAM, tree.file_bytes)
    return [
        Demand(device, direction, True, block, moved / block, weights),
        Demand(device, direction, False, SMALL_BLOCK, FILE_REQUESTS[direction] * moved / tree.file_bytes, weights),
    ]
