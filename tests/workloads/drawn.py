"""Operations of a workload as one batch, for tests."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import stats

from workloads.generators.workload import Workload
from workloads.operations import Batch, Int64s, take


def joined(batches: Iterable[Batch]) -> Batch:
    """All of `batches` as one."""
    parts = list(batches)
    times = [part.at for part in parts if part.at is not None]
    assert len(times) in (0, len(parts))
    return Batch(
        np.concatenate([part.op for part in parts]),
        np.concatenate([part.key for part in parts]),
        np.concatenate([part.size for part in parts]),
        np.concatenate([part.length for part in parts]),
        np.concatenate(times) if times else None,
    )


def first(workload: Workload, count: int, thread: int = 0, threads: int = 1) -> Batch:
    """The first `count` operations of a thread."""
    return joined(take(workload.run(thread, threads), count))


def equal(one: Batch, other: Batch) -> bool:
    same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("op", "key", "size", "length"))
    if one.at is None or other.at is None:
        return same and one.at is None and other.at is None
    return same and np.array_equal(one.at, other.at)


def fits(counts: Int64s, shares: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """p of a chi-square test of `counts` against `shares` (sum 1); cells that expect fewer than 10 are put together."""
    expected = shares * counts.sum()
    order = np.argsort(-expected)
    expected, counts = expected[order], counts[order]
    rare = int(np.searchsorted(-expected, -10.0, side="right"))
    if rare < len(expected):
        start = max(0, rare - 1)
        expected = np.append(expected[:start], expected[start:].sum())
        counts = np.append(counts[:start], counts[start:].sum())
    return float(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


def near(count: int, of: int, share: float) -> bool:
    """Whether `count` of `of` is what a coin with `share` gives, within 4 standard deviations."""
    return abs(count - of * share) <= 4 * float(np.sqrt(of * share * (1 - share))) + 1e-9
