"""Plain data about a volume, ready for JSON. Sizes in bytes, times in seconds since the epoch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from keigo import clock
from keigo.devices.load import Load
from keigo.lsm.roles import IMMUTABLE
from keigo.tiers.volume import Volume


def status_of(volume: Volume, loads: Sequence[Load]) -> dict[str, Any]:
    """Policy, tiers with their loads, pins and state of a volume."""
    placing = volume.placing
    with volume.lock:
        return {
            "policy": placing.policy.name,
            "placement": {
                "policy": placing.policy.name,
                "prices": list(placing.prices),
                "pressure": asdict(placing.pressure),
                "profiled": list(placing.profiled),
            },
            "draining": volume.evacuation.draining,
            "leaving": None if volume.evacuation.leaving is None else volume.evacuation.leaving.name,
            "guards": len(volume.guards.guarded),
            "open_files": len(volume.open_files.by_id),
            "passthrough_readers": _pinned_readers(volume),
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
                    "load": asdict(load),
                    "degraded_for": tier.health.degraded_for,
                    "errors": tier.health.errors,
                    "last_error": tier.health.last,
                }
                for tier, load in zip(volume.tiers, loads, strict=True)
            ],
            "pins": volume.pins.all(),
        }


def _pinned_readers(volume: Volume) -> int:
    """SST and blob files that nobody writes any more and that cannot move: a reader is past us since then."""
    idle = [file for file, known in volume.open_files.by_id.items() if known.pinned and not known.writers]
    return sum(volume.record(file).role in IMMUTABLE for file in idle)


def file_rows(
    volume: Volume, reads: Mapping[int, Mapping[str, tuple[int, int]]], cached: Mapping[int, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """A row per regular file, by name. A file of several names has a row for each. `heat`: foreground reads per second.

    `reads`: file id -> class of thread -> (reads, bytes) that the page cache did not serve. `cached`: file id -> how
    many bytes the read cache has of it, and how it was read since it has: see `observe.cache`.
    """
    rows = []
    now = clock.now()
    with volume.lock:
        for file, record in volume.catalog.files():
            if record.special:
                continue
            known = volume.open_files.by_id.get(file)
            for link in record.links:
                rows.append(
                    {
                        "name": os.fsencode(volume.path(*link)).decode(errors="backslashreplace"),
                        "role": record.role.value,
                        "level": record.level,
                        "tier": record.home,
                        "size": record.size if known is None else known.size,
                        "cached_bytes": cached.get(file, {}).get("cached_bytes", 0),
                        "cache": cached.get(file),
                        "heat": volume.placing.heat(file, now),
                        "reads": reads.get(file, {}),
                        "created_level": record.created_level,
                        "family": record.family,
                        "created": record.created,
                        "links": len(record.links),
                        "open": known is not None,
                        "reason": record.reason,
                    }
                )
    return sorted(rows, key=lambda row: str(row["name"]))
