"""The placement policy that a configuration, or a command line, asks for."""

from __future__ import annotations

from keigo.config import POLICIES, Config
from keigo.errors import KeigoError
from keigo.placement.cost import CostPolicy
from keigo.placement.fill_order import FillOrderPolicy
from keigo.placement.levels import LevelsPolicy
from keigo.placement.mutant import MutantPolicy
from keigo.placement.policy import Policy
from keigo.placement.popularity import PopularityPolicy


class PolicyError(KeigoError):
    """There is no such policy; the text is one line that says which there are."""


def make_policy(config: Config, name: str | None = None) -> Policy:
    """The policy of the configuration, or the one called `name`. Raises PolicyError."""
    chosen = name or config.placement.policy
    names = [tier.name for tier in config.tiers]
    metadata = next((index for index, tier in enumerate(config.tiers) if tier.in_place), len(names) - 1)
    if chosen == "cost":
        return CostPolicy(metadata)
    if chosen == "levels":
        return LevelsPolicy([frozenset(config.placement.levels.get(tier, ())) for tier in names], metadata)
    if chosen == "fill-order":
        return FillOrderPolicy(metadata)
    # A period is an option of the configured policy, not of another one that the command line asks for.
    period = config.placement.period if chosen == config.placement.policy else None
    if chosen == "popularity":
        return PopularityPolicy(metadata) if period is None else PopularityPolicy(metadata, period)
    if chosen == "mutant":
        return MutantPolicy(metadata) if period is None else MutantPolicy(metadata, period)
    raise PolicyError(f"{chosen!r} is not a policy (known: {', '.join(POLICIES)})")
