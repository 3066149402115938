"""Throughput after a shift: how long until it is 90% of what the phase settles at. Pure functions of counts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

BINS: Final = 40
"""A phase is looked at in so many equal parts of its time."""
_AROUND: Final = 3  # bins whose median must be there: one that is fast by chance says nothing
ENOUGH: Final = 0.9


class Settling(msgspec.Struct, frozen=True):
    """One phase."""

    began: float
    """Seconds after the beginning of the run."""
    seconds: float
    steady: float
    """Operations per second: the median over its last half."""
    settled: float
    """Share of the phase's time until the throughput is 90% of that, and not for one moment only; 1: never."""


def phases_of(counts: Sequence[int], interval: float, seconds: float, phase: int) -> list[Settling]:
    """The whole phases of a run.

    counts: operations that ended in each `interval` seconds of the run, whose last interval ends after `seconds`.
    phase: operations of each phase.
    """
    total = sum(counts)
    done = np.array([0, *accumulate(counts)], np.float64)
    at = np.minimum(np.arange(len(done)) * interval, seconds)
    # Time of each operation: straight between the ends of intervals. Where nothing was done for a while, the end of it.
    rising = np.concatenate([np.diff(done) > 0, [True]])
    begins = [float(np.interp(number * phase, done[rising], at[rising])) for number in range(total // phase + 1)]
    return [_settling(begin, end, at, done) for begin, end in pairwise(begins) if end > begin]


def _settling(begin: float, end: float, at: npt.NDArray[np.float64], done: npt.NDArray[np.float64]) -> Settling:
    edges = np.linspace(begin, end, BINS + 1)
    rates = np.diff(np.interp(edges, at, done)) / ((end - begin) / BINS)
    steady = statistics.median(rates[BINS // 2 :].tolist())
    return Settling(begin, end - begin, steady, settled_share(rates.tolist(), ENOUGH * steady))


def settled_share(rates: Sequence[float], enough: float) -> float:
    """Share of equal parts that pass until rates are at least `enough` for `_AROUND` of them, by their median."""
    for first in range(len(rates) - _AROUND + 1):
        if statistics.median(rates[first : first + _AROUND]) >= enough and rates[first] >= enough:
            return first / len(rates)
    return 1.0
