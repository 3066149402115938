"""Why a file is where it is, as plain data for JSON. Sizes in bytes, times in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from keigo import clock
from keigo.tiers.catalog import ROOT, Entry, FileRecord
from keigo.tiers.volume import Volume


def explain(volume: Volume, name: str, held: Callable[[int], str | None]) -> dict[str, Any] | None:
    """What is known of the file of a name as `ls` shows it; None where there is none. `held`: `Mover.held`."""
    now = clock.now()
    with volume.lock:
        found = _find(volume, name)
        if found is None:
            return None
        file, record = found
        path = volume.path(*record.links[0])
        known = volume.open_files.by_id.get(file)
        pinned = volume.pins.tier_for(path)
    placing = volume.placing
    tiers = placing.tier_states()
    view = placing.view(now)
    state = placing.index.state(file, now)
    prospects = [] if state is None else placing.policy.prospects(state, view, tiers)
    expected = None if state is None or state.group is None else view.expect(state.group)
    return {
        "name": name,
        "role": record.role.value,
        "level": record.level,
        "created_level": record.created_level,
        "family": record.family,
        "size": record.size if known is None else known.size,
        "tier": record.home,
        "reason": record.reason,
        "pinned": None if pinned is None else pinned[1],
        "kept": record.kept,
        "open": state is None and not record.special,
        "held": held(file),
        "age": now - record.created if record.created else 0.0,
        "since_move": now - record.moved if record.moved else None,
        "policy": placing.policy.name,
        "pressure": asdict(placing.pressure),
        "at_create": _at_create(volume, record),
        "expected": None if expected is None else asdict(expected),
        "reads": 0.0 if state is None else state.reads,
        "now": [
            {
                "tier": tiers[prospect.tier].name,
                "keeping": prospect.keeping,
                "copy": prospect.copy,
                "room": tiers[prospect.tier].room,
                "price": tiers[prospect.tier].price,
                "verdict": prospect.verdict,
            }
            for prospect in prospects
        ],
    }


def _find(volume: Volume, name: str) -> tuple[int, FileRecord] | None:
    """The file of a path, of which each part is looked up. The lock is held."""
    at = Entry("dir", ROOT)
    for part in os.fsencode(name).split(b"/"):
        found = volume.lookup(at.id, part) if at.kind == "dir" else None
        if found is None:
            return None
        at = found
    return None if at.kind == "dir" else (at.id, volume.record(at.id))


def _at_create(volume: Volume, record: FileRecord) -> list[dict[str, Any]]:
    """The decision's costs by tier; none of a volume whose tiers are others now."""
    if record.costs is None or len(record.costs) != len(volume.tiers):
        return []
    return [
        {"tier": tier.name, "write": write, "read": read, "room": room, "total": write + read + room}
        for tier, (write, read, room) in zip(volume.tiers, record.costs, strict=True)
    ]
