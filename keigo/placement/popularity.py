"""The `popularity` policy: files ordered by how often they are read, packed into the tiers from the fastest down.

As autotier does (45Drives; TierEngine/components/tiering.cpp): new files go to the fastest tier; every tier period
(1000 s in the configuration that it writes, 100 s in its manual's example) all files are sorted by popularity, and each
goes to the first tier whose quota has room left. Nothing is known of an LSM.

Where this differs:
- Popularity is reads per second at the present heat, which halves within about a minute. autotier counts opens, which
  says nothing of a database that keeps its files open, and averages over half a day and more.
- A file moves once a period at most, and is as old as a period when it first does; autotier moves all files at once,
  when a period ends. A tier that is too full is brought down at once.
- Files that nobody reads stay where they are until their room is needed, and then the oldest go. autotier sorts them by
  the time of the last access, and moves them up where there is room.
- The quota of a tier is its capacity less its reserve and a twentieth, so that new files find room. Where the fastest
  tier has none they go to the next; autotier's writer waits there until all files have been tiered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from keigo.placement.baseline import Baseline, fastest
from keigo.placement.packing import Packing, ordinal
from keigo.placement.policy import Choice, Context, Files, FileState, Move, TierState

PERIOD: Final = 60.0
"""Seconds. Shorter than autotier's, for the files of an LSM live for minutes."""


class PopularityPolicy(Baseline):
    """See the module's docstring. `metadata_tier` takes all but WAL, SST and blob files; `period` is in seconds."""

    name: Final = "popularity"

    def __init__(self, metadata_tier: int, period: float = PERIOD) -> None:
        self._metadata = metadata_tier
        self.period: float | None = period
        self._rest = period

    def choose(self, context: Context, size: int, tiers: Sequence[TierState]) -> Choice:
        """See Policy."""
        return fastest(context, size, tiers, self._metadata)

    def plan(self, files: Files, tiers: Sequence[TierState]) -> list[Move]:
        """See Policy. Of files that are read equally often each stays where it is, if its tier is not too small."""

        def why(file: FileState, rank: int, count: int) -> str:
            return f"{file.reads:.2g} reads/s, {ordinal(rank)} of {count}"

        return Packing(files, tiers, lambda file: file.reads, self._rest, why).run()
