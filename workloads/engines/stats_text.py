"""The text of RocksDB's `rocksdb.stats` property, which its bindings, Speedb and `db_bench` all hand out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_STALL: Final = re.compile(r"^Cumulative stall: (\d+):(\d+):(\d+(?:\.\d+)?) H:M:S", re.MULTILINE)
_LEVEL: Final = re.compile(r"^ +L(\d+) +(\d+)/(\d+) +(\d+(?:\.\d+)?) ([KMGT])B ", re.MULTILINE)
_SUM: Final = re.compile(r"^ +Sum +\d+/\d+ +\S+ [KMGT]B(?: +\S+){7} +(\d+(?:\.\d+)?) ", re.MULTILINE)
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class LevelLine:
    """A level's line of the table of compactions; `bytes` is rounded to hundredths of the unit that was printed."""

    level: int
    files: int
    compacting: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StatsText:
    """What is taken from one such text; None or nothing for what is not in it."""

    levels: tuple[LevelLine, ...]
    write_amplification: float | None
    """Bytes written to tables for each byte flushed."""
    stall_micros: int | None
    """Time for which writes were slowed down or stopped, in steps of a millisecond."""


def stall_micros(text: str) -> int | None:
    """The cumulative stall, in microseconds; None where the text does not tell."""
    found = _STALL.search(text)
    if found is None:
        return None
    hours, minutes, seconds = found.groups()
    return round((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * 1e6)


def parse_stats(text: str) -> StatsText:
    """What is known of one such text. Its second table, of priorities, has no levels and is passed over."""
    levels = tuple(
        LevelLine(int(level), int(files), int(compacting), round(float(size) * _UNITS[unit]))
        for level, files, compacting, size, unit in _LEVEL.findall(text)
    )
    total = _SUM.search(text)
    return StatsText(levels, None if total is None else float(total[1]), stall_micros(text))
