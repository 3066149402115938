"""The placement and tuning with the highest predicted throughput, by trying them.

A `Plan` is a tree's shape (style, growth factor, file size), its threads, the tier of each level, and a read cache.
What a plan does is `predict`'s; which plans fit is told by `space`. The search goes through growth factors and all
lists of tiers that never go back to a faster one, then through threads, file sizes and caches at the best of these,
and then through growth and tiers again. Of plans within `ALIKE` of the best, the one that takes least is recommended.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Final, NamedTuple

from keigo.devices.lsm_costs import Style, Tree, cycle_of, levels, shares
from keigo.devices.model import DeviceModel
from keigo.devices.predict import (
    CPU,
    FOREGROUND,
    Demand,
    Hits,
    Mix,
    Prediction,
    Threads,
    Work,
    demands_of,
    predict,
    throughput,
)
from keigo.errors import KeigoError
from keigo.units import format_size

STYLES: Final[Mapping[str, tuple[Style, ...]]] = {
    "leveled": ("leveled",),
    "universal": ("universal",),
    "any": ("leveled", "universal"),
}
GROWTHS: Final = range(2, 21)
COARSE_GROWTHS: Final = (2, 4, 6, 8, 10, 13, 16, 20)
"""Tried first: 1 TiB on three tiers takes 1.1 to 1.4 s of CPU, and with all of them each time 1.6 to 2.4 s."""
UNIVERSAL_RUNS: Final = (4, 8, 16)
"""level0_file_num_compaction_trigger of universal compaction: runs from which on it merges. It has no growth factor."""
COMPACTIONS: Final = range(1, 17)
SUBCOMPACTIONS: Final = (1, 2, 4, 8)
MIB: Final = 1 << 20
FILE_SIZES: Final = (16 * MIB, 32 * MIB, 64 * MIB, 128 * MIB, 256 * MIB)
CACHE_SHARES: Final = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of what the levels leave free on a tier."""
ALIKE: Final = 0.01

MEMTABLE: Final = 64 * MIB
"""RocksDB's write_buffer_size."""
LEVEL0_FILES: Final = 4
"""RocksDB's level0_file_num_compaction_trigger."""
LEVEL0_SLOWDOWN: Final = 20
"""RocksDB's level0_slowdown_writes_trigger: so many files level 0 may have at once."""
LOGS: Final = 4
"""Write-ahead logs at once, each of a memtable: of the active one, of one that is flushed, and archived or recycled."""
LEVEL_COUNT: Final = 7
"""RocksDB's num_levels."""
BLOCK: Final = 4096
CHUNK: Final = 64 << 10
"""What the read cache holds of a file at once."""


class AdviseError(KeigoError):
    """No plan fits, or the question makes no sense; one line."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier, by its device."""

    name: str
    model: DeviceModel
    room: int
    """Bytes that may be placed there: its capacity less its reserve."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the database is to hold and to do."""

    data_bytes: float
    """Of all tables."""
    entry_bytes: float
    mix: Mix
    memory_bytes: float = 0.0
    """Of the block cache."""
    skew: float = 0.0
    """Zipf exponent of the keys that are read; 0: uniform."""
    styles: tuple[Style, ...] = ("leveled", "universal")

    def __post_init__(self) -> None:
        for name, share in (("read", self.mix.reads), ("scan", self.mix.scans)):
            if not 0 <= share <= 1:
                raise AdviseError(f"{name} ratio {share:g}: must be between 0 and 1")
        if self.mix.reads + self.mix.scans > 1 + 1e-9:
            raise AdviseError(
                f"read ratio {self.mix.reads:g} and scan ratio {self.mix.scans:g} are more than 1 together"
            )
        if not (math.isfinite(self.skew) and self.skew >= 0):
            raise AdviseError(f"skew {self.skew:g}: must be 0 (uniform) or above")
        if self.data_bytes < 1 or self.entry_bytes < 1 or self.memory_bytes < 0:
            raise AdviseError("sizes must be above 0")


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to set everything up."""

    style: Style
    growth: int
    """Universal: the runs from which on it merges."""
    places: tuple[int, ...]
    """Tier of the write-ahead log, and of each level from 0."""
    compactions: int = 4
    subcompactions: int = 4
    file_bytes: int = 64 * MIB
    cache_tier: int | None = None
    cache_bytes: int = 0

    @property
    def threads(self) -> Threads:
        """Its background threads."""
        found = Threads(self.compactions, self.subcompactions)
        return replace(found, flushes=max(1, found.jobs // 4))

    @property
    def cost(self) -> tuple[int, int, int]:
        """What tells of two plans that do as much which one takes less."""
        return self.compactions * self.subcompactions, self.cache_bytes, self.file_bytes


SMALLEST: Final = Plan("leveled", 10, (), compactions=1, subcompactions=1, file_bytes=FILE_SIZES[0])
"""What needs least room for compaction, but for growth and style."""


class Rated(NamedTuple):
    """A plan, and its operations per second."""

    plan: Plan
    rate: float


@dataclass(frozen=True, slots=True)
class Change:
    """What another choice would do, all else being the same."""

    what: str
    choice: str
    rate: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What is recommended."""

    plan: Plan
    prediction: Prediction
    tree: Tree
    used: tuple[int, ...]
    """Bytes on each tier at most, cache included."""
    cached: float
    """Share of block reads that the read cache serves."""
    in_memory: float
    """Share of block reads that the block cache serves."""
    changes: tuple[Change, ...]


def tree_of(wanted: Wanted, plan: Plan, *, behind: bool = False) -> Tree:
    """The tree of a plan; `behind`: with compactions that are late, so that level 0 is as full as it may be."""
    first = plan.growth if plan.style == "universal" else LEVEL0_FILES
    waits = plan.compactions == 1 if plan.style == "universal" else behind
    late = LEVEL0_SLOWDOWN - LEVEL0_FILES if waits else 1
    return _tree(wanted.data_bytes, wanted.entry_bytes, plan.file_bytes, plan.growth, first, plan.style, late)


@functools.lru_cache(maxsize=256)
def _tree(data: float, entry: float, file: int, growth: int, first: int, style: Style, late: int) -> Tree:
    return Tree(
        data_bytes=data,
        entry_bytes=entry,
        file_bytes=file,
        growth=growth,
        level0_bytes=first * MEMTABLE,
        level0_runs=first,
        style=style,
        level_count=LEVEL_COUNT,
        level0_late=late,
    )


def space(wanted: Wanted, plan: Plan) -> tuple[float, ...]:
    """Bytes at most of the write-ahead log, and of each level from 0, with what compaction writes before it removes.

    Level 0: as many files as slow writes down. Level 1: itself, and once more with all of level 0, for a compaction
    from level 0 rewrites it whole. Further down: a file and the files below it, for each compaction, at most the
    level itself. Universal: as `universal` plays it through; a full compaction needs all of it once more. (Ours.)
    """
    tree = tree_of(wanted, plan)
    log = LOGS * MEMTABLE
    if tree.style == "universal":
        return (log, *(share * tree.data_bytes for share in cycle_of(tree).peak))
    sizes = levels(tree)
    moving = plan.compactions * (plan.growth + 1) * plan.file_bytes
    found = [float(log), min(2 * tree.data_bytes, LEVEL0_SLOWDOWN * MEMTABLE)]
    for level, size in enumerate(sizes[1:], 1):
        found.append(2 * size + sizes[0] if level == 1 else size + min(size, moving))
    return tuple(found)


def used_by(wanted: Wanted, plan: Plan, tiers: Sequence[Tier]) -> list[int]:
    """Bytes on each tier at most, without a read cache."""
    used = [0.0] * len(tiers)
    for tier, size in zip(plan.places, space(wanted, plan), strict=True):
        used[tier] += size
    return [math.ceil(size) for size in used]


def hit_ratio(cache_bytes: float, unit: float, wanted: Wanted) -> float:
    """Share of reads that a cache of the hottest entries serves, each of which brings `unit` bytes along.

        H(cached entries) / H(all entries)        H(n) = 1 + (n^(1 - skew) - 1) / (1 - skew), 1 + ln n at skew 1

    Zipf's law with the harmonic sums as integrals; hot entries lie apart, as hashed keys do. At least the share of
    bytes that are cached, which is what uniform reads have.
    """
    plain = min(1.0, cache_bytes / wanted.data_bytes)
    entries, cached = wanted.data_bytes / wanted.entry_bytes, cache_bytes / unit
    if wanted.skew == 0 or cached < 1 or entries <= 1:
        return plain
    return max(plain, min(1.0, _harmonic(cached, wanted.skew) / _harmonic(entries, wanted.skew)))


def _harmonic(count: float, skew: float) -> float:
    if abs(skew - 1) < 1e-6:
        return 1 + math.log(count)
    return 1 + (math.pow(count, 1 - skew) - 1) / (1 - skew)


def hits_of(wanted: Wanted, plan: Plan, tiers: Sequence[Tier]) -> Hits:
    """What the block cache, and the read cache behind it, serve."""
    memory = hit_ratio(wanted.memory_bytes, BLOCK, wanted)
    if plan.cache_tier is None or memory >= 1:
        return Hits(memory)
    both = max(memory, hit_ratio(plan.cache_bytes, CHUNK, wanted))
    slower = frozenset(tier.name for tier in tiers[plan.cache_tier + 1 :])
    return Hits(memory, (both - memory) / (1 - memory), tiers[plan.cache_tier].name, slower)


def predicted(wanted: Wanted, plan: Plan, tiers: Sequence[Tier]) -> Prediction:
    """What a plan does, whether it fits or not."""
    _, (demands, work) = _settled(wanted, plan, tiers)
    return predict(demands, work, {tier.name: tier.model for tier in tiers})


def _settled(wanted: Wanted, plan: Plan, tiers: Sequence[Tier]) -> tuple[float, tuple[list[Demand], list[Work]]]:
    """Operations per second, and what each demands.

    Where compactions are the bottleneck they fall behind, which makes them cheaper, until they keep up.
    """
    models = {tier.name: tier.model for tier in tiers}
    demanded = _demanded(wanted, plan, tiers, behind=False)
    found = throughput(*demanded, models)
    if plan.style == "universal" or found.full in (FOREGROUND, CPU):
        return found.rate, demanded
    late = _demanded(wanted, plan, tiers, behind=True)
    return max((found.rate, demanded), (throughput(*late, models).rate, late), key=lambda settled: settled[0])


def _demanded(wanted: Wanted, plan: Plan, tiers: Sequence[Tier], *, behind: bool) -> tuple[list[Demand], list[Work]]:
    log, *places = (tiers[place].name for place in plan.places)
    hits = hits_of(wanted, plan, tiers)
    return demands_of(tree_of(wanted, plan, behind=behind), places, log, wanted.mix, plan.threads, hits)


def advise(wanted: Wanted, tiers: Sequence[Tier]) -> Advice:
    """The best plan for these tiers, fast to slow. Raises AdviseError where none fits."""
    search = _Search(wanted, tiers)
    shapes = search.shapes(Plan("leveled", 10, ()), COARSE_GROWTHS) or search.shapes(SMALLEST, GROWTHS)
    if not shapes:
        raise search.nothing_fits()
    best = search.tuned(_best(shapes).plan)
    best = search.tuned(_best([best, *search.shapes(best.plan, GROWTHS)]).plan)
    shapes = search.shapes(best.plan, near(best.plan.growth))
    best = _best([best, *shapes])
    plan = best.plan
    used = used_by(wanted, plan, tiers)
    hits = hits_of(wanted, plan, tiers)
    cached = 0.0
    if plan.cache_tier is not None:
        used[plan.cache_tier] += plan.cache_bytes
        behind = zip(shares(tree_of(wanted, plan)), plan.places[1:], strict=True)
        cached = hits.cache * (1 - hits.memory) * sum(share for share, place in behind if place > plan.cache_tier)
    return Advice(
        plan=plan,
        prediction=predicted(wanted, plan, tiers),
        tree=tree_of(wanted, plan),
        used=tuple(used),
        cached=cached,
        in_memory=hits.memory,
        changes=tuple(search.changes(best, shapes)),
    )


def near(growth: int) -> list[int]:
    """A growth factor and those that it is shown beside."""
    return [other for other in GROWTHS if other in (4, 8, 10, 16) or abs(other - growth) <= 2]


def _best(rated: Iterable[Rated]) -> Rated:
    """The plan that takes least of those within ALIKE of the highest rate."""
    found = list(rated)
    enough = max(other.rate for other in found) * (1 - ALIKE)
    return min((other for other in found if other.rate >= enough), key=lambda other: other.plan.cost)


@dataclass(frozen=True, slots=True)
class _Search:
    """The plans that are tried."""

    wanted: Wanted
    tiers: Sequence[Tier]

    def rate(self, plan: Plan) -> Rated:
        return Rated(plan, _settled(self.wanted, plan, self.tiers)[0])

    def shapes(self, like: Plan, growths: Iterable[int]) -> list[Rated]:
        """The best places for each style and growth, in their order, as far as they fit."""
        found = []
        for style in self.wanted.styles:
            for growth in UNIVERSAL_RUNS if style == "universal" else growths:
                fitting = list(self.placed(replace(like, style=style, growth=growth, cache_tier=None, cache_bytes=0)))
                if fitting:
                    best = max(map(self.rate, fitting), key=lambda other: other.rate)
                    found.append(self.cached(best.plan) if like.cache_tier is not None else best)
        return found

    def every_place(self, plan: Plan) -> Iterator[Plan]:
        """All lists of tiers that never go back to a faster one."""
        count = len(space(self.wanted, plan))
        for places in combinations_with_replacement(range(len(self.tiers)), count):
            yield replace(plan, places=places)

    def placed(self, plan: Plan) -> Iterator[Plan]:
        """Those that fit."""
        needed = space(self.wanted, plan)
        for other in self.every_place(plan):
            free = [float(tier.room) for tier in self.tiers]
            for tier, size in zip(other.places, needed, strict=True):
                free[tier] -= size
            if min(free) >= 0:
                yield other

    def fits(self, plan: Plan) -> bool:
        used = used_by(self.wanted, plan, self.tiers)
        return all(size <= tier.room for size, tier in zip(used, self.tiers, strict=True))

    def tuned(self, plan: Plan) -> Rated:
        """Threads, file size and cache, one after the other, each at its best."""
        threads = [
            replace(plan, compactions=compactions, subcompactions=subcompactions)
            for compactions in COMPACTIONS
            for subcompactions in SUBCOMPACTIONS
        ]
        best = _best(self.rate(other) for other in [plan, *threads] if self.fits(other))
        files = [replace(best.plan, file_bytes=size) for size in FILE_SIZES]
        best = _best(self.rate(other) for other in [best.plan, *files] if self.fits(other))
        return self.cached(best.plan)

    def cached(self, plan: Plan) -> Rated:
        """The plan with the read cache that helps most, or without one."""
        plain = replace(plan, cache_tier=None, cache_bytes=0)
        used = used_by(self.wanted, plain, self.tiers)
        found = [plain]
        for number, (tier, taken) in enumerate(zip(self.tiers, used, strict=True)):
            for share in CACHE_SHARES:
                size = int((tier.room - taken) * share) // CHUNK * CHUNK
                if size > 0 and number < max(plan.places):
                    found.append(replace(plan, cache_tier=number, cache_bytes=size))
        return _best(map(self.rate, found))

    def changes(self, best: Rated, shapes: Sequence[Rated]) -> Iterator[Change]:
        """What each other choice would do."""
        plan = best.plan
        other = [rated for rated in shapes if rated.plan.style != plan.style]
        if other:
            found = max(other, key=lambda rated: rated.rate)
            word = "growth" if found.plan.style == "leveled" else "runs"
            yield Change("style", f"{found.plan.style}, {word} {found.plan.growth}", found.rate)
        for rated in shapes:
            if rated.plan.style == plan.style and rated.plan.growth != plan.growth:
                yield Change("growth", str(rated.plan.growth), rated.rate)
        runner_up = self.runner_up(plan)
        if runner_up is not None:
            yield Change("placement", described(runner_up.plan.places, self.tiers), runner_up.rate)
        tried: list[tuple[str, str, Plan]] = []
        for count in sorted({max(1, plan.compactions // 2), min(16, plan.compactions * 2)} - {plan.compactions}):
            tried.append(("compaction threads", str(count), replace(plan, compactions=count)))
        for count in sorted({max(1, plan.subcompactions // 2), plan.subcompactions * 2} - {plan.subcompactions}):
            tried.append(("subcompactions", str(count), replace(plan, subcompactions=count)))
        for size in (plan.file_bytes // 2, plan.file_bytes * 2):
            tried.append(("file size", format_size(size), replace(plan, file_bytes=size)))
        if plan.cache_tier is not None:
            tried.append(("read cache", "none", replace(plan, cache_tier=None, cache_bytes=0)))
        for what, choice, changed in tried:
            if self.fits(changed):
                yield Change(what, choice, self.rate(changed).rate)

    def runner_up(self, plan: Plan) -> Rated | None:
        """The next best places."""
        others = [self.rate(other) for other in self.placed(plan) if other.places != plan.places]
        return max(others, key=lambda rated: rated.rate, default=None)

    def nothing_fits(self) -> AdviseError:
        """Says which tier lacks how much, for the plan that lacks least, on as few tiers as can be."""
        least: tuple[tuple[int, float], list[float], Plan] | None = None
        for style in self.wanted.styles:
            for growth in UNIVERSAL_RUNS if style == "universal" else GROWTHS:
                for plan in self.every_place(replace(SMALLEST, style=style, growth=growth)):
                    used = used_by(self.wanted, plan, self.tiers)
                    lacks = [max(0, size - tier.room) for size, tier in zip(used, self.tiers, strict=True)]
                    judged = (sum(lack > 0 for lack in lacks), float(sum(lacks)))
                    if least is None or judged < least[0]:
                        least = judged, [float(lack) for lack in lacks], plan
        assert least is not None  # noqa: S101 - there are tiers and styles
        parts = [
            f"tier {tier.name} has {format_size(tier.room)} and lacks {format_size(math.ceil(lack))}"
            for tier, lack in zip(self.tiers, least[1], strict=True)
            if lack
        ]
        word = "growth" if least[2].style == "leveled" else "runs"
        return AdviseError(
            f"{format_size(int(self.wanted.data_bytes))} do not fit, with room for compaction, whatever the levels' "
            f"tiers: {' and '.join(parts)} ({least[2].style}, {word} {least[2].growth}, which needs least)"
        )


def placement(
    places: Sequence[int], tiers: Sequence[Tier], deepest: int = LEVEL_COUNT - 1
) -> dict[str, list[int | str]]:
    """`placement: levels:` of devices.yaml; levels that the tree does not have yet go with its last one."""
    found: dict[str, list[int | str]] = {tier.name: [] for tier in tiers}
    found[tiers[places[0]].name].append("wal")
    for level in range(max(len(places) - 1, deepest + 1)):
        found[tiers[places[min(level + 1, len(places) - 1)]].name].append(level)
    return {name: listed for name, listed in found.items() if listed}


def described(places: Sequence[int], tiers: Sequence[Tier]) -> str:
    """The same in a line: `nvmm: wal, 0-1; sata: 2-6`."""
    return "; ".join(f"{name}: {_range(listed)}" for name, listed in placement(places, tiers).items())


def _range(listed: Sequence[int | str]) -> str:
    words = [str(item) for item in listed if item == "wal"]
    numbers = [item for item in listed if isinstance(item, int)]
    if numbers:
        words.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
    return ", ".join(words)
