"""What of a devices.yaml cannot change under a mount, for the kernel knows the volume as it is."""

from __future__ import annotations

from keigo.config import Config, TierConfig


def primary_of(config: Config) -> TierConfig:
    """The tier that holds the directories: the one in place, else the slowest."""
    return next((tier for tier in config.tiers if tier.in_place), config.tiers[-1])


def stands_against(was: Config, now: Config) -> str | None:
    """Why a mount that is served by `was` cannot go on by `now`; None: it can, as far as the two texts tell."""
    if now.volume != was.volume:
        return f"is volume {now.volume}'s now"
    missing = {tier.name for tier in was.tiers} - {tier.name for tier in now.tiers}
    if missing:
        return f"tier {', '.join(sorted(missing))} is missing"
    before, after = primary_of(was), primary_of(now)
    if (before.name, before.in_place) != (after.name, after.in_place):
        how = "is in place" if before.in_place else "is the slowest, and holds the directories"
        return f"tier {before.name} {how}, and must be so still"
    if (was.catalog or before.name) != (now.catalog or before.name):
        return f"the catalog is on tier {was.catalog or before.name}, and moves only while nothing is mounted"
    return None
