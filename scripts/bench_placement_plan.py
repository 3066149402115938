"""What bench-placement runs: sizes, parts, setups, and the rows of the table with their targets. Plain data.

A *part* is what is done on one setup in one go, a *step* of it is what one figure comes from. The parts:

- `fill`: db_bench's fillrandom, 5 times the data, by two threads; then reads and writes 9:1 by eight.
- `ycsb`: the load, then A, B and C, by one thread of rocksdict: the only way to RocksDB's `db_paths`, which db_bench
  cannot set. A second thread would wait for the first one's GIL.
- `shifting`: the hot set moves; by rocksdict, too.
- `migrating`: reads at a fixed rate, by turns with and without migrations of files that nobody reads.

Reads of tables, by users and compactions, are direct, so that no page cache hides a device. Writes are buffered, as
users have them. That hides nothing either: RocksDB syncs each table when it is written, so no more is dirty than the
tables that are being written, and the WAL, which no setup syncs and which is mostly gone before the kernel would write
it. Keigo begins to write it back once a second; that counts against Keigo.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Final, Literal

from keigo.config import Level
from workloads.compare.hierarchy import TierPlan
from workloads.compare.setups import DbPaths, Keigo, Mergerfs, OneTier, Setup

Part = Literal["fill", "ycsb", "shifting", "migrating"]
PARTS: Final[tuple[Part, ...]] = ("fill", "ycsb", "shifting", "migrating")
STEPS: Final[dict[Part, tuple[str, ...]]] = {
    "fill": ("fillrandom", "mixed"),
    "ycsb": ("load", "a", "b", "c"),
    "shifting": ("shifting",),
    "migrating": ("migrating",),
}
LEVEL0_STOP: Final = 8
"""Files of level 0 at which writes stop. With RocksDB's own 36 each level may grow to 9 times its size before it is its
turn, all together to 4 times the data. (At a terabyte, the limit of 64 GB of pending compactions is before that.)
Writes are not slowed down before: `delayed_write_rate`, not the devices, would set the pace."""
DEVICES: Final = ("nvmm", "nvme", "sata")
LEVELS: Final = (0, 1, 2, 3)
"""Levels that hold data at these sizes."""
_MIB: Final = 1 << 20
_VALUE: Final = 1000
_ENTRY: Final = 1032  # bytes of a record in a table: 20 of key, 1000 of value, index and filter
_NATIVE_KEY: Final = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    """All sizes follow from the fast tier's: data are 3 times it, and 1.2 times both faster tiers. Bytes.

    Memtable, tables and level 1 are to the data as RocksDB's own 64, 64 and 256 MiB are to 6 GiB.
    """

    fast: int

    @property
    def data(self) -> int:
        """Bytes of all records in tables."""
        return 3 * self.fast

    @property
    def mid(self) -> int:
        """Capacity of the second tier."""
        return round(self.data / 1.2) - self.fast

    @property
    def records(self) -> int:
        """That are loaded."""
        return self.data // _ENTRY

    @property
    def device(self) -> int:
        """Of each emulated device: it could hold all, which `all-fast` needs."""
        return max(512 * _MIB, 5 * self.data)

    def tiers(self) -> tuple[TierPlan, ...]:
        """The hierarchy, fast to slow."""
        capacities = (self.fast, self.mid, None)
        return tuple(TierPlan(name, None, size) for name, size in zip(DEVICES, capacities, strict=True))

    def options(self) -> dict[str, Any]:
        """Of every database."""
        return {
            "write_buffer": self.fast // 32,
            "file_size": self.fast // 32,
            "level_base": self.fast // 8,
            "level0_slowdown": LEVEL0_STOP,
            "level0_stop": LEVEL0_STOP,
            "background_jobs": 4,
            "dynamic_levels": False,  # db_paths cannot be had with them
            "block_cache": self.fast // 8,
            "bloom_bits": 10,
            "compression": "none",
            "direct_reads": True,
        }


@dataclass(frozen=True, slots=True)
class Times:
    """How long things last."""

    seconds: float
    """Of each run that is limited by time."""
    phase: int
    """Operations of a phase of the shifting workload."""
    phases: int = 4
    rewrites: int = 5
    """How many times over `fillrandom` writes the data: most of it is work that compactions do."""

    @property
    def short(self) -> Times:
        """For finding the best of many lists of levels."""
        return Times(self.seconds / 2, self.phase // 4, self.phases, 3)


@dataclass(frozen=True, slots=True)
class Todo:
    """One part on one setup, once."""

    part: Part
    setup: str
    repetition: int
    short: bool = False
    """Whether this is a run of the search for the best lists."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a setup against another, or a figure of one setup, on one step."""

    title: str
    part: Part
    step: str
    setup: str
    base: str | None
    """Setup that it is compared with; BEST: the best list of levels. None: the figure itself counts."""
    least: float | None = None
    most: float | None = None
    settled: bool = True
    """Whether a time includes that until compactions are over, where it was measured."""


COST: Final = "cost"
DB_PATHS_80: Final = "db_paths-80"
"""With targets of 80% of the capacities. RocksDB takes targets for advice: with the capacities themselves as targets it
had up to 71 MiB on the second device's 48. At the sizes here, level 2 may grow to 5/4 of the fast tier, so with less
than 83% of the second tier's capacity as its target it is on the slowest. The first device's is exceeded even so."""
BEST: Final = "best levels"
_WRITES: Final[tuple[tuple[Part, str], ...]] = (("fill", "fillrandom"), ("ycsb", "load"), ("ycsb", "a"))
_READS: Final[tuple[tuple[Part, str], ...]] = (("ycsb", "b"), ("ycsb", "c"))


def rows(setup: str = COST) -> tuple[Row, ...]:
    """The table."""
    found = [
        *(Row("write-heavy, to all on the slow device", *of, setup, "all-slow", least=4.0) for of in _WRITES),
        *(Row("write-heavy, to all on the fast device", *of, setup, "all-fast", least=0.9) for of in _WRITES),
        *(Row("write-heavy, to db_paths", *of, setup, "db_paths", least=1.3) for of in _WRITES if of[0] == "ycsb"),
        *(Row("read-heavy, to db_paths", *of, setup, "db_paths", least=1.5) for of in _READS),
        *(
            Row("write-heavy, to db_paths that fits", *of, setup, DB_PATHS_80, least=1.3)
            for of in _WRITES
            if of[0] == "ycsb"
        ),
        *(Row("read-heavy, to db_paths that fits", *of, setup, DB_PATHS_80, least=1.5) for of in _READS),
    ]
    for of in (*_WRITES, ("fill", "mixed"), *_READS):
        found.append(Row("to the best static levels", of[0], of[1], setup, BEST, least=0.95))
    found += [
        Row("to the best static levels", "shifting", "shifting", setup, BEST, least=1.0),
        Row("time to 90% after a shift, of the phase", "shifting", "settling", setup, None, most=0.2),
        Row("p99 with migrations, to without", "migrating", "p99", setup, None, most=1.25),
    ]
    return tuple(found)


def level_lists(levels: Sequence[int] = LEVELS, tiers: int = len(DEVICES)) -> Iterator[tuple[int, ...]]:
    """Every way to put levels on tiers so that no level is on a faster tier than the one above it: level -> tier."""
    return combinations_with_replacement(range(tiers), len(levels))


def list_name(places: Sequence[int]) -> str:
    """Name of the setup with the levels on these tiers: a digit for each level."""
    return "levels-" + "".join(map(str, places))


def levels_of(places: Sequence[int], names: Sequence[str] = DEVICES) -> dict[str, tuple[Level, ...]]:
    """The same as devices.yaml has it: the WAL goes with level 0, levels below the last one with that."""
    deepest = 6
    filled = [*places, *[places[-1]] * (deepest + 1 - len(places))]
    found: dict[str, tuple[Level, ...]] = {}
    for tier, name in enumerate(names):
        levels: list[Level] = ["wal"] if places[0] == tier else []
        levels += [level for level, place in enumerate(filled) if place == tier]
        if levels:
            found[name] = tuple(levels)
    return found


def setups() -> dict[str, Setup]:
    """Every setup by its name. `cost` has no profile here: it comes with the testbed."""
    found: list[Setup] = [
        OneTier("all-slow", len(DEVICES) - 1),
        OneTier("all-fast", 0),
        DbPaths("db_paths"),
        DbPaths(DB_PATHS_80, share=0.8),
        Mergerfs("mergerfs"),
        *(Keigo(name, name) for name in ("cost", "fill-order", "popularity", "mutant")),
        Keigo("levels", "levels"),
        *(Keigo(list_name(places), "levels", levels=levels_of(places)) for places in level_lists()),
    ]
    return {setup.name: setup for setup in found}


def is_list(setup: str) -> bool:
    """Whether a setup is one of the static lists."""
    return setup.startswith("levels-")


WANTED: Final[dict[Part, tuple[str, ...]]] = {
    "fill": ("all-slow", "all-fast", COST),
    "ycsb": ("all-slow", "all-fast", "db_paths", DB_PATHS_80, "mergerfs", COST),
    "shifting": ("all-slow", "all-fast", "db_paths", COST),
    "migrating": (COST,),
}
"""Setups of each part, besides the lists."""
ONCE: Final[dict[Part, tuple[str, ...]]] = {
    "fill": (),
    "ycsb": ("mergerfs",),
    "shifting": ("all-slow", "all-fast", "db_paths"),
    "migrating": (),
}
"""Setups that no target speaks of: one run of each is enough."""
