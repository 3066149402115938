"""What the read cache does, as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keigo.cache.cache import Cache
from keigo.cache.cached_file import Counts, cached_size

if TYPE_CHECKING:
    from keigo.cache.filler import Filler


def cache_facts(filler: Filler) -> dict[str, Any]:
    """Of `keigo status`. Counts are since the mount; `recent_hit_ratio` is of about the last minute."""
    cache, progress = filler.cache, filler.progress
    counts = progress.counts
    files = cache.files()
    return {
        "tier": cache.tier.name,
        "capacity": cache.capacity,
        "chunk": 1 << cache.shift,
        "used": cache.shadows.used,
        "files": sum(cached.shadow is not None for cached in files),
        "chunks": sum(cached.chunks.cached for cached in files),
        "unverified": sum(int.from_bytes(cached.chunks.doubtful(), "little").bit_count() for cached in files),
        **reads_of(counts),
        "foreground_reads": counts.foreground,
        "hit_ratio": counts.foreground_hits / counts.foreground if counts.foreground else None,
        "recent_hit_ratio": progress.recent_hits / progress.recent if progress.recent >= 1 else None,
        "seconds_saved": progress.saved,
        "filled": progress.filled,
        "filled_bytes": progress.filled_bytes,
        "evicted": progress.evicted,
        "waiting": progress.waiting,
        "warming": progress.warming,
        "speed": progress.speed,
        "paused": progress.paused,
        "damaged": cache.damaged,
        "errors": progress.errors,
        "last_error": progress.last_error,
    }


def reads_of(counts: Counts) -> dict[str, int]:
    """Reads of files of slower tiers, by where they were served."""
    return {
        "hits": counts.hits,
        "hit_bytes": counts.hit_bytes,
        "misses": counts.misses,
        "miss_bytes": counts.miss_bytes,
    }


def file_facts(cache: Cache) -> dict[int, dict[str, int]]:
    """File -> what is cached of it, and where its reads were served."""
    found = {}
    for cached in cache.files():
        reads = reads_of(Counts(*cached.chunks.counts()))
        found[cached.file] = {"cached_bytes": cached_size(cached), **reads}
    return found
