"""The LSM tree of each database in a volume: level by level, how many files and bytes, and on which tier."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from keigo.lsm.roles import IMMUTABLE, Role
from keigo.tiers.catalog import ROOT
from keigo.tiers.observer import Observer
from keigo.tiers.volume import Volume

_Group = dict[str, list[int]]
"""Tier -> sizes of files."""


def trees_of(volume: Volume, observer: Observer) -> dict[str, Any]:
    """Tiers, and a tree per database: sizes in bytes, `level` None for files of no known level and for blob files.

    `target` is the size that the store lets a level grow to, None where the options do not tell.
    """
    groups: dict[int, dict[tuple[str, str, int | None], _Group]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    with volume.lock:
        for file, record in volume.catalog.files():
            if record.role not in IMMUTABLE:
                continue
            known = volume.open_files.by_id.get(file)
            size = record.size if known is None else known.size
            for directory, _ in record.links:
                key = (record.family or "", record.role.value, record.level)
                groups[directory][key][record.home].append(size)
        paths = {at: os.fsencode(volume.path(at)).decode(errors="backslashreplace") for at in groups}
    told = observer.databases()
    return {
        "tiers": [tier.name for tier in volume.tiers],
        "databases": [
            {
                "directory": paths[at],
                **told.get(at, {"engine": None}),
                "families": _families(groups[at], told.get(at, {})),
            }
            for at in sorted(groups, key=lambda at: (at != ROOT, paths[at]))
        ],
    }


def _families(groups: Mapping[tuple[str, str, int | None], _Group], told: Mapping[str, Any]) -> list[dict[str, Any]]:
    targets = told.get("targets", {})
    found = []
    for family in sorted({name for name, _, _ in groups}):
        levels = []
        for (name, role, level), tiers in sorted(groups.items(), key=lambda item: _order(item[0])):
            if name != family:
                continue
            known = targets.get(family, ())
            levels.append(
                {
                    "level": level,
                    "role": role,
                    "files": sum(len(sizes) for sizes in tiers.values()),
                    "size": sum(sum(sizes) for sizes in tiers.values()),
                    "target": known[level] if level and level < len(known) else None,
                    "tiers": {tier: sum(sizes) for tier, sizes in tiers.items()},
                }
            )
        found.append({"name": family, "levels": levels})
    return found


def _order(key: tuple[str, str, int | None]) -> tuple[str, bool, int]:
    _, role, level = key
    return ("" if role == Role.SST.value else role), level is None, level or 0
