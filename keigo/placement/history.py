"""What the files of a group have been like: their size, their life, and how they are read.

Life, by Little's law: bytes that are there, times seconds, per bytes that die. It needs no file's age, holds for any
distribution of lives, and counts what is still alive: while nothing dies the estimate grows. Both sums fade with each
death (MEMORY), so that what happened some tens of deaths ago is forgotten. In bytes, not files, because what room
costs is bytes times seconds: a level's last, small files say little about where its data should be.

Reads per second and byte, likewise: reads per byte-second, both fading with time.

What was never seen is assumed: of an SST, what the nearest level of its family that is known has, its life times
GROWTH per level between (as much data as GROWTH times the level above waits GROWTH times as long to be compacted); of
a WAL what level 0 has, and the other way round, for both are one memtable; else constants. An assumed life counts as
one death, and fades with the square of the number of deaths seen: one that is wrong by 100 is overruled by ten.

Pure of time and I/O: `now` comes with each call; a clock that goes back stands still. Each call is O(1), but for
`expect` of a group of which few files have died, which looks at the other groups of its database.

Threads: `_lock` is a leaf; nothing is called under it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Final

from keigo.lsm.roles import Role
from keigo.placement.heat import HALF_LIFE
from keigo.placement.policy import Expectation, Group

MEMORY: Final = 32
"""Deaths of mean size after which one counts 1/e: the estimate is then good to 1/sqrt(32), a fifth."""
GROWTH: Final = 10.0
"""How much larger a level is than the one above: the default of RocksDB and LevelDB."""
SIZE: Final = float(64 << 20)
"""Bytes of a WAL, SST or blob file of which nothing is known: RocksDB's memtable and target file size."""
SMALL: Final = float(64 << 10)
"""Bytes of any other file of which nothing is known."""
YOUNG: Final = 60.0
"""Seconds that a WAL or an SST of level 0 is taken to live."""
LONGEST: Final = 10 * 86400.0
"""Seconds of life that are assumed at most; what is learned may be more."""
_SHORTEST: Final = 1e-3
_READ_SIZE: Final = 4096.0
_NOTHING: Final = 1e-6  # weight of an assumption that is not worth working out
_BLOB_LEVEL: Final = 3  # blob files live until most of their values are overwritten: as long as a deep level
_MOST: Final = 8192  # groups; beyond, those of databases without files are forgotten
_READ_SECONDS: Final = HALF_LIFE / math.log(2)


class _Learned:
    """Of one group. Sums are as of `at`."""

    __slots__ = (
        "alive", "at", "deaths", "died", "exposure", "read_bytes", "reads", "seen", "size", "watched",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.at = now
        self.size = 0.0
        """Mean bytes."""
        self.seen = 0
        self.alive = 0
        """Bytes that are there."""
        self.exposure = 0.0
        """Byte-seconds, faded by deaths."""
        self.deaths = 0.0
        """Bytes that died, faded by deaths."""
        self.died = 0
        """Files that died."""
        self.reads = 0.0
        """These three fade with time."""
        self.read_bytes = 0.0
        self.watched = 0.0
        """Byte-seconds."""

    def advance(self, now: float) -> None:
        """Let time pass."""
        dt = now - self.at
        if dt <= 0:
            return
        self.at = now
        self.exposure += self.alive * dt
        kept = math.exp(-dt / _READ_SECONDS)
        self.reads *= kept
        self.read_bytes *= kept
        self.watched = self.watched * kept + self.alive * (1 - kept) * _READ_SECONDS

    def saw(self, size: int) -> None:
        """Take in the size of a file."""
        self.size = _mean(self.size if self.seen else None, size)
        self.seen += 1


class History:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._databases: dict[int, dict[Group, _Learned]] = {}
        self._count = 0
        self._roles: dict[Role, float] = {}
        """Mean bytes of all files of a role."""

    # --- what happens ---

    def born(self, group: Group, size: int, now: float, age: float = 0.0) -> None:
        """A file of `size` bytes is there, since `age` seconds."""
        if size <= 0:
            return
        with self._lock:
            learned = self._learned(group, now)
            self._saw(learned, group, size)
            learned.alive += size
            learned.exposure += size * max(0.0, age)

    def found(self, group: Group, size: int, rate: float, now: float) -> None:
        """A file was there before anything is remembered, and was read `rate` times per second.

        It counts as born now: its age says that it has lived, not how many others have died meanwhile.
        """
        if size <= 0:
            return
        with self._lock:
            learned = self._learned(group, now)
            self._saw(learned, group, size)
            learned.alive += size
            learned.reads += rate * _READ_SECONDS
            learned.read_bytes += rate * _READ_SECONDS * _READ_SIZE
            learned.watched += size * _READ_SECONDS

    def resized(self, group: Group, before: int, after: int, now: float) -> None:
        """A file was written again and has another size now."""
        with self._lock:
            learned = self._learned(group, now)
            if after > 0:
                self._saw(learned, group, after)
            learned.alive += after - before

    def died(self, group: Group, size: int, now: float) -> None:
        """A file was unlinked."""
        if size <= 0:
            return
        with self._lock:
            learned = self._learned(group, now)
            learned.alive -= size
            learned.died += 1
            kept = math.exp(-size / (MEMORY * max(learned.size, 1.0)))
            learned.exposure *= kept
            learned.deaths = learned.deaths * kept + size

    def regrouped(self, before: Group, after: Group, size: int, now: float) -> None:
        """A file belongs to another group now: it was moved to another level as it is, or its level is known now."""
        if size <= 0:
            return
        with self._lock:
            self._learned(before, now).alive -= size
            learned = self._learned(after, now)
            learned.alive += size
            learned.saw(size)

    def read(self, group: Group, reads: int, read_bytes: int, now: float) -> None:
        """Files of a group were read in the foreground."""
        with self._lock:
            learned = self._learned(group, now)
            learned.reads += reads
            learned.read_bytes += read_bytes

    # --- what is expected ---

    def size(self, group: Group) -> float | None:
        """Mean bytes of a group's files; None where none was seen."""
        with self._lock:
            learned = self._databases.get(group.database, {}).get(group)
            return None if learned is None or not learned.seen else learned.size

    def expect(self, group: Group, now: float, inherited: float | None = None) -> Expectation:
        """What a new file of a group will be like.

        `inherited`: foreground reads per second and byte of what it is made from, where that is known; its like are
        not asked then.
        """
        with self._lock:
            known = self._databases.get(group.database, {})
            learned = known.get(group)
            if learned is not None:
                learned.advance(now)
            life = _life(known, group, learned, now)
            if learned is not None and learned.seen:
                reads, read_size = _reads(learned)
                return Expectation(learned.size, life, _given(inherited, reads), read_size, learned=True)
            nearest = _nearest(known, group, lambda other: other.seen > 0)
            if nearest is None:
                return Expectation(_constant_size(group), life, _given(inherited, 0.0))
            nearest[0].advance(now)
            reads, read_size = _reads(nearest[0]) if group.role is Role.SST else (0.0, _READ_SIZE)
            return Expectation(nearest[0].size, life, _given(inherited, reads), read_size)

    def size_of_role(self, role: Role) -> float | None:
        """Mean bytes of the files of a role; None where none was seen."""
        with self._lock:
            return self._roles.get(role)

    # --- tables; the lock is held ---

    def _saw(self, learned: _Learned, group: Group, size: int) -> None:
        learned.saw(size)
        self._roles[group.role] = _mean(self._roles.get(group.role), size)

    def _learned(self, group: Group, now: float) -> _Learned:
        database = self._databases.setdefault(group.database, {})
        learned = database.get(group)
        if learned is None:
            if self._count >= _MOST:
                self._forget_empty(group.database)
            learned = database[group] = _Learned(now)
            self._count += 1
        learned.advance(now)
        return learned

    def _forget_empty(self, kept: int) -> None:
        for number, database in list(self._databases.items()):
            if number != kept and not any(learned.alive > 0 for learned in database.values()):
                del self._databases[number]
                self._count -= len(database)


def _mean(before: float | None, newest: float) -> float:
    """With a quarter of weight to the newest: follows a changed target_file_size within a handful of files."""
    return float(newest) if before is None else 0.75 * before + 0.25 * newest


def _given(inherited: float | None, expected: float) -> float:
    return expected if inherited is None else inherited


def _reads(learned: _Learned) -> tuple[float, float]:
    """(reads per second and byte, mean bytes of one)."""
    rate = learned.reads / learned.watched if learned.watched > 0 else 0.0
    return rate, learned.read_bytes / learned.reads if learned.reads > 0 else _READ_SIZE


def _life(known: Mapping[Group, _Learned], group: Group, learned: _Learned | None, now: float) -> float:
    """Seconds."""
    if learned is None:
        return _assumed_life(known, group, now)
    counts = 1 / (1 + learned.died) ** 2
    size = max(learned.size, 1.0)
    assumed = _assumed_life(known, group, now) if counts > _NOTHING else 0.0
    return max(_SHORTEST, (learned.exposure + counts * assumed * size) / (learned.deaths + counts * size))


def _assumed_life(known: Mapping[Group, _Learned], group: Group, now: float) -> float:
    """Seconds, by the other groups of a database and by constants."""
    nearest = _nearest(known, group, lambda other: other.died > 0)
    if nearest is not None:
        learned, levels = nearest
        learned.advance(now)
        life = learned.exposure / learned.deaths * GROWTH**levels
    elif group.role is Role.BLOB:
        life = YOUNG * GROWTH**_BLOB_LEVEL
    else:
        depth = _depth(group)
        life = LONGEST if depth is None else YOUNG * GROWTH**depth
    return min(max(life, _SHORTEST), LONGEST)


def _depth(group: Group) -> int | None:
    """Where in the tree; None for what is not part of it. An SST of unknown level is no flush: that is known."""
    if group.role is Role.WAL:
        return 0
    if group.role is Role.SST:
        return 1 if group.level is None else group.level
    return None


def _nearest(
    known: Mapping[Group, _Learned], group: Group, usable: Callable[[_Learned], bool]
) -> tuple[_Learned, int] | None:
    """The usable group next to this one in the tree, and how many levels deeper this one is."""
    depth = _depth(group)
    if depth is None:
        return None
    best: tuple[tuple[int, bool, int], _Learned] | None = None
    for other, learned in known.items():
        there = _depth(other)
        if there is None or other == group or not usable(learned):
            continue
        if group.role is other.role is Role.SST and other.level is None:
            continue
        if None not in (group.family, other.family) and group.family != other.family:
            continue
        if group.role is Role.WAL and there != 0:
            continue
        order = (abs(depth - there), other.role is Role.WAL, there)
        if best is None or order < best[0]:
            best = order, learned
    return None if best is None else (best[1], depth - best[0][2])


def _constant_size(group: Group) -> float:
    return SIZE if group.role in (Role.WAL, Role.SST, Role.BLOB) else SMALL
