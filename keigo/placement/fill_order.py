"""The `fill-order` policy: the fastest tier until it is full, then the next.

As mergerfs places files with `category.create=ff` (the first branch with room), and as people think of RocksDB's
`db_paths`. RocksDB's own rule is another: `LevelCompactionBuilder::GetPathId` in compaction_picker_level.cc never asks
how full a path is. It takes each level to be as large as its options let it become (level 0 as large as level 1), and
gives a level the first path whose target size holds it together with the levels above it that are there too; what fits
nowhere goes to the last path. So there a level is on one path, the upper levels keep the fast one, and what is fast and
free is not used. Here the files that come first keep the fast tier, whatever their level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from keigo.placement.baseline import Baseline, fastest
from keigo.placement.planner import Planner, age, candidates
from keigo.placement.policy import Choice, Context, Files, Move, TierState


class FillOrderPolicy(Baseline):
    """See the module's docstring. `metadata_tier` takes all but WAL, SST and blob files."""

    name: Final = "fill-order"
    period: Final = None

    def __init__(self, metadata_tier: int) -> None:
        self._metadata = metadata_tier

    def choose(self, context: Context, size: int, tiers: Sequence[TierState]) -> Choice:
        """See Policy."""
        return fastest(context, size, tiers, self._metadata)

    def plan(self, files: Files, tiers: Sequence[TierState]) -> list[Move]:
        """See Policy.

        A tier whose room is negative is brought down until a twentieth of its capacity is free, the oldest files
        first, each to the next slower tier with room, else to a faster one. Nothing moves up but what is pinned there.
        """
        return Planner(candidates(files, tiers), tiers, lambda _: None, age).run()
