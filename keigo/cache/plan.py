"""What goes into the cache and what goes out: a pure function of heat, room and costs.

A chunk that is read r times a second saves, while it is in the cache,

    v = r (time of its read at home - time of it on the cache's device)        seconds of the devices per second

and its copy takes c seconds of the devices, once. The heat of a chunk is the reads that were counted, halved after
HALF_LIFE, or later where there are few; if they are of HALF_LIFE + t seconds, r is heat / (HALF_LIFE + t). What was
read lately will go on being read for HORIZON, or for as long as the file is expected to live, where that is less: h.
So a chunk

    is worth its copy                     where v h > c
    displaces the one that is worth least where (v - MARGIN v') h > c, v' being that one's

A chunk that went out not long ago and is asked for again went out too early: MARGIN and c are nothing for it. Chunks
are all of one size, so the best go first until there is no room. Where most chunks of a file are in, or are to be, and
there is room to spare, so are the others: one sequential copy, and no more work with the file.

Files are looked at some at a time, so that a plan for many needs little memory, and no one step of it takes long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

HALF_LIFE: Final = 60.0
"""Seconds; that of the heat of files (`placement.heat`), for the same reasons."""
HORIZON: Final = 300.0
"""Seconds for which heat is believed to last: some half-lives. A workload that shifts faster makes a copy in vain; one
that does not pays for it by then."""
MARGIN: Final = 1.25
"""By how much a chunk must be better than the one that goes for it: counts are noisy, and two that are equally warm
would take each other's place for ever."""
MOST_OF: Final = 0.75
"""Share of a file's chunks from which on the others come, too."""
_BATCH: Final = 1 << 17
"""Chunks that are looked at at once: some MiB, some milliseconds."""
_KEPT: Final = 16
"""Missing chunks of mostly cached files that are remembered, as a multiple of those that can be copied."""
_ROW: Final = np.dtype([("file", "i8"), ("number", "i8"), ("value", "f8"), ("cost", "f8"), ("ghost", "?")])


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that has chunks which are warm or cached. Arrays have an element for each chunk."""

    file: int
    heat: NDArray[np.uint16]
    cached: NDArray[np.bool_]
    ghosts: NDArray[np.bool_]
    """Chunks that went out not long ago."""
    saving: float
    """Seconds that a read from the cache takes less than one from home."""
    copy: float
    """Seconds of both devices that the copy of a chunk takes."""
    life: float
    """Seconds that the file is expected to live."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Chunks by (file, number)."""

    admit: tuple[tuple[int, int], ...]
    """In the order in which they are to be copied: runs of a file together."""
    evict: tuple[tuple[int, int], ...]
    """Those that make room for them, the one that is worth least first."""


def plan(files: Iterable[Candidate], free: int, most: int, since: float) -> Plan:
    """What is to be copied next, `most` chunks at most, where there is room for `free` more.

    `since`: seconds that the heat is of, beyond HALF_LIFE.
    """
    wanted = victims = np.empty(0, _ROW)
    rests: list[tuple[int, NDArray[np.intp]]] = []
    """Of files that will be mostly cached, if all goes in that pays for it, what does not."""
    left = _KEPT * min(free, most)
    for batch in _batches(files):
        rows, cached = _rated(batch, since)
        pays = ~cached & (rows["value"] > rows["cost"])
        wanted = _first(np.concatenate((wanted, rows[pays])), _worth, most)
        victims = _first(np.concatenate((victims, rows[cached])), _value, most)
        start = 0
        for each in batch:
            end = start + len(each.heat)
            rest = np.flatnonzero(~(each.cached | pays[start:end]))
            start = end
            if left > 0 and each.saving > 0 and 0 < len(rest) <= min(free, most, (1 - MOST_OF) * len(each.heat)):
                rests.append((each.file, rest))
                left -= len(rest)
    wanted = _sorted(wanted, _worth)
    victims = _sorted(victims, _value)[: max(0, len(wanted) - free)]
    margin = np.where(wanted["ghost"][free:], 1.0, MARGIN)[: len(victims)]
    better = wanted[free:][: len(victims)]
    pays = better["value"] - margin * victims["value"] > better["cost"]
    # Beyond the first that does not pay, what would come is worth less, and what it would displace is worth more.
    exchanged = len(pays) if pays.all() else int(np.argmin(pays))
    admit = [(int(row["file"]), int(row["number"])) for row in wanted[: free + exchanged]]
    room = min(free, most) - len(wanted)
    for file, rest in rests:
        if len(rest) <= room:
            admit += ((file, int(number)) for number in rest)
            room -= len(rest)
    evict = ((int(row["file"]), int(row["number"])) for row in victims[:exchanged])
    return Plan(tuple(sorted(admit)), tuple(evict))


def _batches(files: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    batch: list[Candidate] = []
    size = 0
    for each in files:
        batch.append(each)
        size += len(each.heat)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _rated(files: list[Candidate], since: float) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """All chunks of some files, and which of them are cached."""
    lengths = [len(each.heat) for each in files]
    rows = np.empty(sum(lengths), _ROW)
    rows["file"] = np.repeat([each.file for each in files], lengths)
    rows["number"] = np.concatenate([np.arange(length) for length in lengths])
    rows["ghost"] = np.concatenate([each.ghosts for each in files])
    per_read = np.repeat([max(0.0, each.saving) / (HALF_LIFE + since) for each in files], lengths)
    rows["value"] = np.concatenate([each.heat for each in files]) * per_read
    per_copy = np.repeat([each.copy / min(HORIZON, each.life) for each in files], lengths)
    rows["cost"] = np.where(rows["ghost"], 0.0, per_copy)
    return rows, np.concatenate([each.cached for each in files])


def _worth(rows: NDArray[np.void]) -> NDArray[np.float64]:
    """The less, the better to be copied."""
    found: NDArray[np.float64] = rows["cost"] - rows["value"]
    return found


def _value(rows: NDArray[np.void]) -> NDArray[np.float64]:
    """The less, the better to go."""
    found: NDArray[np.float64] = rows["value"]
    return found


def _first(
    rows: NDArray[np.void], key: Callable[[NDArray[np.void]], NDArray[np.float64]], most: int
) -> NDArray[np.void]:
    """The `most` rows with the least keys, in any order."""
    if len(rows) <= most:
        return rows
    return rows[np.argpartition(key(rows), most - 1)[:most]]


def _sorted(rows: NDArray[np.void], key: Callable[[NDArray[np.void]], NDArray[np.float64]]) -> NDArray[np.void]:
    return rows[np.argsort(key(rows), kind="stable")]
