"""The options of a database, from its file OPTIONS-N: what decides to which level a compaction goes.

RocksDB and Speedb write one whenever the database is opened, a column family comes or goes, or an option is
set (options/options_parser.cc); the one with the highest number holds. It is a file of lines:

    # comment, to the end of the line unless the # is escaped
    [Version]                     rocksdb_version=9.8.4; Speedb writes the RocksDB release that it follows
    [DBOptions]                   name=value, for the database
    [CFOptions "family"]          name=value, for each column family; all are written, defaults too
    [TableOptions/KIND "family"]  of no interest here

Backslash, #, colon, carriage return and line feed in a name of a family are escaped by a backslash, the last
two as r and n (util/string_util.cc). Of two equal names the first counts. A structure is
`{name=value;name=value}`, a list `1:1:1`.

Pebble writes the same syntax with other names (options.go): [Version] with pebble_version, [Options], and
[Level "N"]. Its single keyspace is given as the family `default`. LevelDB writes no such file: `LEVELDB`.

A name that is missing has the default of RocksDB 9.8. An unknown name or section is skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

_MIB: Final = 1 << 20


class OptionsError(Exception):
    """The bytes are no OPTIONS file; `line` counts from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class Engine(StrEnum):
    """Whose store it is."""

    ROCKSDB = "rocksdb"
    SPEEDB = "speedb"
    PEBBLE = "pebble"
    LEVELDB = "leveldb"


class CompactionStyle(StrEnum):
    """How the tables of a column family are arranged."""

    LEVEL = "kCompactionStyleLevel"
    UNIVERSAL = "kCompactionStyleUniversal"
    FIFO = "kCompactionStyleFIFO"
    NONE = "kCompactionStyleNone"


@dataclass(frozen=True, slots=True)
class UniversalOptions:
    """`compaction_options_universal` (include/rocksdb/universal_compaction.h)."""

    size_ratio: int = 1
    min_merge_width: int = 2
    max_merge_width: int = (1 << 32) - 1
    max_size_amplification_percent: int = 200
    stop_style: str = "kCompactionStopStyleTotalSize"
    allow_trivial_move: bool = False
    incremental: bool = False
    max_read_amp: int = -1


@dataclass(frozen=True, slots=True)
class FamilyOptions:
    """What of a column family's options decides on levels and sizes, under RocksDB's names.

    `engine` and `version` say whose picker the family has. RocksDB before 8.4 has
    level_compaction_dynamic_level_bytes off by default, but no release leaves it out of the file.
    """

    engine: Engine = Engine.ROCKSDB
    version: tuple[int, ...] = ()
    comparator: str = "leveldb.BytewiseComparator"
    compaction_style: CompactionStyle = CompactionStyle.LEVEL
    compaction_pri: str = "kMinOverlappingRatio"
    disable_auto_compactions: bool = False
    num_levels: int = 7
    level0_file_num_compaction_trigger: int = 4
    level0_slowdown_writes_trigger: int = 20
    level0_stop_writes_trigger: int = 36
    max_bytes_for_level_base: int = 256 * _MIB
    max_bytes_for_level_multiplier: float = 10.0
    max_bytes_for_level_multiplier_additional: tuple[int, ...] = ()
    level_compaction_dynamic_level_bytes: bool = True
    target_file_size_base: int = 64 * _MIB
    target_file_size_multiplier: int = 1
    max_compaction_bytes: int = 0
    """0 stands for 25 times `target_file_size_base`."""
    write_buffer_size: int = 64 * _MIB
    ttl: int = 30 * 24 * 60 * 60
    periodic_compaction_seconds: int = 0
    preclude_last_level_data_seconds: int = 0
    allow_ingest_behind: bool = False
    """Whether the last level is kept free; older releases write it under [DBOptions]."""
    max_mem_compact_level: int = 0
    """The deepest level that a flush may reach: above 0 in LevelDB only."""
    universal: UniversalOptions = field(default_factory=UniversalOptions)


@dataclass(frozen=True, slots=True)
class Options:
    """A database's options. A count of -1 is derived by the store from `max_background_jobs`."""

    engine: Engine
    version: tuple[int, ...]
    families: Mapping[str, FamilyOptions]
    max_subcompactions: int = 1
    max_background_jobs: int = 2
    max_background_compactions: int = -1
    max_background_flushes: int = -1


LEVELDB: Final = FamilyOptions(
    engine=Engine.LEVELDB,
    level0_slowdown_writes_trigger=8,
    level0_stop_writes_trigger=12,
    max_bytes_for_level_base=10 * _MIB,
    level_compaction_dynamic_level_bytes=False,
    target_file_size_base=2 * _MIB,
    write_buffer_size=4 * _MIB,
    max_mem_compact_level=2,
)
"""LevelDB's constants (db/dbformat.h, db/version_set.cc), and its defaults where an option exists that it
records nowhere: `write_buffer_size`, and as `target_file_size_base` its `max_file_size` (include/leveldb/options.h)."""

# Levels are walked one by one; no real database has more than some dozens.
_MOST_LEVELS: Final = 1024

_ESCAPE: Final = re.compile(rb"\\(.?)", re.DOTALL)
_COMMENT: Final = re.compile(rb"(?<!\\)#")
_SECTION: Final = re.compile(rb'\[\s*([^\s"]+)\s*(?:"(.*)"\s*)?\]', re.DOTALL)
_INTEGER: Final = re.compile(r"-?[0-9]{1,20}")
_NUMBER: Final = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?(?:e\+?[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class _Section:
    title: str
    argument: str
    line: int
    values: dict[str, tuple[str, int]]
    """name -> (value, line)"""


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _unescape(data: bytes) -> str:
    raw = {b"r": b"\r", b"n": b"\n"}
    return _text(_ESCAPE.sub(lambda found: raw.get(found[1], found[1]), data))


def _sections(data: bytes) -> list[_Section]:
    sections: list[_Section] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        statement = _COMMENT.split(line, maxsplit=1)[0].strip()
        if not statement:
            continue
        if statement.startswith(b"[") and statement.endswith(b"]"):
            found = _SECTION.fullmatch(statement)
            if found is None:
                raise OptionsError(number, 'a section is [title] or [title "argument"]')
            sections.append(_Section(_text(found[1]), _unescape(found[2] or b""), number, {}))
            continue
        name, equals, value = statement.partition(b"=")
        if not equals or not name.strip():
            raise OptionsError(number, "neither a section nor name=value")
        if not sections:
            raise OptionsError(number, "name=value before the first section")
        sections[-1].values.setdefault(_text(name.strip()), (_text(value.strip()), number))
    return sections


def _boolean(value: str) -> bool:
    if value not in {"true", "false", "1", "0"}:
        raise ValueError("not a boolean")
    return value in {"true", "1"}


def _integer(least: int = 0, most: int = (1 << 64) - 1) -> Callable[[str], int]:
    def read(value: str) -> int:
        if _INTEGER.fullmatch(value) is None or not least <= int(value) <= most:
            raise ValueError(f"not an integer of {least} to {most}")
        return int(value)

    return read


def _multiplier(value: str) -> float:
    number = float(value) if _NUMBER.fullmatch(value) is not None else math.nan
    if not 1 <= number < math.inf:
        raise ValueError("not a number of at least 1")
    return number


def _integers(value: str) -> tuple[int, ...]:
    read = _integer(least=-(1 << 31), most=(1 << 31) - 1)
    return tuple(read(each) for each in value.split(":")) if value else ()


def _universal(value: str) -> UniversalOptions:
    if not (value.startswith("{") and value.endswith("}")):
        raise ValueError("not a structure")
    values: dict[str, tuple[str, int]] = {}
    for statement in value[1:-1].split(";"):
        name, _, text = statement.partition("=")
        values.setdefault(name.strip(), (text.strip(), 0))
    return UniversalOptions(**_read(values, _UNIVERSAL))


_Readers = Mapping[str, tuple[str, Callable[[str], Any]]]
"""name in the file -> (field, reader); a reader raises ValueError."""


def _same(**readers: Callable[[str], Any]) -> _Readers:
    return {name: (name, reader) for name, reader in readers.items()}


_UNIVERSAL: Final = _same(
    size_ratio=_integer(),
    min_merge_width=_integer(),
    max_merge_width=_integer(),
    max_size_amplification_percent=_integer(),
    stop_style=str,
    allow_trivial_move=_boolean,
    incremental=_boolean,
    max_read_amp=_integer(least=-1),
)

_FAMILY: Final[_Readers] = {
    **_same(
        comparator=str,
        compaction_style=CompactionStyle,
        compaction_pri=str,
        disable_auto_compactions=_boolean,
        num_levels=_integer(least=1, most=_MOST_LEVELS),
        level0_file_num_compaction_trigger=_integer(least=-1),
        level0_slowdown_writes_trigger=_integer(least=-1),
        level0_stop_writes_trigger=_integer(least=-1),
        max_bytes_for_level_base=_integer(),
        max_bytes_for_level_multiplier=_multiplier,
        max_bytes_for_level_multiplier_additional=_integers,
        level_compaction_dynamic_level_bytes=_boolean,
        target_file_size_base=_integer(),
        target_file_size_multiplier=_integer(),
        max_compaction_bytes=_integer(),
        write_buffer_size=_integer(),
        ttl=_integer(),
        periodic_compaction_seconds=_integer(),
        preclude_last_level_data_seconds=_integer(),
        allow_ingest_behind=_boolean,
    ),
    "compaction_options_universal": ("universal", _universal),
}

_DATABASE: Final = _same(
    max_subcompactions=_integer(),
    max_background_jobs=_integer(least=-1),
    max_background_compactions=_integer(least=-1),
    max_background_flushes=_integer(least=-1),
)

_PEBBLE: Final[_Readers] = {
    "comparer": ("comparator", str),
    "disable_automatic_compactions": ("disable_auto_compactions", _boolean),
    "l0_compaction_threshold": ("level0_file_num_compaction_trigger", _integer()),
    "lbase_max_bytes": ("max_bytes_for_level_base", _integer()),
    "level_multiplier": ("max_bytes_for_level_multiplier", _multiplier),
    "mem_table_size": ("write_buffer_size", _integer()),
}
_PEBBLE_LEVEL: Final[_Readers] = {"target_file_size": ("target_file_size_base", _integer())}
_PEBBLE_DATABASE: Final[_Readers] = {"max_concurrent_compactions": ("max_background_compactions", _integer())}
_PEBBLE_DEFAULTS: Final = FamilyOptions(
    engine=Engine.PEBBLE,
    max_bytes_for_level_base=64 * _MIB,
    target_file_size_base=2 * _MIB,
    target_file_size_multiplier=2,
    write_buffer_size=4 * _MIB,
)


def _read(values: Mapping[str, tuple[str, int]], readers: _Readers) -> dict[str, Any]:
    """The fields among `values`; raises OptionsError at the line of a value that cannot be read."""
    fields: dict[str, Any] = {}
    for name in values.keys() & readers.keys():
        to, reader = readers[name]
        value, line = values[name]
        try:
            fields[to] = reader(value)
        except ValueError as error:
            raise OptionsError(line, f"{name}={value[:80]}: {error}") from None
    return fields


def _version(section: _Section, name: str) -> tuple[int, ...]:
    value, line = section.values[name]
    if re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}", value) is None:
        raise OptionsError(line, f"{name}={value[:80]}: not a version")
    return tuple(int(part) for part in value.split("."))


def _rocksdb_options(engine: Engine, version: tuple[int, ...], sections: list[_Section]) -> Options:
    families: dict[str, dict[str, Any]] = {}
    database: dict[str, Any] = {}
    common: dict[str, Any] = {"engine": engine, "version": version}
    for section in sections:
        if section.title == "DBOptions":
            database = _read(section.values, _DATABASE)
            behind = section.values.keys() & {"allow_ingest_behind"}
            common |= _read({name: section.values[name] for name in behind}, _FAMILY)
        elif section.title == "CFOptions":
            if section.argument in families:
                raise OptionsError(section.line, f"column family {section.argument[:80]!r} twice")
            families[section.argument] = _read(section.values, _FAMILY)
    if "default" not in families:
        raise OptionsError(sections[-1].line, "no column family `default`")
    made = {name: FamilyOptions(**(common | fields)) for name, fields in families.items()}
    return Options(engine, version, made, **database)


def _pebble_options(version: tuple[int, ...], sections: list[_Section]) -> Options:
    family: dict[str, Any] = {"version": version}
    database: dict[str, Any] = {}
    for section in sections:
        if section.title == "Options":
            family |= _read(section.values, _PEBBLE)
            database = _read(section.values, _PEBBLE_DATABASE)
        elif section.title == "Level" and section.argument == "0":
            family |= _read(section.values, _PEBBLE_LEVEL)
    return Options(Engine.PEBBLE, version, {"default": replace(_PEBBLE_DEFAULTS, **family)}, **database)


def parse_options(data: bytes) -> Options:
    """The options that an OPTIONS file's bytes state; raises OptionsError, and nothing else, where it is malformed."""
    sections = _sections(data)
    for section in sections:
        if section.title == "Version" and "rocksdb_version" in section.values:
            speedb = data.split(b"\n", 1)[0].startswith(b"# This is a Speedb")
            engine = Engine.SPEEDB if speedb else Engine.ROCKSDB
            return _rocksdb_options(engine, _version(section, "rocksdb_version"), sections)
        if section.title == "Version" and "pebble_version" in section.values:
            return _pebble_options(_version(section, "pebble_version"), sections)
    raise OptionsError(data.count(b"\n") + 1, "no [Version] of RocksDB, Speedb or Pebble")
