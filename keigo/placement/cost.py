"""The `cost` policy: each file where it is predicted to cost least time, under the load that there is now.

`economics` has what a file costs on a tier, `market` what room is worth and which files change places. Nothing here
knows levels from slow or fast by itself: that the upper levels belong on a fast tier follows from how soon their files
are rewritten, and that a tier takes fewer files while it is busy follows from its model at that load.
"""

from __future__ import annotations

from collections.abc import Sequence

from keigo.lsm.roles import IMMUTABLE, Role
from keigo.placement import economics, market
from keigo.placement.policy import Choice, Context, Files, FileState, Move, NoRoom, Prospect, TierState, first_fit


class CostPolicy:
    """See the module's docstring. `metadata_tier` takes all but WAL, SST and blob files."""

    name = "cost"
    period = 1.0  # loads and heat change while no file comes or goes

    def __init__(self, metadata_tier: int) -> None:
        self._metadata = metadata_tier

    def choose(self, context: Context, size: int, tiers: Sequence[TierState]) -> Choice:
        """See Policy. Of equal costs the faster tier's; where the cheapest has no room, the next cheapest with room."""
        if context.role is not Role.WAL and context.role not in IMMUTABLE:
            tier = first_fit(self._metadata, size, tiers)
            return Choice(tier, f"{context.role}: {tiers[self._metadata].name} is the tier for metadata")
        expected = context.expected or economics.UNKNOWN
        costs = economics.costs(context, size or max(1.0, expected.size), expected, tiers)
        order = sorted(range(len(tiers)), key=lambda tier: costs[tier].total)
        fitting = [tier for tier in order if tiers[tier].room >= max(size, 1)]
        if not fitting:
            raise NoRoom(f"no tier has room for {size} bytes")
        tier = fitting[0]
        reason = "costs least" if tier == order[0] else f"costs least with room; {tiers[order[0]].name} is full"
        return Choice(tier, reason, tuple(costs))

    def plan(self, files: Files, tiers: Sequence[TierState]) -> list[Move]:
        """See Policy."""
        return market.plan(files, tiers)

    def prospects(self, file: FileState, files: Files, tiers: Sequence[TierState]) -> list[Prospect]:
        """See Policy."""
        return market.prospects(file, files, tiers)

    def prices(self, files: Files, tiers: Sequence[TierState]) -> tuple[float, ...]:
        """See Policy."""
        return market.prices(files, tiers)
