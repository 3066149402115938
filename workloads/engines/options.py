"""How an engine is set up, in the same words and units for all of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Final, get_args
from typing import Literal as _Literal

from keigo.errors import KeigoError

Compression = _Literal["none", "snappy", "zlib", "bz2", "lz4", "lz4hc", "zstd"]
CompactionStyle = _Literal["leveled", "universal"]
COMPRESSIONS: Final[tuple[str, ...]] = get_args(Compression)
COMPACTION_STYLES: Final[tuple[str, ...]] = get_args(CompactionStyle)


class OptionError(KeigoError):
    """An option that makes no sense, or that an engine cannot set: the engine, the option, its value, the reason."""


@dataclass(frozen=True, slots=True)
class DbPath:
    """A directory for tables and the bytes of them it should hold: RocksDB's `db_paths`."""

    path: str
    target_size: int


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of a database. None leaves an option as the engine has it; sizes are bytes.

    Raises OptionError for a value that no engine has.
    """

    write_buffer: int | None = None
    """Size of a memtable when it is written out."""
    file_size: int | None = None
    """Size of a table; of level 1, where it depends on the level."""
    background_jobs: int | None = None
    """Flushes and compactions that may run at once."""
    subcompactions: int | None = None
    """Threads that one compaction may use."""
    block_cache: int | None = None
    """Size of the cache of uncompressed blocks; 0: none."""
    bloom_bits: int | None = None
    """Bits per key of each table's bloom filter; 0: no filter."""
    direct_reads: bool = False
    """Read tables with O_DIRECT."""
    direct_writes: bool = False
    """Flushes and compactions read and write with O_DIRECT."""
    compression: Compression | None = None
    """Of table blocks, on every level."""
    max_open_files: int | None = None
    """Files held open; -1: all."""
    sync: bool = False
    """Each write is on the device before it returns."""
    wal: bool = True
    """Writes go to a write-ahead log first."""
    compaction_style: CompactionStyle | None = None
    growth_factor: int | None = None
    """How many times larger each level is than the one above."""
    level_base: int | None = None
    """Size of level 1."""
    level0_slowdown: int | None = None
    """Files of level 0 at which writers are slowed down."""
    level0_stop: int | None = None
    """Files of level 0 at which writers are stopped."""
    dynamic_levels: bool | None = None
    """Level sizes follow from the last level's, and the first level with tables moves up as it grows."""
    db_paths: tuple[DbPath, ...] = ()
    """Directories for tables, fastest first."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"{name}: {value} is less than {least}")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value > _MOST:
                raise OptionError(f"{name}: {value} is more than {_MOST}")
        for name, choices in (("compression", COMPRESSIONS), ("compaction_style", COMPACTION_STYLES)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise OptionError(f"{name}: {value!r} is none of {', '.join(choices)}")
        for place in self.db_paths:
            if not place.path or place.target_size < 0:
                raise OptionError(f"db_paths: {place.path!r} with a target size of {place.target_size} is no place")
        if self.sync and not self.wal:
            raise OptionError("sync: there is no log to sync when wal is off")


_LEAST: Final = {
    "write_buffer": 1,
    "file_size": 1,
    "background_jobs": 1,
    "subcompactions": 1,
    "block_cache": 0,
    "bloom_bits": 0,
    "max_open_files": -1,
    "growth_factor": 2,
    "level_base": 1,
    "level0_slowdown": 1,
    "level0_stop": 1,
}
_COUNTS: Final = (
    *("background_jobs", "subcompactions", "bloom_bits", "max_open_files", "growth_factor"),
    *("level0_slowdown", "level0_stop"),
)
_MOST: Final = (1 << 31) - 1  # the engines have them as int
OPTION_NAMES: Final = tuple(field.name for field in fields(EngineOptions))


def asked_for(options: EngineOptions) -> tuple[str, ...]:
    """The names of the options that differ from what `EngineOptions()` has."""
    default = EngineOptions()
    return tuple(name for name in OPTION_NAMES if getattr(options, name) != getattr(default, name))


def refuse_others(engine: str, options: EngineOptions, settable: Collection[str], reason: str) -> None:
    """Raises OptionError for the first option asked for that is not in `settable`."""
    for name in asked_for(options):
        if name not in settable:
            raise OptionError(f"{engine} cannot set {name} (to {getattr(options, name)!r}): {reason}")
