"""The `levels` policy: each tier lists the LSM levels, and `wal`, that it is for.

This is the released configuration of the Keigo paper, with room taken into account. Nothing is learned or
measured: a file goes to the tier that lists it; where that one is full, to the next slower one with room,
else to the next faster one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from keigo.lsm.roles import IMMUTABLE, Role
from keigo.lsm.threads import Job
from keigo.placement.policy import Choice, Context, FileState, Move, TierState, fallback_order, first_fit


class LevelsPolicy:
    """Static lists: `levels[i]` is what tier i lists; `metadata_tier` takes all but WAL, SST and blob files.

    A level listed nowhere goes with the next deeper one that is listed, and below all of them to the slowest
    tier that lists any; with no list at all, to the slowest tier. A level listed twice belongs to the faster
    tier.
    """

    name = "levels"

    def __init__(self, levels: Sequence[frozenset[int | Literal["wal"]]], metadata_tier: int) -> None:
        self._listed: dict[int, int] = {}
        self._wal: int | None = None
        self._slowest = len(levels) - 1
        self._metadata = metadata_tier
        for tier, listed in reversed(list(enumerate(levels))):
            if "wal" in listed:
                self._wal = tier
            numbers = [level for level in listed if isinstance(level, int)]
            if numbers and not self._listed:
                self._slowest = tier
            self._listed.update(dict.fromkeys(numbers, tier))
        self._output = min((tier for level, tier in self._listed.items() if level >= 1), default=self.tier_of_level(1))

    def tier_of_level(self, level: int) -> int:
        """The tier that a level belongs on, room or not."""
        if level in self._listed:
            return self._listed[level]
        deeper = min((listed for listed in self._listed if listed > level), default=None)
        return self._slowest if deeper is None else self._listed[deeper]

    def choose(self, context: Context, size: int, tiers: Sequence[TierState]) -> Choice:
        """See Policy."""
        wished, reason = self._wish(context, tiers)
        tier = first_fit(wished, size, tiers)
        if tier != wished:
            reason = f"{reason}; {tiers[wished].name} is full, {tiers[tier].name} has room"
        return Choice(tier, reason)

    def plan(self, files: Iterable[FileState], tiers: Sequence[TierState]) -> list[Move]:
        """See Policy.

        A tier whose room is negative is brought down until a twentieth of its capacity is free: first go
        files that belong on a slower tier, the deepest level first, then the others, unknown levels first
        (flushes are known to be for level 0, so these are deeper); among equals the oldest first. Files move
        to the tier that they are pinned to where it has room, and to the one that lists their level where
        that leaves the twentieth free: so they are not soon brought down again.
        """
        return _Planner(files, tiers, self.tier_of_level, self._why_level).run()

    def _wish(self, context: Context, tiers: Sequence[TierState]) -> tuple[int, str]:
        if context.role is Role.WAL:
            if self._wal is None:
                return 0, f"wal is listed nowhere: the fastest tier, {tiers[0].name}"
            return self._wal, f"wal is listed on {tiers[self._wal].name}"
        if context.role not in IMMUTABLE:
            return self._metadata, f"{context.role}: {tiers[self._metadata].name} is the tier for metadata"
        if context.level is not None:
            return self.tier_of_level(context.level), self._why_level(context.level, tiers)
        if context.job is Job.FLUSH:
            return self.tier_of_level(0), f"flush: {self._why_level(0, tiers)}"
        if context.job is Job.COMPACTION or context.role is Role.BLOB:
            return (
                self._output,
                f"{context.role} of unknown level: {tiers[self._output].name} is next after flushes",
            )
        wished = self.tier_of_level(0)
        return (
            wished,
            f"{context.role} of unknown level by a thread of no pool: from {tiers[wished].name} down",
        )

    def _why_level(self, level: int, tiers: Sequence[TierState]) -> str:
        name = tiers[self.tier_of_level(level)].name
        if level in self._listed:
            return f"level {level} is listed on {name}"
        return f"level {level} is listed nowhere: {name} is next"


class _Planner:
    """One plan in the making: where every file would be, and what room that leaves, after the moves so far.

    It ends: every move leaves its target room >= 0, so a tier that is not too full never becomes so; only
    files on a tier that is too full are brought down, hence each at most once, and it settles at most once.
    And it ends where neither step finds anything to do, which is why the next plan is empty.
    """

    def __init__(
        self,
        files: Iterable[FileState],
        tiers: Sequence[TierState],
        tier_of_level: Callable[[int], int],
        why_level: Callable[[int, Sequence[TierState]], str],
    ) -> None:
        self.files = {file.id: file for file in files if file.role in IMMUTABLE}
        self.tiers = tiers
        self.room = [tier.room for tier in tiers]
        self.spare = [max(1, tier.capacity // 20) for tier in tiers]
        self.at = {file.id: file.tier for file in self.files.values()}
        self.moves: list[Move] = []
        self.tier_of_level = tier_of_level
        self.why_level = why_level

    def run(self) -> list[Move]:
        before = -1
        while before != len(self.moves):
            before = len(self.moves)
            for tier in reversed(range(len(self.tiers))):
                self.relieve(tier)
            self.settle()
        return self.merged()

    def place(self, file: FileState) -> int | None:
        """The tier that a file belongs on; None where nothing says so."""
        if file.pinned is not None:
            return file.pinned
        return None if file.level is None else self.tier_of_level(file.level)

    def relieve(self, tier: int) -> None:
        """Bring a tier down that is too full."""
        if self.room[tier] >= 0:
            return

        def order(file: FileState) -> tuple[bool, float, float, int]:
            place = self.place(file)
            depth = float("inf") if file.level is None else file.level
            number = float("inf") if file.number is None else file.number
            return place is None or place <= tier, -depth, number, file.id

        here = (file for file in self.files.values() if self.at[file.id] == tier)
        for file in sorted((file for file in here if file.pinned != tier and file.size > 0), key=order):
            place = self.place(file)
            below = tier if place is None else max(tier, place)
            for target in fallback_order(below, len(self.tiers)):
                if target != tier and self.room[target] >= file.size:
                    reason = f"makes room on {self.tiers[tier].name}"
                    if target == place:
                        reason = f"{reason}; {self.why(file, target)}"
                    self.move(file, target, reason)
                    break
            if self.room[tier] >= self.spare[tier]:
                return

    def settle(self) -> None:
        """Move files where they belong, to slower tiers first, until no more fit."""

        def order(item: tuple[FileState, int]) -> tuple[int, bool, int, int, int, int]:
            file, place = item
            # Of two that belong up, the one of the upper level is of more use there. Of a level the cheapest to move
            # goes first, then the younger one.
            return -place, file.pinned is None, file.level or 0, file.size, -(file.number or 0), file.id

        placed = ((file, self.place(file)) for file in self.files.values())
        waiting = [(file, place) for file, place in placed if place is not None and place != self.at[file.id]]
        waiting.sort(key=order)
        before = -1
        while before != len(waiting):
            before = len(waiting)
            left = []
            for file, place in waiting:
                free = 0 if file.pinned is not None else self.spare[place]
                if self.room[place] - file.size >= free:
                    self.move(file, place, self.why(file, place))
                else:
                    left.append((file, place))
            waiting = left

    def why(self, file: FileState, place: int) -> str:
        """Why a file belongs on a tier."""
        if file.level is None or file.pinned is not None:
            return f"pinned to {self.tiers[place].name}"
        return self.why_level(file.level, self.tiers)

    def move(self, file: FileState, target: int, reason: str) -> None:
        """Add a move."""
        source = self.at[file.id]
        self.moves.append(Move(file.id, source, target, reason))
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
        starts = ((self.files[file].tier, move) for file, move in last.items())
        waiting = [Move(move.file, start, move.target, move.reason) for start, move in starts if start != move.target]
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
