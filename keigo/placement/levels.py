"""The `levels` policy: each tier lists the LSM levels, and `wal`, that it is for.

This is the released configuration of the Keigo paper, with room taken into account. Nothing is learned or
measured: a file goes to the tier that lists it; where that one is full, to the next slower one with room,
else to the next faster one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final, Literal

from keigo.lsm.roles import IMMUTABLE, Role
from keigo.lsm.threads import Job
from keigo.placement.baseline import Baseline
from keigo.placement.planner import Place, Planner, candidates
from keigo.placement.policy import Bucket, Choice, Context, Files, FileState, Move, TierState, first_fit


class LevelsPolicy(Baseline):
    """Static lists: `levels[i]` is what tier i lists; `metadata_tier` takes all but WAL, SST and blob files.

    A level listed nowhere goes with the next deeper one that is listed, and below all of them to the slowest
    tier that lists any; with no list at all, to the slowest tier. A level listed twice belongs to the faster
    tier.
    """

    name: Final = "levels"
    period: Final = None

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

    def plan(self, files: Files, tiers: Sequence[TierState]) -> list[Move]:
        """See Policy.

        A tier whose room is negative is brought down until a twentieth of its capacity is free: first go
        files that belong on a slower tier, the deepest level first, then the others, unknown levels first
        (flushes are known to be for level 0, so these are deeper); among equals the oldest first. Files move
        to the tier that they are pinned to where it has room, and to the one that lists their level where
        that leaves the twentieth free: so they are not soon brought down again.
        """

        @cache
        def of_level(level: int) -> Place:
            return Place(self.tier_of_level(level), self._why_level(level, tiers))

        def place(file: FileState) -> Place | None:
            return None if file.level is None else of_level(file.level)

        def tier(bucket: Bucket) -> int | None:
            return None if bucket.group.level is None else of_level(bucket.group.level).tier

        return Planner(candidates(files, tiers, tier), tiers, place, _depth_and_age).run()

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


def _depth_and_age(file: FileState) -> tuple[float, ...]:
    depth = float("inf") if file.level is None else file.level
    return -depth, float("inf") if file.number is None else file.number
