"""What the policies have in common that know no costs: there to be compared with, or for those who know better.

They tell files apart by role only where they must: what is not WAL, SST or blob file goes to one tier for metadata, for
such files are renamed over one another, which is atomic on one tier only.
"""

from __future__ import annotations

from collections.abc import Sequence

from keigo.lsm.roles import IMMUTABLE, Role
from keigo.placement.policy import Choice, Context, Files, FileState, Prospect, TierState, first_fit


class Baseline:
    """A policy without prices."""

    def prospects(self, file: FileState, files: Files, tiers: Sequence[TierState]) -> list[Prospect]:  # noqa: ARG002
        """See Policy."""
        return []

    def prices(self, files: Files, tiers: Sequence[TierState]) -> tuple[float, ...]:  # noqa: ARG002
        """See Policy."""
        return (0.0,) * len(tiers)


def fastest(context: Context, size: int, tiers: Sequence[TierState], metadata_tier: int) -> Choice:
    """The fastest tier with room, but metadata on its own tier. Raises NoRoom."""
    if context.role is not Role.WAL and context.role not in IMMUTABLE:
        return fitting(metadata_tier, f"{context.role}: {{}} is the tier for metadata", size, tiers)
    return fitting(0, "{} is the fastest", size, tiers)


def fitting(wished: int, reason: str, size: int, tiers: Sequence[TierState]) -> Choice:
    """The tier wished for, or the next with room; `reason` has {} for the wished tier's name. Raises NoRoom."""
    tier = first_fit(wished, size, tiers)
    reason = reason.format(tiers[wished].name)
    if tier != wished:
        reason = f"{reason}; {tiers[wished].name} is full, {tiers[tier].name} has room"
    return Choice(tier, reason)
