"""What other caches of the same size would have done with the same reads. Pure functions of a trace.

A trace is a sequence of reads, each of one piece or several that follow each other: a piece is a chunk or a file, by
number. A read is a hit where all its pieces are cached, as Keigo counts it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from heapq import heappop, heappush
from typing import Final

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
_NEVER: Final = 1 << 62


def hottest(counts: Numbers, sizes: Numbers, room: int) -> frozenset[int]:
    """The pieces that save most reads for the bytes they take, as many as there is room for: the best static cache.

    It is exact where all are of one size. Where they are not (files), what does not fit is passed over.
    """
    found = set()
    for piece in np.argsort(-counts / sizes, kind="stable").tolist():
        if counts[piece] and sizes[piece] <= room:
            found.add(piece)
            room -= int(sizes[piece])
    return frozenset(found)


def static_ratio(first: Numbers, last: Numbers, cached: Collection[int]) -> float:
    """Share of reads, of pieces first..last, that are hits where `cached` and nothing else is."""
    if not len(first):
        return 0.0
    has = np.zeros(int(last.max()) + 2, np.int64)
    has[[piece for piece in cached if piece < len(has)]] = 1
    before = np.concatenate([[0], np.cumsum(has)])
    return float(np.mean(before[last + 1] - before[first] == last - first + 1))


def counts_of(first: Numbers, last: Numbers, pieces: int) -> Numbers:
    """How often each of so many pieces was read."""
    steps = np.zeros(pieces + 1, np.int64)
    np.add.at(steps, first, 1)
    np.add.at(steps, last + 1, -1)
    return np.asarray(np.cumsum(steps)[:pieces])


def belady_ratio(first: Sequence[int], last: Sequence[int], room: int, since: int = 0) -> float:
    """Hits of a cache of `room` pieces of one size that knows the future, of the reads from number `since` on.

    MIN (Belady 1966), which may also leave out what it reads (Mattson et al. 1970): of the cached pieces and the one
    that was read, the one goes that is read again last. Best for reads of one piece; reads of several are nearly so.
    """
    touches = [(read, piece) for read in range(len(first)) for piece in range(first[read], last[read] + 1)]
    again = [_NEVER] * len(touches)
    seen: dict[int, int] = {}
    for number in range(len(touches) - 1, -1, -1):
        piece = touches[number][1]
        again[number] = seen.get(piece, _NEVER)
        seen[piece] = number
    cached: dict[int, int] = {}  # piece -> when it is read again
    last_needed: list[tuple[int, int]] = []  # (-when, piece); outdated ones are passed over
    missed = set()
    for number, (read, piece) in enumerate(touches):
        if cached.pop(piece, None) is None and read >= since:
            missed.add(read)
        when = again[number]
        if when == _NEVER:
            continue
        cached[piece] = when
        heappush(last_needed, (-when, piece))
        while len(cached) > room:
            at, victim = heappop(last_needed)
            if cached.get(victim) == -at:
                del cached[victim]
    reads = len(first) - since
    return 1 - len(missed) / reads if reads > 0 else 0.0
