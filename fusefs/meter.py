"""What goes to the tiers: counted where it passes through us, measured from outside where the kernel writes past us.

A file that the kernel writes past us (`OpenFiles.bypassed`) tells by its size alone what came to it. Asking for that
may hang with its device (a tier on a network), so `Volume.lock` is not held meanwhile, and what was told counts only
if nobody has taken note of the file since it was looked up; else it is asked again the next time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final

from fusefs.handles import Handle
from keigo.tiers.fds import Fd, start_write_back
from keigo.tiers.open_files import OpenFile
from keigo.tiers.tier import Tier, space_of
from keigo.tiers.traffic import Moved
from keigo.tiers.volume import Volume

_WRITE_BACK: Final = 1 << 20  # bytes; less is left to the kernel's own pace


@dataclass(frozen=True, slots=True)
class _Look:
    """A file as it was told to be, and what was known of it just before."""

    node: int
    file: Fd
    known: OpenFile
    space: int
    revision: int
    status: os.stat_result


class Meter:
    """See the module's docstring. Any thread may call; none may hold `Volume.lock`."""

    def __init__(self, volume: Volume, handles: Mapping[int, Set[Handle]]) -> None:
        self._volume = volume
        self._handles = handles
        """Node -> its open handles; guarded by `Volume.lock`."""
        self._told: dict[str, int] = {}
        self._measuring = threading.Lock()  # before `Volume.lock`: else two would spoil each other's looks
        self.writes_are_timed = True
        """Whether every write of a file comes through us, so that the time it takes is known."""
        self.read_elsewhere: Callable[[int], Moved] = lambda _tier: Moved(0, 0, 0, 0)
        """What a driver read itself of a tier, by the tier's index."""
        self.failed_elsewhere: Callable[[int], int] = lambda _tier: 0
        """How many reads and syncs of a driver's own have failed on a tier, by the tier's index."""

        self.synced_elsewhere: Callable[[int], tuple[int, int]] = lambda _tier: (0, 0)
        """How many syncs a driver has made itself on a tier, and how many are under way."""

    def progress(self, tier: Tier) -> tuple[int, int]:
        """(how many reads, writes and syncs of a tier's files have ended, how many are under way)."""
        elsewhere, (syncs, syncing) = self.read_elsewhere(tier.index), self.synced_elsewhere(tier.index)
        found = tier.traffic.reads.moved() + tier.traffic.writes.moved() + tier.traffic.syncs.moved() + elsewhere
        return found.requests + syncs, found.under_way + syncing

    def measure_writers(self) -> None:
        """Take note of what the kernel wrote past us, so that room and `status` are right while files are open.

        Also begin to write it back: a database's sync_file_range (`bytes_per_sync`) does nothing on a passthrough
        file, and the next fsync would find all of it dirty (262 MB were seen).
        """
        with self._measuring:
            looks = self._look()
            with self._volume.lock:
                more = [
                    self._volume.open_files.measure(look.node, look.status) if self._holds(look) else 0
                    for look in looks
                ]
        for look, grown in zip(looks, more, strict=True):
            if grown >= _WRITE_BACK:
                start_write_back(look.file.fd)

    def traffic(self, tiers: Sequence[str]) -> list[tuple[Moved, Moved]]:
        """What came to each of these tiers through the mount, and by migration: (reads, writes).

        With the kernel driver: no reads of passthrough files; of their writes what they grew by, and no times.
        """
        looks = self._look()
        found = []
        with self._volume.lock:
            growing = self._growing(looks)
            for name in tiers:
                tier = self._volume.by_name[name]
                reads = tier.traffic.reads.moved() + self.read_elsewhere(tier.index)
                writes = tier.traffic.writes.moved()
                # A file that is being closed, or was cut, is in neither sum for a moment: no count may go back.
                told = self._told[name] = max(self._told.get(name, 0), writes.bytes + growing.get(name, 0))
                took = writes.nanoseconds if self.writes_are_timed else None
                found.append((reads, replace(writes, bytes=told, nanoseconds=took)))
        return found

    def _look(self) -> list[_Look]:
        """All files that the kernel writes past us, asked without the lock."""
        with self._volume.lock:
            found = []
            for node in self._volume.open_files.bypassed:
                handle = next(iter(self._handles.get(node, ())), None)
                if handle is not None:
                    known = self._volume.open_files.by_id[node]
                    found.append((node, handle.file, known, known.space, known.revision))
        return [_Look(*look, os.fstat(look[1].fd)) for look in found]

    @staticmethod
    def _holds(look: _Look) -> bool:
        """Whether nobody took note of a file, nor closed it, since it was looked up. The lock is held."""
        return (look.known.space, look.known.revision) == (look.space, look.revision)

    def _growing(self, looks: Sequence[_Look]) -> dict[str, int]:
        """Tier -> bytes that the kernel wrote past us and that are not charged yet. The lock is held."""
        found: dict[str, int] = {}
        for look in filter(self._holds, looks):
            more = max(0, space_of(look.status) - look.space)
            found[look.known.tier.name] = found.get(look.known.tier.name, 0) + more
        return found
