"""Which record an operation touches: the request distributions of YCSB, drawn by the block.

Source: YCSB (Cooper et al., SoCC 2010), package `site.ycsb.generator` and `CoreWorkload`. The zipfian one is "Quickly
Generating Billion-Record Synthetic Databases" (Gray et al., SIGMOD 1994). `Uniform`, `Hotspot` and
`Sequential` stay within the records that were loaded, as in YCSB; `ScrambledZipfian`, `Latest` and `Exponential`
follow inserts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Protocol

import numpy as np

from workloads.generators.workload import View, WorkloadError, fraction, positive
from workloads.operations import Floats, Int64s
from workloads.records import fnv64

THETA: Final = 0.99
"""YCSB's zipfian constant."""

SCRAMBLED_ITEMS: Final = 10_000_000_000
"""Ranks that YCSB draws before it scrambles them: so many that the number of records does not change what is hot."""

_REDRAWS: Final = 64


class Distribution(Protocol):
    """Draws indices of a thread's `View`. Not safe for two threads at once."""

    def draw(self, random: np.random.Generator, visible: Int64s) -> Int64s:
        """One index for each operation: `visible[j]` records exist before operation j, so it is in [0, visible[j])."""


def zeta(items: Int64s | int, theta: float) -> Floats:
    """Sum of k^-theta for k = 1..items, elementwise, to about 1e-13 of its value.

    The first 64 terms are summed, the rest is the Euler-Maclaurin formula, so 10^10 items cost no more than 100.
    """
    n = np.atleast_1d(np.asarray(items, dtype=np.float64))
    first = 64.0
    terms = np.cumsum(np.arange(1, first + 1) ** -theta)
    small = terms[np.minimum(n, first).astype(np.int64) - 1]
    top = np.maximum(n, first)
    integral = (top ** (1 - theta) - first ** (1 - theta)) / (1 - theta)
    ends = (top**-theta - first**-theta) / 2
    slopes = -theta * (top ** (-theta - 1) - first ** (-theta - 1)) / 12
    thirds = theta * (theta + 1) * (theta + 2) * (top ** (-theta - 3) - first ** (-theta - 3)) / 720
    return np.asarray(small + integral + ends + slopes + thirds)


@dataclass(frozen=True)
class Zipfian:
    """Ranks 0 (hottest) to items - 1, by the method of Gray et al.: exact for ranks 0 and 1, an inverse power beyond.

    The power approximates: at theta 0.99 and 1000 items rank 2 is 17% more likely than k^-theta says, rank 10 1%,
    rank 20 1% less. YCSB draws the same. Raises WorkloadError unless items >= 1, theta > 0 and theta != 1.
    """

    items: int
    theta: float = THETA

    def __post_init__(self) -> None:
        positive(items=self.items, theta=self.theta)
        if self.theta == 1:
            raise WorkloadError("theta 1: the method of Gray et al. divides by 1 - theta; take 0.999 or 1.001")

    @cached_property
    def _zeta(self) -> float:
        return float(zeta(self.items, self.theta)[0])

    @cached_property
    def _eta(self) -> float:
        return float(_eta(np.array([float(self.items)]), np.array([self._zeta]), self.theta)[0])

    def ranks(self, random: np.random.Generator, count: int) -> Int64s:
        """`count` ranks."""
        return _ranks(
            random.random(count), np.float64(self.items), np.float64(self._zeta), np.float64(self._eta), self.theta
        )


def _eta(items: Floats, zetas: Floats, theta: float) -> Floats:
    """Gray's eta, with the zeta of that number of items; 0 where there are so few that it is not used."""
    gap = 1 - (1 + 0.5**theta) / zetas
    return np.where(items > 2, (1 - (2 / items) ** (1 - theta)) / np.where(items > 2, gap, 1), 0.0)


def _ranks(
    u: Floats, items: Floats | np.float64, zetas: Floats | np.float64, etas: Floats | np.float64, theta: float
) -> Int64s:
    """Ranks of `u` in [0, 1); the parameters are one for all, or one for each."""
    mass = u * zetas
    power = (etas * u - etas + 1) ** (1 / (1 - theta))
    power *= items
    # u below 1 can round to the number of items.
    found = np.minimum(power, items - 1).astype(np.int64)
    found[mass < 1 + 0.5**theta] = 1
    found[mass < 1] = 0
    return found


@dataclass(frozen=True)
class Uniform:
    """Every loaded record alike."""

    records: int

    def draw(self, random: np.random.Generator, visible: Int64s) -> Int64s:
        """See Distribution."""
        return random.integers(0, self.records, len(visible), dtype=np.int64)


@dataclass(frozen=True)
class ScrambledZipfian:
    """Zipfian ranks of 10^10 items, hashed over `space` record numbers: some records are hot, and they lie anywhere.

    `space` is the records loaded and those that the run is expected to insert, so that inserts do not change what is
    hot; a record that the thread cannot see yet is drawn anew, as YCSB does. After 64 times in vain, which takes a
    `space` of many times the records, one of the visible is taken evenly.
    """

    space: int
    view: View
    theta: float = THETA
    hottest: Zipfian = field(init=False)

    def __post_init__(self) -> None:
        positive(space=self.space)
        object.__setattr__(self, "hottest", Zipfian(SCRAMBLED_ITEMS, self.theta))

    def draw(self, random: np.random.Generator, visible: Int64s) -> Int64s:
        """See Distribution."""
        if self.space <= self.view.records:
            return self._numbers(random, len(visible))
        found = self.view.index(self._numbers(random, len(visible)))
        for _ in range(_REDRAWS):
            (unseen,) = np.nonzero((found < 0) | (found >= visible))
            if not len(unseen):
                return found
            found[unseen] = self.view.index(self._numbers(random, len(unseen)))
        (unseen,) = np.nonzero((found < 0) | (found >= visible))
        found[unseen] = random.integers(0, visible[unseen])
        return found

    def _numbers(self, random: np.random.Generator, count: int) -> Int64s:
        numbers = fnv64(self.hottest.ranks(random, count))
        numbers %= self.space
        return numbers


@dataclass(frozen=True)
class Latest:
    """Zipfian by age: the record inserted last is the hottest, and the number of items grows with every insert.

    With n threads a thread's newest records are its own, so n records share the first rank.
    """

    theta: float = THETA

    def __post_init__(self) -> None:
        Zipfian(1, self.theta)  # it checks theta

    def draw(self, random: np.random.Generator, visible: Int64s) -> Int64s:
        """See Distribution."""
        if not len(visible):
            return np.empty(0, np.int64)
        # Parameters for each number of records that occurs: a block with 5% inserts has some 400.
        low, high = int(visible[0]), int(visible[-1])
        items = np.arange(low, high + 1, dtype=np.float64)
        zetas = zeta(np.arange(low, high + 1, dtype=np.int64), self.theta)
        etas = _eta(items, zetas, self.theta)
        at = visible - low
        ranks = _ranks(random.random(len(visible)), items[at], zetas[at], etas[at], self.theta)
        return visible - 1 - ranks


@dataclass(frozen=True)
class Exponential:
    """By age, exponentially: `percentile` % of operations touch the newest `share` of the records that were loaded.

    YCSB draws anew what is older than the oldest record; here the distribution is cut there, which is the same.
    """

    records: int
    percentile: float = 95.0
    share: float = 0.8571428571

    def __post_init__(self) -> None:
        positive(records=self.records, share=self.share)
        if not 0 < self.percentile < 100:
            raise WorkloadError(f"percentile {self.percentile}: must be above 0 and below 100")

    def draw(self, random: np.random.Generator, visible: Int64s) -> Int64s:
        """See Distribution."""
        rate = -np.log1p(-self.percentile / 100) / (self.records * self.share)
        kept = -np.expm1(-rate * visible.astype(np.float64))
        age = np.log1p(-random.random(len(visible)) * kept) / -rate
        return np.asarray(visible - 1 - np.minimum(age.astype(np.int64), visible - 1))


@dataclass(frozen=True)
class Hotspot:
    """`hot_operations` of the operations touch the first `hot_records` of the loaded records, the rest the others."""

    records: int
    hot_records: float = 0.2
    hot_operations: float = 0.8

    def __post_init__(self) -> None:
        positive(records=self.records)
        fraction(hot_records=self.hot_records, hot_operations=self.hot_operations)

    def draw(self, random: np.random.Generator, visible: Int64s) -> Int64s:
        """See Distribution. Where one of the two parts is empty, all operations go to the other."""
        border = int(self.records * self.hot_records)
        hot = random.random(len(visible)) < self.hot_operations
        hot = (hot & (border > 0)) | (border >= self.records)
        return random.integers(np.where(hot, 0, border), np.where(hot, max(border, 1), self.records), dtype=np.int64)


@dataclass
class Sequential:
    """The loaded records in order, over and over: thread i of n takes i, i + n, ... of an endless round."""

    records: int
    thread: int = 0
    threads: int = 1
    _done: int = field(default=0, init=False)

    def draw(self, random: np.random.Generator, visible: Int64s) -> Int64s:  # noqa: ARG002 (nothing is random here)
        """See Distribution."""
        steps = np.arange(self._done, self._done + len(visible), dtype=np.int64)
        self._done += len(visible)
        return (self.thread + steps * self.threads) % self.records
