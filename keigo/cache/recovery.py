"""What a mount takes in of the shadows that are on the device: those of files that are still the same."""

from __future__ import annotations

import logging
from collections.abc import Callable

from keigo.cache._chunks import Chunks
from keigo.cache.cached_file import CachedFile, attach_shadow
from keigo.cache.shadow import Home, Shadow, base_space, chunk_space
from keigo.cache.shadows import Shadows
from keigo.cache.sources import file_at, home_of, source_tier
from keigo.cache.store import Store
from keigo.tiers.tier import Tier
from keigo.tiers.volume import Volume

log = logging.getLogger(__name__)


def recover(
    volume: Volume,
    tier: Tier,
    store: Store,
    shadows: Shadows,
    capacity: int,
    verify: Callable[[CachedFile, int], None],
) -> dict[int, CachedFile]:
    """Take in shadows, up to `capacity` bytes; returns their files by id. The others are deleted. Raises OSError.

    After a clean end their chunks are trusted, else each is in doubt until `verify` has looked at it.
    """
    files: dict[int, CachedFile] = {}
    found: dict[bytes, int] = {}

    def home_at(path: bytes) -> Home | None:
        file = file_at(volume, path)
        if file is None or file in files or source_tier(volume, tier, file) is None:
            return None
        found[path] = file
        return home_of(volume, file)

    for shadow in store.load(home_at):
        file = found[shadow.head.path]
        try:
            cached = _adopt(file, shadow, shadows, capacity, None if store.was_clean else verify)
        except Exception as error:  # noqa: BLE001  whatever is wrong with a copy, it can be done without
            log.warning("cache: shadow %s cannot be used: %s", shadow.name.decode(), error)
            cached = None
        if cached is None:
            _dispose(shadow, shadows)
        else:
            files[file] = cached
    return files


def _adopt(
    file: int,
    shadow: Shadow,
    shadows: Shadows,
    capacity: int,
    verify: Callable[[CachedFile, int], None] | None,
) -> CachedFile | None:
    """A file of a shadow that was found, with all its chunks, in doubt if there is `verify`; None: it has no room."""
    sums, heat = shadow.sums(), shadow.heat()
    there = [index for index, value in enumerate(sums) if value]
    space = base_space(shadow.size, shadow.shift)
    space += sum(chunk_space(shadow.size, shadow.shift, index) for index in there)
    if not there or shadows.used + space > capacity or shadows.count >= shadows.most:
        return None
    chunks = Chunks(shadow.size, shadow.shift)
    cached = CachedFile(file, chunks, shadow)
    try:
        attach_shadow(chunks, shadow)
        chunks.set_heat(heat)
        if verify is not None:
            chunks.set_verify(lambda index: verify(cached, index))
            shadow.punch_others(there)  # a chunk may have been on its way in or out
        for index in there:
            if verify is None:
                chunks.fill(index)
            else:
                chunks.doubt(index)
    except BaseException:
        chunks.end()
        raise
    shadows.began()
    shadows.charge(shadow, space)
    return cached


def _dispose(shadow: Shadow, shadows: Shadows) -> None:
    try:
        shadow.delete()
    except OSError as error:
        log.warning("cache: shadow %s cannot be deleted: %s", shadow.name.decode(), error)
        shadows.charge(shadow, shadow.space())
        shadows.doom(shadow)
