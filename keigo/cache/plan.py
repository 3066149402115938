"""What goes into the cache and what goes out: a pure function of heat, room and costs.

A chunk that is read r times a second saves, while it is in the cache,

    v = r (time of its read at home - time of it on the cache's device)        seconds of the devices per second

and its copy takes c seconds of the devices, once. The heat of a chunk is the reads that were counted, halved each
HALF_LIFE; t seconds after the last halving a steady r is heat / (HALF_LIFE + t). What was read lately will go on being
read for HORIZON, or for as long as the file is expected to live, where that is less: h. So a chunk

    is worth its copy                     where v h > c
    displaces the one that is worth least where (v - MARGIN v') h > c, v' being that one's

A chunk that went out not long ago and is asked for again went out too early: MARGIN and c are nothing for it. Chunks
are all of one size, so the best go first until there is no room. Where most chunks of a file are in, or are to be, and
there is room to spare, so are the others: one sequential copy, and no more work with the file.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def plan(files: Sequence[Candidate], free: int, most: int, since: float) -> Plan:
    """What is to be copied next, `most` chunks at most, where there is room for `free` more.

    `since`: seconds since the heat was last halved.
    """
    if not files:
        return Plan((), ())
    lengths = [len(each.heat) for each in files]
    owner = np.repeat(np.arange(len(files)), lengths)
    number = np.concatenate([np.arange(length) for length in lengths])
    cached = np.concatenate([each.cached for each in files])
    ghosts = np.concatenate([each.ghosts for each in files])
    per_read = np.repeat([max(0.0, each.saving) / (HALF_LIFE + since) for each in files], lengths)
    value = np.concatenate([each.heat for each in files]) * per_read
    horizon = np.repeat([min(HORIZON, each.life) for each in files], lengths)
    cost = np.where(ghosts, 0.0, np.repeat([each.copy for each in files], lengths)) / horizon
    wanted = np.flatnonzero(~cached & (value > cost))
    wanted = _best(wanted, value[wanted] - cost[wanted], most)
    victims = np.flatnonzero(cached)
    victims = victims[np.argsort(value[victims], kind="stable")[: max(0, len(wanted) - free)]]
    admit, evict = list(wanted[:free]), []
    for candidate, victim in zip(wanted[max(0, free) :], victims, strict=False):
        margin = 1.0 if ghosts[candidate] else MARGIN
        if value[candidate] - margin * value[victim] <= cost[candidate]:
            break  # the next one is worth less, and what it would displace is worth more
        admit.append(candidate)
        evict.append(victim)
    if len(wanted) < min(free, most):
        admit += _rest(files, lengths, cached, admit, min(free, most) - len(admit))
    order = sorted(admit)
    return Plan(
        tuple((files[owner[at]].file, int(number[at])) for at in order),
        tuple((files[owner[at]].file, int(number[at])) for at in evict),
    )


def _best(which: NDArray[np.intp], worth: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """The `most` that are worth most, the best first."""
    if len(which) > most:
        chosen = np.argpartition(worth, len(which) - most)[len(which) - most :]
        which, worth = which[chosen], worth[chosen]
    return which[np.argsort(-worth, kind="stable")]


def _rest(
    files: Sequence[Candidate],
    lengths: Sequence[int],
    cached: NDArray[np.bool_],
    admit: Sequence[np.intp],
    room: int,
) -> list[np.intp]:
    """What is missing of files that are mostly cached, or will be, as far as there is room for all of it."""
    will = cached.copy()
    will[np.asarray(admit, dtype=np.intp)] = True
    found: list[np.intp] = []
    start = 0
    for each, length in zip(files, lengths, strict=True):
        missing = np.flatnonzero(~will[start : start + length]) + start
        if each.saving > 0 and 0 < len(missing) <= (1 - MOST_OF) * length and len(missing) <= room - len(found):
            found.extend(missing)
        start += length
    return found
