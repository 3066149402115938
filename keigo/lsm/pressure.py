"""How much a database's writers wait for its background work, or are about to.

Two sources. The MANIFEST has the number of tables in level 0, and OPTIONS the numbers at which writers are slowed down
and stopped; this is known at any time. That writers wait for flushes, or for compactions below level 0, only the info
log says (`Waits`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from keigo.lsm.options import CompactionStyle, Engine, FamilyOptions

_SAME: Final = 1.0  # seconds: of one job, the line on waiting and that on its end are milliseconds apart, in any order
_SILENT: Final = 10.0  # seconds; a store whose writers wait is at work, and its log grows


@dataclass(frozen=True, slots=True)
class Pressure:
    """Of one database, the column family that is worst off."""

    level0: float = 0.0
    """0: level 0 is at its compaction trigger or below; 1: at the number of files that slows writers down, or above."""
    stalled: bool = False
    """Whether writers are being slowed down or stopped."""


CALM: Final = Pressure()


def pressure_of(options: FamilyOptions, tables: Mapping[int, int]) -> Pressure:
    """Of a family with so many tables at each level (level -> number).

    Universal compaction counts each level below 0 that has any as one more table (db/version_set.cc,
    `l0_delay_trigger_count`). RocksDB makes nobody wait for level 0 where it does not compact by itself, or deletes
    the oldest tables instead (FIFO). Pebble counts sublevels, which its MANIFEST does not tell: always calm.
    """
    if options.engine is Engine.PEBBLE or options.disable_auto_compactions:
        return CALM
    if options.compaction_style in (CompactionStyle.FIFO, CompactionStyle.NONE):
        return CALM
    count = tables.get(0, 0)
    if options.compaction_style is CompactionStyle.UNIVERSAL:
        count += sum(1 for level, number in tables.items() if level and number)
    trigger = max(0, options.level0_file_num_compaction_trigger)
    limits = [options.level0_slowdown_writes_trigger, options.level0_stop_writes_trigger]
    slow = min((limit for limit in limits if limit >= 0), default=math.inf)  # below 0: there is none
    if count >= slow:
        return Pressure(1.0, stalled=True)
    return Pressure(max(0.0, (count - trigger) / (slow - trigger)) if slow > trigger else 0.0)


def worst(pressures: Iterable[Pressure]) -> Pressure:
    """The highest of each."""
    level0, stalled = 0.0, False
    for pressure in pressures:
        level0, stalled = max(level0, pressure.level0), stalled or pressure.stalled
    return Pressure(level0, stalled) if level0 or stalled else CALM


class Waits:
    """Whether the info log says that writers wait.

    The store weighs it anew whenever a job of the family ends. So what it said last holds until a job has ended and
    nothing was said at that time (`_SAME`), or until the log does not grow any more (`_SILENT`). Times of lines are
    compared with each other only, `now` with `now` only.
    """

    __slots__ = ("_families", "_heard")

    def __init__(self) -> None:
        self._families: dict[str | None, float] = {}
        """Family whose writers wait -> time of the line that said so."""
        self._heard = 0.0

    def said(self, family: str | None, time: float, *, waiting: bool) -> None:
        """A line of that time says that writers of a family (None: of any) wait, or that they do not."""
        if waiting:
            self._families[family] = time
        elif family is None:
            self._families.clear()
        else:
            self._families.pop(family, None)

    def ended(self, families: Collection[str], time: float) -> None:
        """A line of that time says that a job of these families has ended; none: of families that are not known."""
        for family, said in list(self._families.items()):
            if (not families or family is None or family in families) and abs(time - said) > _SAME:
                del self._families[family]

    def grew(self, now: float) -> None:
        """The log has grown."""
        self._heard = now

    def waiting(self, now: float) -> bool:
        """Whether writers of any family wait."""
        return bool(self._families) and now - self._heard <= _SILENT
