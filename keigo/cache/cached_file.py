"""A file that the cache knows: its chunks, its shadow, and what was read of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from keigo.cache._chunks import Chunks
from keigo.cache.shadow import Shadow
from keigo.tiers.fds import open_direct


@dataclass(frozen=True, slots=True)
class Counts:
    """What was read of cacheable files."""

    hits: int = 0
    """Reads that were served from the cache as a whole."""
    hit_bytes: int = 0
    misses: int = 0
    miss_bytes: int = 0
    foreground_hits: int = 0
    foreground: int = 0
    """Reads of the foreground."""
    errors: int = 0
    """Reads of the cache's device that failed, and were done at home."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True)))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True)))

    def as_tuple(self) -> tuple[int, ...]:
        """All of them, in order."""
        return (
            self.hits, self.hit_bytes, self.misses, self.miss_bytes, self.foreground_hits, self.foreground, self.errors,
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class CachedFile:
    """A file that readers have chunks of, or that has a shadow."""

    file: int
    chunks: Chunks
    shadow: Shadow | None = None
    ghosts: bytearray | None = None
    """A bit for each chunk that went out not long ago; None: no such chunks."""
    rehomed: bool = False
    """The head of the shadow does not say where the file is now."""
    counted: Counts = field(default_factory=Counts)
    """Of the chunks' counts, what was added to the cache's."""
    seconds: float = 0.0
    """Device time that hits have saved."""


def attach_shadow(chunks: Chunks, shadow: Shadow) -> None:
    """Let readers have a shadow. Raises OSError."""
    direct = open_direct(shadow.data)
    chunks.attach(shadow.data.fd, -1 if direct is None else direct.fd)


def cached_size(cached: CachedFile) -> int:
    """Bytes of a file that are cached."""
    shadow = cached.shadow
    if shadow is None or not cached.chunks.cached:
        return 0
    size = cached.chunks.cached << shadow.shift
    last = shadow.count - 1
    if cached.chunks.is_present(last) or cached.chunks.is_doubtful(last):
        size -= (1 << shadow.shift) - shadow.length(last)
    return size
