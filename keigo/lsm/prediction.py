"""To which level the compaction goes that is about to start: the picker's own arithmetic, done from outside.

A store creates the first table of a compaction before, or a moment before, its info log tells where it goes.
But the pick is a function of the tables and the options. These functions repeat it for one column family whose
tables are known from the MANIFEST; all are pure.

RocksDB and Speedb, level style (db/version_set.cc, db/compaction/compaction_picker_level.cc). Each level has a
*target* size, and a *score*, in essence its size in units of its target, or the number of L0 tables in units of
`level0_file_num_compaction_trigger`. Tables that a running compaction reads do not count. Where several scores
are at least 1, the levels are tried in the order of the scores, equal ones in no stated order; the first level
that has a table to give is taken:

  - L0 goes to the *base level*, and only one compaction at a time may read L0. Is it L0's turn while one runs,
    or while the base level's part in its way is being compacted, then L0 tables are merged within L0, if enough
    have gathered; else the next level is tried, but not the base level, for that could starve L0;
  - a level L > 0 goes to L+1, from a table that, with what overlaps it in L+1, no running compaction reads.

Which table it is does not matter here: all outputs of a compaction go to one level. A compaction that only
moves tables creates none, so what follows a creation is never one; its effect is in the MANIFEST before the
next pick. With dynamic level bytes targets are counted from the largest level upwards, each one the next one's
divided by the multiplier, and the base level is the first that comes to at most `max_bytes_for_level_base`.

Universal style (db/compaction/compaction_picker_universal.cc). Each L0 table and each other level is a sorted
run. A compaction takes successive runs and goes right above the next older run, or to the last level when it
takes the oldest: to reduce size amplification, else runs of similar sizes, else to have fewer.

LevelDB (db/version_set.cc) has one compaction at a time and takes the level with the highest score; it may put
a flushed memtable below L0.

Arithmetic is that of the release in `FamilyOptions.version`: RocksDB 7.5 and later (before, as 7.5).
What cannot be known, and is not predicted: manual compactions; those for TTL, age, deletions, or garbage in
blobs, of which the picker thinks only when no score is 1; LevelDB's for reads that went wrong too often;
Pebble's. Keys are compared bytewise, whatever the comparator: it matters only to LevelDB's flushes, and where
compactions run in parallel. A table's size stands for its compensated size, which is greater only for a table
half full of deletions.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from keigo.lsm.options import CompactionStyle, Engine, FamilyOptions

UNLIMITED: Final = (1 << 64) - 1
"""The target of a level that the arithmetic does not let grow, or the size of a table that is never split."""

_SCORE_SCALE: Final = 10.0
_MIN_FILES_FOR_INTRA_L0: Final = 4
_MAX_GRANDPARENT_OVERLAP: Final = 10
"""In units of LevelDB's `max_file_size`."""


@dataclass(frozen=True, slots=True)
class TableState:
    """A live table: keys are user keys, `being_compacted` says that a running compaction reads it.

    L0 tables are ordered by `largest_seqno`, those with equal ones by number. Where it is not known, 0 serves,
    but the result of a compaction within L0 is then taken for the newest table, and some predictions go wrong.
    """

    number: int
    level: int
    size: int
    smallest: bytes
    largest: bytes
    being_compacted: bool = False
    largest_seqno: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """The level that outputs will go to, and why."""

    level: int
    reason: str


_Level = Sequence[TableState]


@dataclass(frozen=True, slots=True)
class _Shape:
    """`unnecessary` is the last of the levels that dynamic level bytes want drained; -1 if there are none."""

    base_level: int
    targets: tuple[int, ...]
    unnecessary: int = -1


def base_level(tables: Iterable[TableState], options: FamilyOptions) -> int:
    """The level that compactions of L0 go to."""
    return _shape(_levels(tables, options), options).base_level


def level_targets(tables: Iterable[TableState], options: FamilyOptions) -> tuple[int, ...]:
    """The target size of each level in bytes; that of level 0 means nothing."""
    return _shape(_levels(tables, options), options).targets


def scores(tables: Iterable[TableState], options: FamilyOptions) -> tuple[tuple[int, float], ...]:
    """(level, score) of each level that the picker of level style considers, in the order in which it does so."""
    levels = _levels(tables, options)
    return _scores(levels, _shape(levels, options), options)


def predict_compaction_output(tables: Iterable[TableState], options: FamilyOptions) -> Prediction | None:
    """The output level of the compaction that would be picked now; None if nothing calls for one."""
    levels = _levels(tables, options)
    if options.disable_auto_compactions or options.engine is Engine.PEBBLE:
        return None
    match options.compaction_style:
        case CompactionStyle.LEVEL:
            return _pick_leveled(levels, options)
        case CompactionStyle.UNIVERSAL:
            return _pick_universal(levels, options)
        case CompactionStyle.FIFO:
            return Prediction(0, "FIFO has level 0 only")
        case _:
            return None


def predict_flush_output(
    tables: Iterable[TableState], options: FamilyOptions, smallest: bytes = b"", largest: bytes | None = None
) -> Prediction:
    """The level of a flushed memtable with the keys `smallest` to `largest`; unknown keys are taken to be all.

    0, but in LevelDB (db/version_set.cc, PickLevelForMemTableOutput): there a memtable that overlaps neither L0
    nor the level below goes down until it does, or until it overlaps too much of the level after the next.
    """
    levels = _levels(tables, options)
    if _overlapping(levels[0], smallest, largest):
        return Prediction(0, "overlaps level 0")
    deepest = min(options.max_mem_compact_level, options.num_levels - 1)
    for level in range(deepest):
        if _overlapping(levels[level + 1], smallest, largest):
            return Prediction(level, f"overlaps level {level + 1}")
        grandparents = _overlapping(levels[level + 2], smallest, largest) if level + 2 < len(levels) else ()
        if _bytes(grandparents) > _MAX_GRANDPARENT_OVERLAP * options.target_file_size_base:
            return Prediction(level, f"overlaps too much of level {level + 2}")
    return Prediction(deepest, "no flush goes deeper")


def target_file_size(options: FamilyOptions, level: int, base_level: int = 1) -> int:
    """The size in bytes at which a store ends a table of a level and begins the next.

    RocksDB may exceed it by up to the same again, to align with the level below. A table in L0 is not split
    (`UNLIMITED` in universal style): for level style this is the size of a memtable, which a flush seldom exceeds.
    """
    if level == 0:
        universal = options.compaction_style is CompactionStyle.UNIVERSAL
        return UNLIMITED if universal else options.write_buffer_size
    dynamic = options.level_compaction_dynamic_level_bytes and options.compaction_style is CompactionStyle.LEVEL
    index = level - base_level if dynamic and level >= base_level else level
    exponent = index + 1 if options.engine is Engine.PEBBLE else index - 1
    size = options.target_file_size_base
    for _ in range(exponent):
        size = _multiply(size, options.target_file_size_multiplier)
    return size


def _multiply(size: int, factor: float) -> int:
    """A product as the stores compute it: 0 for a negative factor, and no change where 64 bits overflow."""
    if size == 0 or factor <= 0:
        return 0
    return size if UNLIMITED / size < factor else int(size * factor)


def _ratio(size: float, target: float) -> float:
    return size / target if target else math.inf if size else 0.0


def _bytes(tables: _Level) -> int:
    return sum(table.size for table in tables)


def _idle(tables: _Level) -> _Level:
    return [table for table in tables if not table.being_compacted]


def _overlapping(tables: _Level, smallest: bytes, largest: bytes | None) -> _Level:
    return [each for each in tables if each.largest >= smallest and (largest is None or each.smallest <= largest)]


def _since(options: FamilyOptions, *version: int) -> bool:
    return not options.version or options.version >= version


def _levels(tables: Iterable[TableState], options: FamilyOptions) -> list[list[TableState]]:
    """The tables of each level, those of L0 from the newest to the oldest."""
    levels: list[list[TableState]] = [[] for _ in range(options.num_levels)]
    for table in tables:
        if 0 <= table.level < options.num_levels:
            levels[table.level].append(table)
    levels[0].sort(key=lambda table: (table.largest_seqno, table.number), reverse=True)
    return levels


def _shape(levels: Sequence[_Level], options: FamilyOptions) -> _Shape:
    """VersionStorageInfo::CalculateBaseBytes."""
    if options.compaction_style is CompactionStyle.LEVEL and options.level_compaction_dynamic_level_bytes:
        return _dynamic_shape([_bytes(level) for level in levels], options)
    targets = [options.max_bytes_for_level_base] * min(2, options.num_levels)
    additional = options.max_bytes_for_level_multiplier_additional
    for level in range(1, options.num_levels - 1):
        target = _multiply(targets[level], options.max_bytes_for_level_multiplier)
        targets.append(_multiply(target, additional[level] if level < len(additional) else 1))
    return _Shape(1, tuple(targets))


def _dynamic_shape(sizes: Sequence[int], options: FamilyOptions) -> _Shape:
    last = options.num_levels - 1
    filled = [level for level in range(1, last + 1) if sizes[level]]
    if not filled:
        return _Shape(last, (UNLIMITED,) * options.num_levels)
    multiplier = options.max_bytes_for_level_multiplier
    most = options.max_bytes_for_level_base
    least = int(most / multiplier)
    size = max(sizes[1:])
    unnecessary = -1
    for level in range(last - 1, filled[0] - 1, -1):
        size = int(size / multiplier)
        # With a tier of recent data kept out of the last level, the one above it is always of use.
        needed = options.preclude_last_level_data_seconds > 0 and level == last - 1
        if unnecessary < 0 and size <= least and not needed and _since(options, 8, 2):
            unnecessary = level
    base = filled[0]
    if size <= least:
        size = least + 1
    else:
        while base > 1 and size > most:
            base -= 1
            size = int(size / multiplier)
        size = max(1, min(size, most))
    targets = [UNLIMITED] * options.num_levels
    for level in range(base, options.num_levels):
        # No target is below that of L1, or L0 would be starved of compactions.
        targets[level] = max(size, most)
        size = _multiply(size, multiplier)
    return _Shape(base, tuple(targets), unnecessary)


def _scores(levels: Sequence[_Level], shape: _Shape, options: FamilyOptions) -> tuple[tuple[int, float], ...]:
    """VersionStorageInfo::ComputeCompactionScore, and the order into which it brings the levels."""
    ranked = []
    incoming = _bytes(levels[0])
    for level in range(options.num_levels - 1):
        if level == 0:
            ranked.append((0, _level0_score(levels, shape, options)))
            continue
        ranked.append((level, _level_score(level, levels[level], incoming, shape, options)))
        size, target = _bytes(levels[level]), shape.targets[level]
        incoming += size if level <= shape.unnecessary else max(0, size - target)
    # An exchange sort as the store's own, for it decides on the order of equal scores.
    for i in range(len(ranked)):
        for j in range(i + 1, len(ranked)):
            if ranked[i][1] < ranked[j][1]:
                ranked[i], ranked[j] = ranked[j], ranked[i]
    return tuple(ranked)


def _level0_score(levels: Sequence[_Level], shape: _Shape, options: FamilyOptions) -> float:
    idle = _idle(levels[0])
    size, most = _bytes(idle), options.max_bytes_for_level_base
    score = len(idle) / max(1, options.level0_file_num_compaction_trigger)
    if options.engine is Engine.LEVELDB:
        return score
    if not options.level_compaction_dynamic_level_bytes:
        return max(score, _ratio(size, most))
    if size >= most:
        score = max(score, 1.01)
    target = shape.targets[shape.base_level]
    if size > target:
        score = max(score, _ratio(size, max(_bytes(levels[shape.base_level]), target)))
    return score * _SCORE_SCALE if score > 1 else score


def _level_score(level: int, tables: _Level, incoming: int, shape: _Shape, options: FamilyOptions) -> float:
    size, target = _bytes(_idle(tables)), shape.targets[level]
    if not options.level_compaction_dynamic_level_bytes or size < target:
        score = _ratio(size, target)
    else:
        score = _ratio(size, target + incoming) * _SCORE_SCALE
    if size and level <= shape.unnecessary:
        score = max(score, _SCORE_SCALE * (1.001 + 0.001 * (shape.unnecessary - level)))
    return score


def _pick_leveled(levels: Sequence[_Level], options: FamilyOptions) -> Prediction | None:
    """LevelCompactionBuilder::SetupInitialFiles."""
    shape = _shape(levels, options)
    level0_waits = False
    for level, score in _scores(levels, shape, options):
        if score < 1:
            break
        if level0_waits and level == shape.base_level:
            continue
        output = shape.base_level if level == 0 else level + 1
        reason = f"level {level} has score {score:.2f}"
        if _can_give(levels, level, output):
            return Prediction(output, reason)
        if level == 0:
            level0_waits = True
            if _can_merge_level0(levels[0], options):
                return Prediction(0, reason + " and the base level is busy")
    return None


@dataclass(slots=True)
class _Cut:
    """Tables of a level that share keys at their ends, and so go together (ExpandInputsToCleanCut)."""

    smallest: bytes
    largest: bytes
    being_compacted: bool


def _cuts(tables: _Level) -> list[_Cut]:
    cuts: list[_Cut] = []
    for table in sorted(tables, key=lambda table: table.smallest):
        if cuts and table.smallest <= cuts[-1].largest:
            cuts[-1].largest = max(cuts[-1].largest, table.largest)
            cuts[-1].being_compacted |= table.being_compacted
        else:
            cuts.append(_Cut(table.smallest, table.largest, table.being_compacted))
    return cuts


def _can_give(levels: Sequence[_Level], level: int, output: int) -> bool:
    """Whether a level has a table that may be compacted now (LevelCompactionBuilder::PickFileToCompact)."""
    if level == 0 and len(_idle(levels[0])) < len(levels[0]):
        return False
    blocked = [cut for cut in _cuts(levels[output]) if cut.being_compacted] if output < len(levels) else []
    ends = [cut.largest for cut in blocked]
    for cut in levels[0] if level == 0 else _cuts(levels[level]):
        after = bisect_left(ends, cut.smallest)
        if not cut.being_compacted and (after == len(ends) or cut.largest < blocked[after].smallest):
            return True
    return False


def _can_merge_level0(tables: _Level, options: FamilyOptions) -> bool:
    """LevelCompactionBuilder::PickIntraL0Compaction: tables from the newest on, while the work per table falls."""
    if len(tables) < options.level0_file_num_compaction_trigger + 2 or not tables or tables[0].being_compacted:
        return False
    most = options.max_compaction_bytes or 25 * options.target_file_size_base
    size, work, count = tables[0].size, UNLIMITED, 1
    for table in tables[1:]:
        size += table.size
        if table.being_compacted or size // count > work or size > most:
            break
        work = size // count
        count += 1
    return count >= _MIN_FILES_FOR_INTRA_L0


@dataclass(frozen=True, slots=True)
class _SortedRun:
    level: int
    size: int
    being_compacted: bool


def _sorted_runs(levels: Sequence[_Level], last: int) -> list[_SortedRun]:
    """From the newest to the oldest."""
    runs = [_SortedRun(0, table.size, table.being_compacted) for table in levels[0]]
    for level in range(1, last + 1):
        if size := _bytes(levels[level]):
            runs.append(_SortedRun(level, size, any(table.being_compacted for table in levels[level])))
    return runs


def _pick_universal(levels: Sequence[_Level], options: FamilyOptions) -> Prediction | None:
    """UniversalCompactionBuilder::PickCompaction."""
    last = options.num_levels - 1
    if options.allow_ingest_behind and last > 0:
        last -= 1
    runs = _sorted_runs(levels, last)
    if not runs or len(runs) < options.level0_file_num_compaction_trigger:
        return None
    universal = options.universal
    after, reason = _reduce_size_amplification(runs, options), "size amplification"
    if after is None:
        after = _merge_runs(runs, universal.size_ratio, universal.max_merge_width, options)
        reason = "runs of similar sizes"
    if after is None:
        excess = sum(not run.being_compacted for run in runs) - _max_runs(runs, options)
        if excess > 0:
            width = min(universal.max_merge_width, excess + 1)
            after, reason = _merge_runs(runs, math.inf, width, options), "too many runs"
    if after is None:
        return None
    return Prediction(last if after == len(runs) else max(0, runs[after].level - 1), reason)


def _reduce_size_amplification(runs: Sequence[_SortedRun], options: FamilyOptions) -> int | None:
    """The index after the last run to compact."""
    end = len(runs) - 1
    tiered = options.preclude_last_level_data_seconds > 0 and options.num_levels > 2 and end > 0
    if tiered and runs[end].level == options.num_levels - 1:
        end -= 1
    if runs[end].being_compacted:
        return None
    start = end
    while start > 0 and not runs[start - 1].being_compacted:
        start -= 1
    # Older releases look from the newest run on, and give up at a second gap.
    if not _since(options, 8, 7) and not all(run.being_compacted for run in runs[:start]):
        return None
    newer = sum(run.size for run in runs[start:end])
    if start == end or newer * 100 < options.universal.max_size_amplification_percent * runs[end].size:
        return None
    return end + 1


def _merge_runs(runs: Sequence[_SortedRun], ratio: float, width: int, options: FamilyOptions) -> int | None:
    """PickCompactionToReduceSortedRuns: the index after the last run to compact."""
    similar = options.universal.stop_style == "kCompactionStopStyleSimilarSize"
    growth = (100 + ratio) / 100
    for start, first in enumerate(runs):
        if first.being_compacted:
            continue
        size, after = first.size, start + 1
        while after < len(runs) and after - start < width:
            run = runs[after]
            if run.being_compacted or size * growth < run.size or (similar and run.size * growth < size):
                break
            size = run.size if similar else size + run.size
            after += 1
        if after - start >= max(2, options.universal.min_merge_width):
            return after
    return None


def _max_runs(runs: Sequence[_SortedRun], options: FamilyOptions) -> int:
    universal = options.universal
    if universal.max_read_amp > 0:
        return universal.max_read_amp
    if universal.max_read_amp < 0 or universal.stop_style != "kCompactionStopStyleTotalSize":
        return options.level0_file_num_compaction_trigger
    largest = max(run.size for run in runs)
    count, size, total = 1, float(options.write_buffer_size), 0.0
    while 0 < size < largest:
        total += size
        size = (100.0 + universal.size_ratio) / 100.0 * total
        count += 1
    return count
