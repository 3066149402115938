"""The setups of a plan.

    setups:
      - all-slow
      - all-fast
      - each-tier
      - {tier: nvme}
      - db_paths                                      # target sizes: the capacities; or {db_paths: {nvme: 1GiB}}
      - mergerfs
      - {directory: /var/tmp}
      - {keigo: levels, driver: pyfuse3, cache: true, levels: {nvme: [wal, 0, 1, 2], sata: [3, 4, 5, 6]}}
      - {keigo: cost, name: Keigo, profile: devices.profile.json}   # beside the plan; see `keigo profile`

Each has a name that no other has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from keigo.config import Level
from workloads.compare.document import Node
from workloads.compare.hierarchy import TierPlan
from workloads.compare.setups import DRIVERS, DbPaths, Keigo, Mergerfs, OneTier, Plain, Setup

_WORDS: Final = ("all-slow", "all-fast", "each-tier", "db_paths", "mergerfs")
_KINDS: Final = ("tier", "db_paths", "mergerfs", "directory", "keigo")


def setups_of(node: Node, tiers: Sequence[TierPlan], base: Path) -> tuple[Setup, ...]:
    """The setups, each with a name of its own. Raises PlanError."""
    found: dict[str, Setup] = {}
    for item in node.items():
        for setup in _setups(item, tiers, base):
            if setup.name in found:
                raise item.error(f"{setup.name!r} is the name of two setups: give one a name")
            found[setup.name] = setup
    return tuple(found.values())


def _setups(item: Node, tiers: Sequence[TierPlan], base: Path) -> list[Setup]:
    if item.is_mapping():
        return [_mapped(item, tiers, base)]
    word = item.choice(_WORDS)
    if word == "each-tier":
        return [OneTier(f"tier-{tier.name}", number) for number, tier in enumerate(tiers)]
    made: dict[str, Callable[[], Setup]] = {
        "all-slow": lambda: OneTier(word, len(tiers) - 1),
        "all-fast": lambda: OneTier(word, 0),
        "db_paths": lambda: DbPaths(word),
        "mergerfs": lambda: Mergerfs(word),
    }
    return [made[word]()]


def _mapped(item: Node, tiers: Sequence[TierPlan], base: Path) -> Setup:
    kinds = [kind for kind in _KINDS if kind in item.entries()]
    if len(kinds) != 1:
        raise item.error(f"must have one of {', '.join(_KINDS)}, not {' and '.join(kinds) or 'none'}")
    kind = kinds[0]
    more = ("driver", "cache", "levels", "profile") if kind == "keigo" else ()
    given = item.mapping((kind, "name", *more))
    value = given.get(kind)
    name = given["name"].text() if "name" in given else None
    names = [tier.name for tier in tiers]
    if kind == "mergerfs":
        return Mergerfs(name or kind)
    if kind == "db_paths":
        targets = {} if value is None else {tier: size.size() for tier, size in _of_tiers(value, names)}
        return DbPaths(name or kind, targets)
    if value is None:
        raise item.error(f"{kind}: is missing")
    if kind == "tier":
        return OneTier(name or f"tier-{value.text()}", names.index(value.choice(names)))
    if kind == "directory":
        return Plain(name or "plain", base / value.text())
    return _keigo(given, value.text(), name, names, base)


def _keigo(given: dict[str, Node], policy: str, name: str | None, names: Sequence[str], base: Path) -> Keigo:
    if "levels" in given and policy != "levels":
        raise given["levels"].error(f"is for policy levels only; the policy is {policy}")
    driver = given["driver"].choice(DRIVERS) if "driver" in given else "auto"
    cache = "cache" in given and given["cache"].flag()
    levels = {tier: _levels(node) for tier, node in _of_tiers(given["levels"], names)} if "levels" in given else None
    profile = base / given["profile"].text() if "profile" in given else None
    parts = ["keigo", policy, *([driver] if driver != "auto" else []), *(["cache"] if cache else [])]
    return Keigo(name or "-".join(parts), policy, driver, cache, levels, profile)


def _of_tiers(node: Node, names: Sequence[str]) -> list[tuple[str, Node]]:
    found = node.entries()
    for name, inner in found.items():
        if name not in names:
            raise inner.error(f"is not a tier (tiers: {', '.join(names)})")
    return list(found.items())


def _levels(node: Node) -> tuple[Level, ...]:
    return tuple("wal" if item.value == "wal" else item.count(0) for item in node.items())
