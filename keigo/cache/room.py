"""Room for chunks on the cache's device: cold ones go for warm ones, and what nobody reads any more is deleted.

Of the filler's thread alone.
"""

from __future__ import annotations

from collections import deque

from keigo import failpoints
from keigo.cache.cache import Cache
from keigo.cache.cached_file import CachedFile
from keigo.cache.progress import Failures, Progress
from keigo.cache.shadow import Shadow, chunk_space


class Room:
    """See the module's docstring."""

    def __init__(self, cache: Cache, progress: Progress, failures: Failures) -> None:
        self._cache = cache
        self._progress = progress
        self._failures = failures

    def free(self) -> int:
        """Bytes that may still be cached."""
        return max(0, self._failures.limit - self._cache.shadows.used)

    def make(self, size: int, out: deque[tuple[int, int]], keep: CachedFile) -> bool:
        """Have `size` bytes free, by taking out (file, chunk) of `out`; False where that cannot be.

        The shadow of `keep` stays, even without a chunk.
        """
        while self.free() < size:
            if not out:
                return False
            file, index = out.popleft()
            cached = self._cache.known(file)
            if cached is not None:
                self._evict(cached, index, keep)
        return True

    def _evict(self, cached: CachedFile, index: int, keep: CachedFile) -> None:
        shadow = self._cache.take_out(cached, index)
        if shadow is None:
            return
        self._progress.evicted += 1
        if not cached.chunks.cached and cached is not keep:
            self._cache.drop(cached)
            self.clear_up()
            return
        self.punch(cached, shadow, index)

    def punch(self, cached: CachedFile, shadow: Shadow, index: int) -> None:
        """Give back the room of a chunk that nobody reads."""
        try:
            shadow.punch(index)
        except OSError as error:
            self._failures.failed(cached, str(error.strerror))
            return
        failpoints.hit("cache.punched")
        self._cache.shadows.charge(shadow, -chunk_space(shadow.size, shadow.shift, index))

    def clear_up(self) -> None:
        """Delete what nobody reads any more."""
        shadows = self._cache.shadows
        for cached, shadow, index in self._cache.take_holes():
            if cached.shadow is not shadow:
                continue
            if cached.chunks.is_present(index):  # it was copied again meanwhile, and is counted twice
                shadows.charge(shadow, -chunk_space(shadow.size, shadow.shift, index))
            else:
                self.punch(cached, shadow, index)
        for shadow in shadows.doomed():
            try:
                failpoints.hit("cache.deleting")
                shadows.delete(shadow)
            except OSError as error:
                shadows.postpone(shadow)
                self._progress.note(f"a shadow cannot be deleted: {error.strerror}")
                break
