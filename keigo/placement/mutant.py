"""The `mutant` policy: SSTs ordered by temperature, packed into the tiers from the fastest down.

As Mutant does (Yoon, Yang, Kristjansson, Sigurdarson, Vigfusson, Gavrilovska: "Mutant: Balancing Storage Cost and
Latency in LSM-Tree Data Stores", SoCC 2018; mutant/mutant.cc of its code). The temperature of an SST is its reads per
second and byte, decayed exponentially. Maximising what the fast storage serves, within the bytes that it may have, is a
0/1 knapsack problem, which Mutant solves greedily: the hottest SSTs go to the fast storage while they fit. SSTs on the
wrong side, but near the border, do not migrate: migration resistance. Neither do those that are younger than 30 s; a
migrated SST counts as new. Both are organized anew every second.

Where this differs:
- Mutant has two storages, and the bytes of the fast one follow from a budget in money. Here each tier has its room,
  less a twentieth for new files, and the hottest fill the first tier, the next hottest the second, and so on. Where
  room runs out, a file that resists makes way for one that does not.
- Mutant cools by 0.999 each second (half in 693 s). Here temperature is the heat that all policies are shown, which
  halves within about a minute. It is less smooth, so resistance is larger: see RESISTANCE.
- Mutant puts the output of a compaction where its inputs' mean temperature belongs, and leaves SSTs that were never
  read where they are, as long as that takes. Here new SSTs start on the fastest tier with room, and those that nobody
  reads any more leave it, the oldest first, when others need the room.
- Only foreground reads that reach the device warm an SST; Mutant counts in its table reader, before the block cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from keigo.placement.baseline import Baseline, fastest
from keigo.placement.packing import Packing, ordinal
from keigo.placement.policy import Choice, Context, Files, FileState, Move, TierState

PERIOD: Final = 1.0
YOUNG: Final = 30.0
"""Seconds; YOUNG_SST_AGE_CUTOFF in mutant.cc."""
RESISTANCE: Final = 0.1
"""Share of all bytes, half on each side of a border, that resists migration: `stg_cost_slo_epsilon` there, which has no
default; its authors' logs show 0.02."""


class MutantPolicy(Baseline):
    """See the module's docstring. `metadata_tier` takes all but WAL, SST and blob files; `period` is in seconds."""

    name: Final = "mutant"

    def __init__(self, metadata_tier: int, period: float = PERIOD) -> None:
        self._metadata = metadata_tier
        self.period: float | None = period

    def choose(self, context: Context, size: int, tiers: Sequence[TierState]) -> Choice:
        """See Policy."""
        return fastest(context, size, tiers, self._metadata)

    def plan(self, files: Files, tiers: Sequence[TierState]) -> list[Move]:
        """See Policy. Of equally warm SSTs each stays where it is, if its tier is not too small."""

        def temperature(file: FileState) -> float:
            return file.reads / max(1, file.size)

        def why(file: FileState, rank: int, count: int) -> str:
            return f"{temperature(file) * (1 << 20):.2g} reads/s per MiB, {ordinal(rank)} of {count}"

        return Packing(files, tiers, temperature, YOUNG, why, RESISTANCE).run()
