"""What an LSM tree's operations cost on devices that the MQSSD model describes, level by level.

How many bytes and blocks an operation moves at each level is known from the literature on LSM trees; how long a device
takes for them, with k threads at it, is the MQSSD model's. Both are put together here:

    seconds of an operation = sum over levels and kinds of request of  requests x T(k, size of a request)

by the device that holds the level, so that levels may lie on different tiers. Seconds are those of one thread among k,
so k threads do `k / seconds` operations a second.

Sources: the tree, and merging by levels, O'Neil et al., "The Log-Structured Merge-Tree", Acta Informatica 33, 1996;
leveling and tiering, and what lookups read behind Bloom filters, Dayan et al., "Monkey: Optimal Navigable Key-Value
Store", SIGMOD 2017; scans, Dayan and Idreos, "Dostoevsky", SIGMOD 2018; T(k, x), MQSSD, arXiv 2507.06349. Of the last
we know the abstract only: costs per operation, time averages in place of worst cases, and constants are ours where
a docstring says so. Pure functions of plain data; no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from keigo.devices import universal
from keigo.devices.model import SMALL_BLOCK, DeviceModel

Direction = Literal["read", "write"]
Style = Literal["leveled", "tiered", "universal"]
"""Universal is RocksDB's kind of tiering, as `universal` plays it through."""

FILE_REQUESTS: Final[Mapping[Direction, int]] = {"read": 2, "write": 5}
"""Small random requests that a table file costs beside its bytes: footer and index are read; file, directory and
MANIFEST are synced. strace of RocksDB 7.8.3 (direct I/O, 75 tables) counted 1.3 to 2 small reads, and 1.7 fsync and 0.7
fdatasync a table, each two writes of ext4's journal, one after the other."""

WAL: Final = -1
"""In place of a level: the write-ahead log."""


INGEST: Final[Mapping[Style, tuple[str, str]]] = {
    "leveled": (
        "leveled ingest: (T + 1) / 2 writes per level",
        "O'Neil 1996, Monkey (SIGMOD'17) leveling x MQSSD T(k, x)",
    ),
    "tiered": ("tiered ingest: 1 write per level", "Monkey (SIGMOD'17) tiering x MQSSD T(k, x)"),
    "universal": ("universal ingest: RocksDB's picker played through", "ours x MQSSD T(k, x)"),
}
"""Style -> formula of `ingest`, and its source."""


@dataclass(frozen=True)
class Tree:
    """The shape of an LSM tree."""

    data_bytes: float
    """All of it, on all levels. Universal: of the live entries; older versions come on top."""
    entry_bytes: float
    file_bytes: float
    """Of a table file."""
    growth: float
    """T: how many times larger a level is than the one above. Tiered: how many runs a level gathers before a merge.
    Universal: of no effect."""
    level0_bytes: float
    """What level 0 gathers before it is compacted: its trigger times the memtable."""
    level0_runs: int = 4
    """Files of level 0 at which it is compacted. Universal: runs of the whole tree from which on it merges."""
    level1_bytes: float | None = None
    """Leveled: the target of level 1, if it is not that of level 0, as RocksDB recommends."""
    style: Style = "leveled"
    level_count: int = 7
    """Universal: levels there are, RocksDB's num_levels."""
    level0_late: int = 1
    """Flushes after which a merge begins that is due: more than 1 where merges are the bottleneck, for then they wait.
    Leveled: level 0 has `level0_late` - 1 runs more, and level 1 grows beyond its target until it is as large."""

    def __post_init__(self) -> None:
        sizes = (self.data_bytes, self.entry_bytes, self.file_bytes, self.level0_bytes, self.level1_bytes or 1)
        if not all(math.isfinite(size) and size > 0 for size in sizes):
            raise ValueError("a size of a tree is not above 0")
        if not (math.isfinite(self.growth) and self.growth > 1):
            raise ValueError(f"growth {self.growth}: must be above 1")
        for name, count in (("level0_runs", self.level0_runs), ("level0_late", self.level0_late)):
            if count < 1:
                raise ValueError(f"{name} {count}: must be at least 1")


@dataclass(frozen=True)
class Load:
    """How requests come to the devices."""

    threads: float = 1
    """k: threads at the operation in question. Compaction: jobs times subcompactions."""
    beside: float = 0
    """Requests of the other direction under way at the same devices."""
    block_bytes: float = 4096
    """A block of a table: what a lookup reads."""
    stream_bytes: float = 1 << 20
    """A request of compaction or of a long scan: RocksDB's writable_file_max_buffer_size, readahead size."""

    def __post_init__(self) -> None:
        if not (self.threads > 0 and self.beside >= 0 and self.block_bytes > 0 and self.stream_bytes > 0):
            raise ValueError("threads and sizes of requests must be above 0")


@dataclass(frozen=True)
class Traffic:
    """Bytes at one level for each byte ingested."""

    read: float
    written: float


@dataclass(frozen=True)
class LevelCost:
    """What one operation takes at one level."""

    level: int
    """WAL for the log."""
    read_bytes: float
    written_bytes: float
    seconds: float


@dataclass(frozen=True)
class Cost:
    """What one operation takes, and by which formula."""

    formula: str
    source: str
    threads: float
    levels: tuple[LevelCost, ...]

    @property
    def seconds(self) -> float:
        """Device time of one operation of one thread among `threads`, over all levels."""
        return math.fsum(level.seconds for level in self.levels)

    @property
    def rate(self) -> float:
        """Operations per second of all threads together, devices being all that they wait for."""
        return self.threads / self.seconds if self.seconds > 0 else math.inf


def levels(tree: Tree) -> tuple[float, ...]:
    """Bytes of each level from 0: the upper ones full, the last one the rest.

    Leveled: level 1 as level 0 (or `level1_bytes`), then T times more each. Tiered: T times more each from level 0 on.
    The rest goes to a new level only where it is more than the target of the last. Universal: time averages.
    """
    if tree.style == "universal":
        return tuple(share * tree.data_bytes for share in cycle_of(tree).mean)
    sizes = [min(tree.level0_bytes, tree.data_bytes)]
    rest = tree.data_bytes - sizes[0]
    first = tree.growth * tree.level0_bytes if tree.style == "tiered" else tree.level0_bytes
    target = tree.level1_bytes if tree.style == "leveled" and tree.level1_bytes else first
    while rest > 0:
        sizes.append(min(rest, target))
        rest -= sizes[-1]
        target *= tree.growth
    return tuple(sizes)


def cycle_of(tree: Tree) -> universal.Cycle:
    """What universal compaction does with this tree, whatever its style."""
    memtables = tree.data_bytes / tree.level0_bytes * tree.level0_runs
    return universal.cycle(memtables, tree.level0_runs, tree.level_count, tree.level0_late)


def shares(tree: Tree) -> tuple[float, ...]:
    """Share of all keys that a lookup finds at each level: a level's share of the data, as every key is on one level.

    Universal: keys are on several levels, and found in the newest run that has them.
    """
    if tree.style == "universal":
        return cycle_of(tree).found
    return tuple(size / tree.data_bytes for size in levels(tree))


def runs(tree: Tree) -> tuple[float, ...]:
    """Sorted runs of each level, averaged over time; a run is what a lookup or scan has to look into.

    Leveled: one each, and at level 0 (trigger + late) / 2 files. Tiered: a level gathers 0 to T - 1 runs, the last 1 to
    T - 1, of which the means are (T - 1) / 2 and T / 2. Monkey counts the worst case, T - 1; the means are ours.
    """
    if tree.style == "universal":
        return cycle_of(tree).runs
    count = len(levels(tree))
    level0 = (tree.level0_runs + tree.level0_late) / 2
    if tree.style == "leveled":
        return (level0, *[1.0] * (count - 1))
    if count == 1:
        return (level0,)
    return (level0, *[(tree.growth - 1) / 2] * (count - 2), tree.growth / 2)


def traffic(tree: Tree) -> tuple[Traffic, ...]:
    """Bytes read and written at each level for each byte ingested, log not included.

    Every byte is written once at level 0 and read there to be merged into level 1, and so on.

    Tiered: no more than that (Monkey: (T - 1) / T a level, for one merge in T goes a level further at once).
    Leveled: with each byte come bytes of the level that it goes to, read and written again. Level 0's files span all
    keys, so all of level 1 is: size(1) / size(0) for each byte. Further down it is (ratio - 1) / 2, with the ratio of
    the two levels' sizes, so (T + 1) / 2 bytes are written for each, Monkey's (T - 1) / 2 and the byte itself: a level
    is between empty and full, and RocksDB takes the files with the least overlap first. RocksDB 7.8.3's own count, in
    fillrandom of 0.9 GB: 1.5, 2.0 and 2.6 at level 2 with ratios of 2, 4 and 6.5 (growth 2, 4, 10; the last still
    growing), and 2.0..2.1 at level 1 of level 0's size. A tree whose merges are late has larger upper levels, and so
    smaller ratios: db_bench 7.8.3 overwriting 96 MB on an emulated NVMe device, writes stopped at 12 files of level 0,
    wrote 5.8, 5.1, 4.9..5.8 and 5.0 bytes for each byte flushed with growth 2, 4, 8 and 16; this says 7.0, 5.8, 5.3 and
    6.5 with 9 late, and 8.5, 7.8, 8.7 and 12.5 with none late.
    """
    if tree.style == "universal":
        played = cycle_of(tree)
        return tuple(Traffic(*moved) for moved in zip(played.read, played.written, strict=True))
    sizes = levels(tree)
    found = []
    above = sizes[0] * (1 + (tree.level0_late - 1) / tree.level0_runs)
    for level, size in enumerate(sizes):
        again = 0.0
        if level and tree.style == "leveled":
            again = size / above if level == 1 else max(0.0, size / above - 1) / 2
            # Only a level that was reached grows beyond its target; the last one has what there is.
            above = max(size, above) if tree.level0_late > 1 else size
        moves_on = level + 1 < len(sizes)
        found.append(Traffic(read=again + moves_on, written=1 + again))
    return tuple(found)


def write_amplification(tree: Tree) -> float:
    """Bytes written to devices for each byte ingested, log not included."""
    return math.fsum(level.written for level in traffic(tree))


def ingest(tree: Tree, devices: Mapping[int, DeviceModel], load: Load) -> Cost:
    """Flush and compaction of one ingested byte.

        sum over levels of  written T_w(k, stream) / stream + read T_r(k, stream) / stream
                            + (5 written T_w(k, 4 KiB) + 2 read T_r(k, 4 KiB)) / file

    with sequential T of the level's device and k = `load.threads` (ours: all of them at each device that holds a
    level). The last term is ours: see FILE_REQUESTS.
    `devices[WAL]`, if given, adds a byte written to the log by one thread.
    """
    found = []
    if WAL in devices:
        logged = stream_time(devices[WAL], "write", 1, load.stream_bytes, load.beside)
        # The log's writer is not one of the threads, among which `rate` shares the work out.
        found.append(LevelCost(WAL, 0, 1, logged / load.stream_bytes * load.threads))
    for level, moved in enumerate(traffic(tree)):
        device = device_of(devices, level)
        read = _streamed(device, "read", moved.read, tree, load)
        written = _streamed(device, "write", moved.written, tree, load)
        found.append(LevelCost(level, moved.read, moved.written, read + written))
    formula, source = INGEST[tree.style]
    return Cost(formula, source, load.threads, tuple(found))


def lookup(
    tree: Tree,
    devices: Mapping[int, DeviceModel],
    load: Load,
    *,
    false_positives: float = 0.01,
    cached: float = 0.0,
    found: float = 1.0,
) -> Cost:
    """A point lookup: blocks read at each level, times (1 - cached) T_r(k, block), random.

    A key lies on a level with the level's share of the data, and `found` of all keys looked for exist. Level i with
    r runs is reached by the lookups that found nothing above; those that find their key there read it, and a false
    block in (r - 1) / 2 runs before it with the filters' `false_positives` p; the others p r false blocks. `cached` is
    the share of blocks that need no device. (Monkey: r p summed over levels, plus 1; that lookups stop is ours.)
    """
    for name, share in (("false_positives", false_positives), ("cached", cached), ("found", found)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} {share}: must be between 0 and 1")
    costs = []
    reached = 1.0
    for level, (share, count) in enumerate(zip(shares(tree), runs(tree), strict=True)):
        here = found * share
        blocks = here * (1 + false_positives * max(0.0, count - 1) / 2)
        blocks += max(0.0, reached - here) * false_positives * count
        reached -= here
        blocks *= 1 - cached
        costs.append(LevelCost(level, blocks * load.block_bytes, 0, blocks * _block(device_of(devices, level), load)))
    source = "Monkey (SIGMOD'17) x MQSSD T(k, x)"
    return Cost("point lookup: 1 block + p per run above", source, load.threads, tuple(costs))


def scan(tree: Tree, devices: Mapping[int, DeviceModel], load: Load, results: float, *, cached: float = 0.0) -> Cost:
    """A range scan of `results` entries: a block of each run, then what the blocks do not hold, in a stream.

        sum over levels of  (1 - cached) (runs T_r(k, block) + more T_r(k, stream) / stream)
        more = max(0, results entry share - runs block)

    with the level's share of the data; the first T is random, the second sequential. No filter helps. `cached` is the
    share that needs no device. (Dostoevsky: a seek a run, and selectivity x data / block; one sum of both here.)
    """
    if results < 0 or not 0 <= cached <= 1:
        raise ValueError(f"a scan of {results} results, {cached} of them cached")
    costs = []
    for level, (size, count) in enumerate(zip(levels(tree), runs(tree), strict=True)):
        device = device_of(devices, level)
        more = max(0.0, results * tree.entry_bytes * size / tree.data_bytes - count * load.block_bytes)
        stream = stream_time(device, "read", load.threads, load.stream_bytes, load.beside)
        seconds = count * _block(device, load) + more * stream / load.stream_bytes
        moved = count * load.block_bytes + more
        costs.append(LevelCost(level, moved * (1 - cached), 0, seconds * (1 - cached)))
    source = "Dostoevsky (SIGMOD'18) x MQSSD T(k, x)"
    return Cost("range scan: a block per run + a stream", source, load.threads, tuple(costs))


def device_of(devices: Mapping[int, DeviceModel], level: int) -> DeviceModel:
    """The device of a level: its own, else that of the deepest level above it that has one.

    Raises ValueError where there is none.
    """
    named = [other for other in devices if 0 <= other <= level]
    if not named:
        raise ValueError(f"no device holds level {level}")
    return devices[max(named)]


def stream_time(
    device: DeviceModel, direction: Direction, threads: float, block_bytes: float, beside: float = 0
) -> float:
    """Seconds of one sequential request among `threads`, but no more than a random one takes.

    A quick profile has sequential requests of one thread only, from which the model cannot know what many get.
    """
    random = device.request_time(direction, threads, block_bytes, beside=beside)
    return min(random, device.request_time(direction, threads, block_bytes, pattern="sequential", beside=beside))


def _streamed(device: DeviceModel, direction: Direction, moved: float, tree: Tree, load: Load) -> float:
    """Seconds for `moved` bytes of compaction in one direction, with their share of files."""
    stream = min(load.stream_bytes, tree.file_bytes)
    streaming = stream_time(device, direction, load.threads, stream, load.beside)
    opening = device.request_time(direction, load.threads, SMALL_BLOCK, beside=load.beside)
    return moved * (streaming / stream + FILE_REQUESTS[direction] * opening / tree.file_bytes)


def _block(device: DeviceModel, load: Load) -> float:
    """Seconds for a block at a random place."""
    return device.request_time("read", load.threads, load.block_bytes, beside=load.beside)
