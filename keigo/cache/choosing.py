"""What is worth caching: how warm chunks are, and what a hit saves; `plan` decides with that.

Of the filler's thread alone. Heat is halved when it is of a minute, and of reads enough to tell chunks apart.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from keigo import clock
from keigo.cache.cache import Cache
from keigo.cache.cached_file import CachedFile, Counts
from keigo.cache.plan import HALF_LIFE, Candidate, Plan, plan
from keigo.cache.progress import Failures
from keigo.tiers.tier import Tier

_MOST: Final = 512  # chunks of a plan: some seconds of copying
_TELLING: Final = 64  # reads per chunk; two that are equally warm then differ by an eighth as a rule
_LONGEST: Final = 600.0  # seconds until heat is halved, however few reads there were


class Choosing:
    """See the module's docstring."""

    def __init__(self, cache: Cache, failures: Failures) -> None:
        self._cache = cache
        self._volume = cache.volume
        self._failures = failures
        self._halved = clock.now()
        self._reads = 0
        """Of the foreground, since heat was last halved."""
        self._before = HALF_LIFE
        """Seconds that what was left of the heat, when it was last halved, was of."""
        self._read_size = 4096.0

    def saw(self, counts: Counts) -> None:
        """Take in what was read."""
        self._reads += counts.foreground
        reads = counts.hits + counts.misses
        if reads:
            self._read_size = 0.7 * self._read_size + 0.3 * (counts.hit_bytes + counts.miss_bytes) / reads

    # --- heat ---

    def cool(self) -> None:
        """Halve the heat if it is time."""
        age = clock.now() - self._halved
        chunks = sum(cached.chunks.count for cached in self._cache.files())
        if age >= HALF_LIFE and (self._reads >= _TELLING * chunks or age >= _LONGEST):
            self._halve()

    def _halve(self) -> None:
        now = clock.now()
        self._before = (self._before + now - self._halved) / 2
        self._halved = now
        self._reads = 0
        shadows = self._cache.shadows
        enough = 7 * shadows.most // 8 if shadows.count >= shadows.most else shadows.most
        for cached in self._cache.files():
            warm = cached.chunks.halve()
            cached.ghosts = None
            shadow = cached.shadow
            if shadow is not None and not warm and (not cached.chunks.cached or shadows.count > enough):
                self._cache.drop(cached)
            elif shadow is not None:
                try:
                    shadow.write_heat(cached.chunks.heat())
                except OSError as error:
                    self._failures.failed(cached, str(error.strerror))
            elif not warm:
                self._cache.forget(cached)

    # --- what a hit saves ---

    def saving(self, file: int) -> float:
        """Seconds that a read of a file takes less from the cache."""
        home = self._home(file)
        return 0.0 if home is None else max(0.0, self._read_time(home) - self._read_time(self._cache.tier))

    def _home(self, file: int) -> Tier | None:
        record = self._volume.catalog_file(file)
        return None if record is None else self._volume.tier_of(record)

    def _read_time(self, tier: Tier) -> float:
        rates = self._volume.placing.rates[tier.index]
        return rates.read + max(0.0, self._read_size - 4096) * rates.read_byte

    # --- plan ---

    def plan(self, free: int) -> Plan:
        """What should be copied next, `free` bytes being free, and what should make room for it."""
        candidates = (found for cached in self._cache.files() if (found := self._candidate(cached)) is not None)
        age = max(0.0, self._before - HALF_LIFE + clock.now() - self._halved)
        return plan(candidates, free >> self._cache.shift, _MOST, age)

    def _candidate(self, cached: CachedFile) -> Candidate | None:
        chunks, shadows, tier = cached.chunks, self._cache.shadows, self._cache.tier
        heat = np.frombuffer(chunks.heat(), np.uint16)
        if not chunks.size or (not chunks.cached and not heat.any()):
            return None
        home = self._home(cached.file)
        if home is None or home.index <= tier.index:
            return None
        there = _unpacked(chunks.present(), chunks.count) | _unpacked(chunks.doubtful(), chunks.count)
        ghosts = _unpacked(bytes(cached.ghosts or bytes(-(-chunks.count // 8))), chunks.count)
        cannot = cached.shadow is None and shadows.count >= shadows.most
        refused = cannot or self._failures.is_refused(cached.file)
        rates = self._volume.placing.rates
        copy = (1 << self._cache.shift) * (rates[home.index].stream + rates[tier.index].write(0))
        saving = 0.0 if refused else self.saving(cached.file)
        return Candidate(cached.file, heat, there, ghosts, saving, copy, self._volume.placing.life(cached.file))


def _unpacked(bitmap: bytes, count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    found = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=count, bitorder="little")
    return found.astype(np.bool_)
