"""The plan of a policy that can say of a file alone where it belongs, or that nothing says so.

It does two things: bring down tiers that are too full, and take files where they belong. It never moves a file away to
make room for a better one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple

from keigo.lsm.roles import IMMUTABLE
from keigo.placement.policy import Bucket, Files, FileState, Move, TierState, fallback_order

SPARE: Final = 20
"""A tier that was too full is brought down until this fraction (one of so many) of its capacity is free."""


MOST_ALIKE: Final = 1024
"""Files of a bucket that a plan looks at, those that are longest in it; the next plan goes on from there. A plan for
all of a million would take seconds, and most of it would be out of date before it was carried out."""


class Place(NamedTuple):
    """Where a file belongs, and why."""

    tier: int
    reason: str


def spare_of(tier: TierState) -> int:
    """Bytes to leave free for new files: a twentieth of the capacity, so that a tier is not soon brought down again."""
    return max(1, tier.capacity // SPARE)


def age(file: FileState) -> tuple[float, ...]:
    """To sort files by, the oldest first."""
    return file.created, float("inf") if file.number is None else file.number


class Planner:
    """One plan in the making: where every file would be, and what room that leaves, after the moves so far.

    It ends: every move leaves its target room >= 0, so a tier that is not too full never becomes so; only
    files on a tier that is too full are brought down, hence each at most once, and it settles at most once.
    And it ends where neither step finds anything to do, which is why the next plan is empty.
    """

    def __init__(
        self,
        files: Iterable[FileState],
        tiers: Sequence[TierState],
        place: Callable[[FileState], Place | None],
        rank: Callable[[FileState], tuple[float, ...]],
    ) -> None:
        """`place` is asked for files that are not pinned. Of those to be brought down, all that belong on a slower tier
        go first, then the lower rank, then the lower id."""
        self.files = {file.id: file for file in files if file.role in IMMUTABLE}
        self.tiers = tiers
        self.room = [tier.room for tier in tiers]
        self.spare = [spare_of(tier) for tier in tiers]
        self.at = {file.id: file.tier for file in self.files.values()}
        self.moves: list[Move] = []
        self._place = place
        self._rank = rank

    def run(self) -> list[Move]:
        """The moves, in the order in which they can be done."""
        before = -1
        while before != len(self.moves):
            before = len(self.moves)
            for tier in reversed(range(len(self.tiers))):
                self.relieve(tier)
            self.settle()
        return self.merged()

    def place(self, file: FileState) -> Place | None:
        """Where a file belongs; None where nothing says so."""
        if file.pinned is not None:
            return Place(file.pinned, f"pinned to {self.tiers[file.pinned].name}")
        return self._place(file)

    def relieve(self, tier: int) -> None:
        """Bring a tier down that is too full."""
        if self.room[tier] >= 0:
            return

        def order(file: FileState) -> tuple[bool, tuple[float, ...], int]:
            place = self.place(file)
            return place is None or place.tier <= tier, self._rank(file), file.id

        here = (file for file in self.files.values() if self.at[file.id] == tier)
        for file in sorted((file for file in here if file.pinned != tier and file.size > 0), key=order):
            place = self.place(file)
            below = tier if place is None else max(tier, place.tier)
            for target in fallback_order(below, len(self.tiers)):
                if target != tier and self.room[target] >= file.size:
                    reason = f"makes room on {self.tiers[tier].name}"
                    if place is not None and target == place.tier:
                        reason = f"{reason}; {place.reason}"
                    self.move(file, target, reason, urgent=True)
                    break
            if self.room[tier] >= self.spare[tier]:
                return

    def settle(self) -> None:
        """Move files where they belong, to slower tiers first, until no more fit."""

        waiting: list[list[tuple[FileState, Place]]] = [[] for _ in self.tiers]
        for file in self.files.values():
            place = self.place(file)
            if place is not None and place.tier != self.at[file.id]:
                waiting[place.tier].append((file, place))
        for items in waiting:
            items.sort(key=lambda item: self._usefulness(item[0]))
        least = [min((file.size for file, _ in items), default=0) for items in waiting]
        before = -1
        while before != len(self.moves):
            before = len(self.moves)
            for tier in reversed(range(len(self.tiers))):
                waiting[tier] = self._settled(tier, waiting[tier], least[tier])

    def _settled(self, tier: int, waiting: list[tuple[FileState, Place]], least: int) -> list[tuple[FileState, Place]]:
        """Move those files to a tier that fit, none of which has less than `least` bytes; returns the others."""
        left: list[tuple[FileState, Place]] = []
        for number, (file, place) in enumerate(waiting):
            free = 0 if file.pinned is not None else self.spare[tier]
            if self.room[tier] - least < free and file.pinned is None:  # nor do those that follow: none is pinned
                return left + waiting[number:]
            if self.room[tier] - file.size >= free:
                self.move(file, tier, place.reason)
            else:
                left.append((file, place))
        return left

    @staticmethod
    def _usefulness(file: FileState) -> tuple[bool, int, int, int, int]:
        """Of two that belong up, the one of the upper level is of more use there. Of a level the cheapest to move goes
        first, then the younger one."""
        return file.pinned is None, file.level or 0, file.size, -(file.number or 0), file.id

    def move(self, file: FileState, target: int, reason: str, *, urgent: bool = False) -> None:
        """Add a move."""
        source = self.at[file.id]
        self.moves.append(Move(file.id, source, target, reason, urgent))
        self.at[file.id] = target
        self.room[source] += file.size
        self.room[target] -= file.size

    def merged(self) -> list[Move]:
        """The moves, with two of one file made one, or none where it comes back, if an order allows that."""
        last = {move.file: move for move in self.moves}
        if len(last) == len(self.moves):
            return self.moves
        room = [tier.room for tier in self.tiers]
        merged: list[Move] = []
        urgent = {move.file for move in self.moves if move.urgent}
        starts = ((self.files[file].tier, move) for file, move in last.items())
        waiting = [
            replace(move, source=start, urgent=move.file in urgent) for start, move in starts if start != move.target
        ]
        while waiting:
            left = []
            for move in waiting:
                size = self.files[move.file].size
                if room[move.target] < size:
                    left.append(move)
                    continue
                room[move.source] += size
                room[move.target] -= size
                merged.append(move)
            if len(left) == len(waiting):
                return self.moves
            waiting = left
        return merged


def candidates(
    files: Files, tiers: Sequence[TierState], place: Callable[[Bucket], int | None] = lambda _: None
) -> Iterable[FileState]:
    """The files that a `Planner` could move: those of tiers that are too full, and those off their place.

    `place` is asked for buckets that are not pinned. None of them all where no tier is too full and none that is off
    its place could move there: that takes no more than the buckets. Of a bucket no more than `MOST_ALIKE`.
    """
    full = [tier.room < 0 for tier in tiers]
    chosen, due = [], any(full)
    for bucket in files.buckets():
        if bucket.group.role not in IMMUTABLE:
            continue
        wished = place(bucket) if bucket.pinned is None else bucket.pinned
        astray = wished is not None and wished != bucket.tier
        if astray:
            assert wished is not None  # noqa: S101
            free = 0 if bucket.pinned is not None else spare_of(tiers[wished])
            due = due or tiers[wished].room >= free
        if astray or full[bucket.tier]:
            chosen.append(bucket)
    return (file for bucket in chosen for file in islice(files.members(bucket), MOST_ALIKE)) if due else ()
