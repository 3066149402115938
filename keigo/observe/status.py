"""Plain data about a volume, ready for JSON. Sizes in bytes, times in seconds since the epoch."""

from __future__ import annotations

import os
from typing import Any

from keigo.tiers.volume import Volume


def status_of(volume: Volume) -> dict[str, Any]:
    """Policy, tiers, pins and state of a volume."""
    with volume.lock:
        return {
            "policy": volume.policy.name,
            "draining": volume.draining,
            "guards": len(volume.guarded),
            "open_files": len(volume.open_files),
            "tiers": [
                {
                    "name": tier.name,
                    "path": tier.label,
                    "in_place": tier.in_place,
                    "capacity": tier.capacity,
                    "reserve": tier.reserve,
                    "used": tier.used,
                    "room": tier.room(),
                    "files": tier.files,
                }
                for tier in volume.tiers
            ],
            "pins": volume.pins.all(),
            "cache": {},
        }


def file_rows(volume: Volume) -> list[dict[str, Any]]:
    """A row per regular file, by name. A file of several names has a row for each."""
    rows = []
    with volume.lock:
        for file, record in volume.catalog.files():
            if record.special:
                continue
            known = volume.open_files.get(file)
            for link in record.links:
                rows.append(
                    {
                        "name": os.fsencode(volume.path(*link)).decode(errors="backslashreplace"),
                        "role": record.role.value,
                        "level": record.level,
                        "tier": record.home,
                        "size": record.size if known is None else known.size,
                        "cached_bytes": 0,
                        "heat": record.heat,
                        "created_level": record.created_level,
                        "created": record.created,
                        "links": len(record.links),
                        "open": known is not None,
                        "reason": record.reason,
                    }
                )
    return sorted(rows, key=lambda row: str(row["name"]))
