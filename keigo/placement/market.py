"""What room on each tier is worth, and which files change places for it.

All arithmetic is per bucket, so that a plan for a million files takes as long as one for a hundred; only files that
move are looked at one by one.

The price of room. All that is written, lives and is gone again competes for room, by what it saves per byte and second
on a tier rather than on the best other one, the price there included. Filled in the order of these savings, a tier's
price is what the first saves that does not fit; nothing where all fit. Each price depends on the others, so they are
set in turns until they stand (rising from nothing, as in an ascending auction). The slowest tier's room is free.

A plan has four parts. First files go where a user pinned them. Then each tier that has less room than its headroom
gives up what loses least by going, until it has one and a half. Then, where a tier's room has a price, what is worth
less there leaves, as far as room is scarce. Last, files that gain by moving go up (or down, where a slower device has
become the better one), the greatest gain per byte first, as long as a tier keeps room; beyond that, in exchange for
files that gain less than half as much. Each copy must pay for itself twice over within the time that its file has left:
what compaction rewrites soon has little left, so it stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from keigo.lsm.roles import IMMUTABLE
from keigo.placement import economics
from keigo.placement.policy import Bucket, Expectation, Files, FileState, Group, Move, Prospect, TierState

_RELIEVED: Final = 1.5
"""Headrooms that a tier has after it was relieved."""
_PROMOTED: Final = 2.0
"""Headrooms that a tier keeps when files move there that need not: more than relief leaves, so that they stay; and
on top of them what its room has lately swung by, as level 0 fills and empties."""
_WORTH: Final = 2.0
"""How many times a copy must pay for itself, and an exchange must gain what it loses."""
_MARGIN: Final = 1.5
"""How many times over the price of room must exceed what a file is worth there before it leaves for that alone."""
_ROUNDS: Final = 8
MOST_MOVES: Final = 512
"""Of a plan, but for pins. The next goes on from there; more would be out of date before they were done."""


@dataclass(frozen=True, slots=True)
class _Lot:
    """A bucket with what it costs, per byte and second, to keep it on each tier."""

    bucket: Bucket
    keeping: tuple[float, ...]
    life: float
    """Seconds that its files have left, as far as one looks ahead."""


def _lots(files: Files, tiers: Sequence[TierState]) -> list[_Lot]:
    found = []
    expected: dict[object, Expectation] = {}
    for bucket in files.buckets():
        if bucket.group.role not in IMMUTABLE or not bucket.bytes:
            continue
        known = expected.get(bucket.group)
        if known is None:
            known = expected[bucket.group] = files.expect(bucket.group)
        keeping = tuple(economics.keeping(bucket, known, tier.rates) for tier in tiers)
        found.append(_Lot(bucket, keeping, min(known.life, economics.HORIZON)))
    return found


def _copy(lot: _Lot, target: int, tiers: Sequence[TierState]) -> float:
    """Seconds per byte, spread over the time left."""
    return economics.copying(tiers[lot.bucket.tier].rates, tiers[target].rates) / lot.life


def prices(files: Files, tiers: Sequence[TierState]) -> tuple[float, ...]:
    """See `Policy.prices`."""
    demand, capacity = _demand(files, tiers)
    found = [0.0] * len(tiers)
    for _ in range(_ROUNDS):
        before = list(found)
        for tier in range(len(tiers) - 1):
            found[tier] = _price(tier, demand, capacity[tier], found)
        if all(abs(now - then) <= 0.01 * now for now, then in zip(found, before, strict=True)):
            break
    return tuple(found)


def _demand(files: Files, tiers: Sequence[TierState]) -> tuple[list[tuple[tuple[float, ...], int]], list[int]]:
    """(cost per byte and second on each tier, bytes) of all that competes, and the bytes that each tier has for it."""
    alike: dict[tuple[Group, int | None], list[Bucket]] = {}
    capacity = [tier.room - economics.headroom(tier) for tier in tiers]
    for bucket in files.buckets():
        if bucket.group.role in IMMUTABLE and bucket.pinned is None:
            alike.setdefault((bucket.group, bucket.heat), []).append(bucket)
            capacity[bucket.tier] += bucket.bytes
    # What has come in the last seconds comes again in the next, in likeness to what is there.
    there = sum(bucket.bytes for buckets in alike.values() for bucket in buckets)
    grown = 1 + max(0, sum(tier.growth for tier in tiers)) / there if there else 1.0
    demand = []
    expected: dict[Group, Expectation] = {}
    for (group, _), buckets in alike.items():
        known = expected.get(group)
        if known is None:
            known = expected[group] = files.expect(group)
        costs = tuple(economics.recurring(buckets[0], known, files.pressure, tier) for tier in tiers)
        demand.append((costs, int(grown * sum(bucket.bytes for bucket in buckets))))
    return demand, capacity


def _price(tier: int, demand: Sequence[tuple[tuple[float, ...], int]], capacity: int, others: Sequence[float]) -> float:
    """What the first saves on a tier that does not fit there, at the other tiers' prices; 0 where all fit."""
    savings = sorted(
        (
            (min(cost + others[at] for at, cost in enumerate(costs) if at != tier) - costs[tier], size)
            for costs, size in demand
        ),
        reverse=True,
    )
    for saved, size in savings:
        capacity -= size
        if saved <= 0:
            return 0.0
        if capacity < 0:
            return saved
    return 0.0


def plan(files: Files, tiers: Sequence[TierState]) -> list[Move]:
    """See `Policy.plan`. At most `MOST_MOVES` besides those to pins; the next plan goes on from there."""
    return _Planner(files, tiers).run()


class _Stock:
    """The files of a lot that have not moved in this plan, in order; looked at only as far as they are wanted."""

    def __init__(self, files: Files, lot: _Lot) -> None:
        self.lot = lot
        self._rest: Iterator[FileState] = (file for file in files.members(lot.bucket) if file.size > 0)
        self._next: FileState | None = None

    def peek(self) -> FileState | None:
        """The next one."""
        if self._next is None:
            self._next = next(self._rest, None)
        return self._next

    def take(self) -> None:
        """The next one has moved, or is left alone."""
        self._next = None


class _Planner:
    """One plan in the making. A file moves at most once in it, so it ends."""

    def __init__(self, files: Files, tiers: Sequence[TierState]) -> None:
        self.tiers = tiers
        self.room = [tier.room for tier in tiers]
        self.spare = [economics.headroom(tier) for tier in tiers]
        self.enough = [int(_PROMOTED * spare) for spare in self.spare]
        # Of the swing no more than a headroom: room that was made a moment ago would else never be used again.
        swings = (min(tier.swing, spare) for tier, spare in zip(tiers, self.spare, strict=True))
        self.kept = [*(enough + swing for enough, swing in zip(self.enough, swings, strict=True))]
        self.kept[-1] = 0
        self.stalled = files.pressure.stalled
        self.moves: list[Move] = []
        self.pinned = 0
        self.stocks = [_Stock(files, lot) for lot in _lots(files, tiers)]

    def run(self) -> list[Move]:
        before = -1
        while before != len(self.moves) and not self._full():
            before = len(self.moves)
            self._settle_pins()
            for tier in range(len(self.tiers)):
                self._relieve(tier)
            for tier in range(len(self.tiers) - 1):
                self._sell(tier)
            self._improve()
        return self.moves

    def _full(self) -> bool:
        return len(self.moves) - self.pinned >= MOST_MOVES

    def _move(self, stock: _Stock, file: FileState, target: int, reason: str, *, urgent: bool = False) -> None:
        source = stock.lot.bucket.tier
        self.moves.append(Move(file.id, source, target, reason, urgent))
        self.room[source] += file.size
        self.room[target] -= file.size
        stock.take()

    # --- pins ---

    def _settle_pins(self) -> None:
        before = -1
        while before != len(self.moves):
            before = len(self.moves)
            for stock in self.stocks:
                place = stock.lot.bucket.pinned
                if place is None or place == stock.lot.bucket.tier:
                    continue
                while (file := stock.peek()) is not None and self.room[place] >= file.size:
                    self._move(stock, file, place, f"pinned to {self.tiers[place].name}")
                    self.pinned += 1

    # --- room ---

    def _price(self, tier: int) -> float:
        return self.tiers[tier].price * economics.scarcity(self.tiers[tier])

    def _free(self) -> Iterator[_Stock]:
        return (stock for stock in self.stocks if stock.lot.bucket.pinned is None)

    def _loss(self, lot: _Lot, target: int) -> float:
        """What a lot loses per byte and second by going to a tier, the copy and the room there included."""
        stays = lot.keeping[lot.bucket.tier]
        return lot.keeping[target] + self._price(target) - stays + _copy(lot, target, self.tiers)

    def _relieve(self, tier: int) -> None:
        """Bring a tier down that has less room than what comes next may want."""
        if self.room[tier] >= self.spare[tier]:
            return
        wanted = int(_RELIEVED * self.spare[tier])
        # The slowest has no other place for what it is for; there only a lack counts.
        if tier == len(self.tiers) - 1:
            if self.room[tier] >= 0:
                return
            wanted = 0
        urgent = self.room[tier] < self.spare[tier] // 4
        # While writers wait, copies take from what they wait for. Then the most that making room may cost is what it is
        # worth now; files that are gone soon make it for nothing.
        most = self._price(tier) if self.stalled else math.inf
        offers = sorted(
            (loss, -target, index, target, stock)
            for index, stock in enumerate(self._free())
            if stock.lot.bucket.tier == tier
            for target in range(len(self.tiers))
            if target != tier and ((loss := self._loss(stock.lot, target)) < most or self.room[tier] < 0)
        )
        for loss, _, _, target, stock in offers:
            reason = f"makes room on {self.tiers[tier].name} (loses {_shown(loss)} a MiB)"
            while (file := stock.peek()) is not None:
                if self.room[tier] >= wanted or self._full():
                    return
                # The slowest needs no headroom; any other would have to make room in its turn.
                if self.room[target] - file.size < (self.spare[target] if target < len(self.tiers) - 1 else 0):
                    break
                self._move(stock, file, target, reason, urgent=urgent)

    def _sell(self, tier: int) -> None:
        """Let go what is worth less on a tier than the price of its room, as far as room is scarce there."""
        price = self.tiers[tier].price
        if not price or self.room[tier] >= self.enough[tier]:
            return
        offers = sorted(
            (loss, -target, index, target, stock)
            for index, stock in enumerate(self._free())
            if stock.lot.bucket.tier == tier
            for target in range(len(self.tiers))
            if target != tier
            and _MARGIN * (loss := self._loss(stock.lot, target)) + _copy(stock.lot, target, self.tiers) < price
        )
        for loss, _, _, target, stock in offers:
            reason = f"room on {self.tiers[tier].name} is worth more (loses {_shown(loss)} a MiB)"
            while (file := stock.peek()) is not None:
                if self.room[tier] >= self.enough[tier] or self._full():
                    return
                if self.room[target] - file.size < self.kept[target]:
                    break
                self._move(stock, file, target, reason)

    # --- gain ---

    def _improve(self) -> None:
        offers = sorted(
            (
                (gain, index, target, stock)
                for index, stock in enumerate(self._free())
                for target in range(len(self.tiers))
                if target != stock.lot.bucket.tier and (gain := self._gain(stock.lot, target)) > 0
            ),
            key=lambda offer: (-offer[0], offer[2], offer[1]),
        )
        for gain, _, target, stock in offers:
            reason = f"gains on {self.tiers[target].name} ({_shown(gain)} a MiB)"
            while (file := stock.peek()) is not None:
                if self._full():
                    return
                keep = self.kept[target]
                if self.room[target] - file.size < keep and not self._exchange(stock, file, target, gain, keep):
                    break
                self._move(stock, file, target, reason)

    def _gain(self, lot: _Lot, target: int) -> float:
        """What a lot gains per byte and second by moving to a tier; 0 or less where the copy does not pay enough."""
        saved = lot.keeping[lot.bucket.tier] - lot.keeping[target]
        return saved if saved > _WORTH * _copy(lot, target, self.tiers) else 0.0

    def _exchange(self, stock: _Stock, file: FileState, target: int, gain: float, keep: int) -> bool:
        """Make room on a tier for a file by moving others away that gain less there; whether that can be done.

        They go to where the file is from, which has room as soon as it has left, or to a tier with room.
        """
        source = stock.lot.bucket.tier
        net = gain - _copy(stock.lot, target, self.tiers)
        losses = sorted(
            (self._loss(other.lot, source) + _copy(other.lot, source, self.tiers), index, other)
            for index, other in enumerate(self._free())
            if other.lot.bucket.tier == target and other.peek() is not None
        )
        missing = keep - (self.room[target] - file.size)
        leaving: list[tuple[_Stock, FileState, float]] = []
        for loss, _, other in losses:
            if missing <= 0 or _WORTH * max(0.0, loss) >= net:
                break
            # One at a time keeps the order of sums plain: files of a bucket are alike, and of like sizes.
            candidate = other.peek()
            if candidate is None or self.room[source] < candidate.size or candidate.size > 2 * max(file.size, missing):
                continue
            leaving.append((other, candidate, loss))
            missing -= candidate.size
        if missing > 0:
            return False
        if self.room[source] < sum(candidate.size for _, candidate, _ in leaving):
            return False
        for other, candidate, loss in leaving:
            reason = f"makes room on {self.tiers[target].name} for what gains more (loses {_shown(loss)} a MiB)"
            self._move(other, candidate, source, reason)
        return True


def prospects(file: FileState, files: Files, tiers: Sequence[TierState]) -> list[Prospect]:
    """See `Policy.prospects`."""
    group = file.group
    if group is None or file.role not in IMMUTABLE or file.size <= 0:
        return []
    heat = math.floor(math.log2(file.reads / file.size)) if file.reads > 0 else None
    bucket = Bucket(file.tier, group, heat, file.pinned, 1, file.size)
    known = files.expect(group)
    keeping = tuple(economics.keeping(bucket, known, tier.rates) for tier in tiers)
    lot = _Lot(bucket, keeping, min(known.life, economics.HORIZON))
    return [
        Prospect(
            index,
            keeping[index] * file.size,
            0.0 if index == file.tier else economics.copying(tiers[file.tier].rates, tier.rates) * file.size,
            _verdict(lot, index, tiers),
        )
        for index, tier in enumerate(tiers)
    ]


def _verdict(lot: _Lot, target: int, tiers: Sequence[TierState]) -> str:
    here, pinned = lot.bucket.tier, lot.bucket.pinned
    if target == here:
        return "is here" if pinned is None else "is pinned here" if pinned == here else "is here, pinned elsewhere"
    if pinned is not None:
        return "is pinned there: moves when there is room" if pinned == target else "is pinned elsewhere"
    saved = lot.keeping[here] - lot.keeping[target]
    if saved <= 0:
        return "would cost more"
    copy = _copy(lot, target, tiers)
    if saved <= _WORTH * copy:
        return f"would save {_shown(saved)} a MiB; the copy costs {_shown(copy)} over the {lot.life:.3g} s it has left"
    tier = tiers[target]
    if tier.room - lot.bucket.bytes < _PROMOTED * economics.headroom(tier) + min(tier.swing, economics.headroom(tier)):
        return f"would save {_shown(saved)} a MiB; moves if that is more than what is there is worth"
    return f"saves {_shown(saved)} a MiB: is due to move"


def _shown(rate: float) -> str:
    """Seconds per byte and second, for people."""
    return f"{rate * (1 << 20) * 1e6:.3g} us/s"
