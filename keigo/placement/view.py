"""The files of a volume as a policy sees them at one moment: `Files` over a `FileIndex`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from keigo.lsm.pressure import CALM, Pressure
from keigo.placement.heat import COLD, COLDEST, shift
from keigo.placement.index import FileIndex, Key
from keigo.placement.policy import Bucket, Expectation, FileState, Group


class View:
    """A snapshot of each answer, not of all together. Files that cannot move now are counted and not shown."""

    def __init__(
        self,
        index: FileIndex,
        now: float,
        expect: Callable[[Group], Expectation],
        without: Collection[int] = frozenset(),
        pressure: Pressure = CALM,
    ) -> None:
        """`without`: ids of files that are not to move."""
        self._index = index
        self._now = now
        self._expect = expect
        self._without = without
        self._pressure = pressure
        self._shift = shift(now)
        self._cold: dict[tuple[int, Group, int], list[Key]] | None = None

    @property
    def now(self) -> float:
        """See `Files`."""
        return self._now

    @property
    def pressure(self) -> Pressure:
        """See `Files`."""
        return self._pressure

    def expect(self, group: Group) -> Expectation:
        """See `Files`."""
        return self._expect(group)

    def __iter__(self) -> Iterator[FileState]:
        """See `Files`; without those that cannot move now."""
        return self._index.all_states(self._now, self._without)

    def buckets(self) -> Sequence[Bucket]:
        """See `Files`."""
        cold: dict[tuple[int, Group, int], list[Key]] = {}
        found: dict[Key, list[int]] = {}
        """With k as `heat` has it, all cold ones alike -> files, bytes."""
        for bucket in self._index.snapshot():
            tier, group, pinned, k = key = bucket.key
            heat = k - self._shift
            if heat < COLDEST:
                heat = COLD
                cold.setdefault((tier, group, pinned), []).append(key)
            counts = found.setdefault((tier, group, pinned, heat), [0, 0])
            counts[0] += bucket.files
            counts[1] += bucket.bytes
        self._cold = cold
        return [
            Bucket(tier, group, None if heat == COLD else heat, None if pinned < 0 else pinned, counts[0], counts[1])
            for (tier, group, pinned, heat), counts in found.items()
            if counts[0]
        ]

    def members(self, bucket: Bucket) -> Iterator[FileState]:
        """See `Files`."""
        base = (bucket.tier, bucket.group, -1 if bucket.pinned is None else bucket.pinned)
        if bucket.heat is not None:
            yield from self._index.states((*base, bucket.heat + self._shift), self._now, self._without)
            return
        if self._cold is None:
            self.buckets()
        for key in (self._cold or {}).get(base, ()):
            yield from self._index.states(key, self._now, self._without)
