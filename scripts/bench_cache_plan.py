"""What bench-cache runs: sizes, parts with their setups, and the rows of the table with their targets. Plain data.

The database is on the slow device, read past the page cache unless said otherwise, by one thread of rocksdict: a second
one would wait for the first one's GIL. The parts:

A reader that does nothing but wait for the slow device leaves little of it to the filler: some chunks a second, so that
a cache would fill for minutes. What is looked at here is a cache that is full: the workload is run for a while, then
the filler has a rest to copy what was read (`Session.settle`), and what counts is run after that. How fast it fills
beside the reader is noted (`filled_beside`). Caches that fill at each miss need no rest, and have none.

- `full`: YCSB C with a cache for all of it, warmed by `keigo cache warm`.
- `tenth`: YCSB C with a tenth. Reads are traced (`bench_cache_trace`), and other caches reckoned with the same reads.
  RocksDB's block cache, a hundredth of the data, takes the hottest records: a chunk has 63, and what is left of them is
  nearly as warm everywhere. `no-blocks` is without, so that what is asked for of chunks is as skewed as it can be.
- `mixed`: YCSB B, D, E and mixgraph with a quarter: Keigo's cache, none, and the page cache alone.
- `native`: db_bench with a quarter of larger data: Keigo's cache, none, and RocksDB's own persistent read cache, which
  can be had with db_bench only. It has no YCSB: `readrandom`, with keys as skewed as a Zipfian of 1, is nearest to C;
  its mixgraph draws key, size and kind of an operation together, unlike the one of `mixed`. So these rows compare
  caches with each other, and not with the other parts.
- `restart`: YCSB C with all of it cached, before and after a restart of the daemon, clean or killed.
- `scan`: a scan of everything in the middle of C with a quarter.
- `memory`, `micro`: without a mount; see `bench_cache_bare`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from workloads.compare.hierarchy import TierPlan

Part = Literal["full", "tenth", "mixed", "native", "restart", "scan", "memory", "micro"]
SETUPS: Final[dict[Part, tuple[str, ...]]] = {
    "full": ("none", "cache", "all-fast", "native-fast"),
    "tenth": ("cache", "no-blocks", "whole-files", "none"),
    "mixed": tuple(f"{what}/{how}" for what in ("b", "d", "e", "mixgraph") for how in ("none", "cache", "page-cache")),
    "native": ("readrandom", "mixgraph"),
    "restart": ("clean", "killed"),
    "scan": ("cache",),
    "memory": ("64MiB files", "1GiB files"),
    "micro": ("hit",),
}
PARTS: Final = tuple(SETUPS)
REPEATED: Final[tuple[Part, ...]] = ("full", "restart", "micro")
"""Parts that are done as often as asked for; each other one takes long, and is done once unless asked for alone."""
BARE: Final[tuple[Part, ...]] = ("memory", "micro")
"""Parts that need no devices."""
FAST: Final = "nvmm"
SLOW: Final = "sata"
CHUNK: Final = 64 << 10
"""Bytes; what devices.yaml has unless told otherwise."""
_MIB: Final = 1 << 20
_LEAST_NATIVE: Final = 512 * _MIB
"""RocksDB's read cache is made of files of 100 MiB, and refuses to be smaller than one."""
_ENTRY: Final = 1032  # bytes of a record in a table: 20 of key, 1000 of value, index and filter
_GRAPH_ENTRY: Final = 101  # the same of mixgraph: 48 and 43


@dataclass(frozen=True, slots=True)
class Sizes:
    """All sizes follow from that of the data, in bytes."""

    data: int

    @property
    def records(self) -> int:
        """Of YCSB."""
        return self.data // _ENTRY

    @property
    def graph_records(self) -> int:
        """Of mixgraph."""
        return self.data // _GRAPH_ENTRY

    @property
    def native(self) -> Sizes:
        """Of the part `native`."""
        return Sizes(max(_LEAST_NATIVE, self.data))

    @property
    def device(self) -> int:
        """Of each emulated device: it holds all, twice, and what compactions leave for a while."""
        return 4 * self.native.data

    def tiers(self) -> tuple[TierPlan, ...]:
        """Fast to slow."""
        return TierPlan(FAST, None, None), TierPlan(SLOW, None, None)

    def share(self, divisor: int) -> int:
        """Capacity of a cache of a share of the data."""
        return max(8 * CHUNK, self.data // divisor)

    @property
    def whole(self) -> int:
        """Capacity of a cache that all of it fits in, with the caches' own bytes and what a table's sizes differ."""
        return self.data * 3 // 2

    def options(self) -> dict[str, Any]:
        """Of every database."""
        return {
            "write_buffer": self.data // 48,
            "file_size": self.data // 48,
            "level_base": self.data // 12,
            "background_jobs": 2,
            "dynamic_levels": False,
            "block_cache": self.data // 96,
            "bloom_bits": 10,
            "compression": "none",
            "direct_reads": True,
        }


@dataclass(frozen=True, slots=True)
class Times:
    """How long things last, in seconds."""

    seconds: float
    """Of each run that is measured."""

    @property
    def warm_up(self) -> float:
        """Before a run whose cache is warm already."""
        return self.seconds / 4

    @property
    def filling(self) -> float:
        """Before a run whose cache is empty in the beginning."""
        return 1.5 * self.seconds

    @property
    def settling(self) -> float:
        """The same, where what the cache settles at is looked at: a round of these."""
        return 3 * self.seconds

    @property
    def window(self) -> float:
        """Of which hits are counted there."""
        return 3 * self.seconds


@dataclass(frozen=True, slots=True)
class Todo:
    """A setup of a part, once."""

    part: Part
    setup: str
    repetition: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a figure of a setup, or its ratio to that of another one."""

    title: str
    part: Part
    figure: str
    setup: str
    base: str | None = None
    least: float | None = None
    most: float | None = None


def rows() -> tuple[Row, ...]:
    """The table."""
    found = [
        Row("C, all cached, to everything on slow", "full", "rate", "cache", "none", least=18.0),
        Row("C, all cached, to everything on fast, mounted", "full", "rate", "cache", "all-fast", least=0.9),
        Row("C, all cached, to everything on fast, no mount", "full", "rate", "cache", "native-fast"),
        Row("C, 10%, to whole files pinned on fast", "tenth", "rate", "cache", "whole-files"),
        Row("C, 10%, to no cache", "tenth", "rate", "cache", "none"),
    ]
    for setup in ("cache", "no-blocks"):
        for what, figure in (
            ("to that of the best static chunks", "to_static"),
            ("found", "hit_ratio"),
            ("best static chunks, true probability", "static"),
            ("best static chunks, in hindsight", "hindsight"),
            ("Belady's MIN", "belady"),
            ("best whole files", "whole_files"),
        ):
            least = 0.95 if figure == "to_static" else None
            found.append(Row(f"C, 10%, hit ratio: {what}", "tenth", figure, setup, least=least))
    for what in ("b", "d", "e", "mixgraph"):
        for base in ("none", "page-cache"):
            name = what if what == "mixgraph" else what.upper()
            found.append(Row(f"{name}, 25%", "mixed", "rate", f"{what}/cache", f"{what}/{base}"))
    for what in SETUPS["native"]:
        for base in ("none", "rocksdb"):
            name = {"none": "no cache", "rocksdb": "RocksDB's own read cache"}[base]
            found.append(Row(f"db_bench {what}, 25%, to {name}", "native", f"to_{base}", what))
    found += [
        Row(f"after a restart ({how}), within 5 s, to warm", "restart", "within", how, least=0.95)
        for how in SETUPS["restart"]
    ]
    found += [
        Row(f"after a restart ({how}), mean of 5 s, to warm", "restart", "mean", how) for how in SETUPS["restart"]
    ]
    found += [
        Row("scan: seconds until hits are back within 5%", "scan", "recovered", "cache", most=10.0),
        Row("scan: hit ratio after it, to before", "scan", "after_to_before", "cache"),
    ]
    found += [
        Row(f"bytes per chunk, beyond 1 KiB a file, {which}", "memory", "beyond", which, most=2.0)
        for which in SETUPS["memory"]
    ]
    found += [
        Row("a hit, against a read without the cache: us more", "micro", "more_us", "hit", most=0.3),
    ]
    return tuple(found)


def order(parts: Sequence[Part], repeats: int) -> Iterator[Todo]:
    """All runs: each part's setups by turns, and what is done several times again when all was done once."""
    for repetition in range(repeats):
        for part in parts:
            if repetition and part not in REPEATED and len(parts) > 1:
                continue
            names = SETUPS[part]
            first = repetition % len(names)  # each begins with another one
            yield from (Todo(part, name, repetition) for name in (*names[first:], *names[:first]))
