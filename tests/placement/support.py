"""Plain volumes for tests of policies: `Files` over a list, a random volume, and what a plan does to one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from keigo.lsm.pressure import CALM, Pressure
from keigo.lsm.roles import IMMUTABLE, Role
from keigo.placement.policy import Bucket, Expectation, FileState, Group, Move, TierState
from keigo.placement.rates import assumed, rates_of

NOW = 1_000_000.0
"""When `ListFiles` says that it is, unless told."""
LEAST_HEAT = -60
"""Class of heat below which a file counts as not read."""
UNKNOWN = Expectation(size=64 << 20, life=600.0)
"""What is expected of a group that a test says nothing of."""


def group_of(file: FileState) -> Group:
    """The group of a file: its own, or one of all the files of database 0 that are like it."""
    return file.group or Group(0, None, file.role, file.level)


def heat_of(file: FileState) -> int | None:
    """The class of heat of a file: `Bucket.heat`."""
    if file.reads <= 0 or file.size <= 0:
        return None
    heat = math.floor(math.log2(file.reads / file.size))
    return heat if heat >= LEAST_HEAT else None


class ListFiles:
    """`Files` over a list, whose order is that of arrival in the buckets. Nothing is cached: it may be slow."""

    def __init__(
        self,
        files: Iterable[FileState] = (),
        now: float = NOW,
        expected: Mapping[Group, Expectation] | None = None,
        still: Collection[int] = (),
    ) -> None:
        self.files = list(files)
        self._now = now
        self._expected = expected or {}
        self.still = still
        """Ids of files that cannot move now."""

    def __iter__(self) -> Iterator[FileState]:
        return iter(list(self.files))

    def buckets(self) -> list[Bucket]:
        """See Files."""
        found: dict[tuple[int, Group, int | None, int | None], tuple[int, int]] = {}
        for file in self.files:
            key = _key(file)
            files, size = found.get(key, (0, 0))
            found[key] = files + 1, size + file.size
        return [Bucket(*key, *totals) for key, totals in found.items()]

    def members(self, bucket: Bucket) -> Iterator[FileState]:
        """See Files."""
        key = bucket.tier, bucket.group, bucket.heat, bucket.pinned
        return (file for file in list(self.files) if file.id not in self.still and _key(file) == key)

    def expect(self, group: Group) -> Expectation:
        """See Files."""
        return self._expected.get(group, UNKNOWN)

    @property
    def now(self) -> float:
        """See Files."""
        return self._now

    @property
    def pressure(self) -> Pressure:
        """See Files."""
        return CALM

    def after(self, moves: Sequence[Move]) -> ListFiles:
        """The same once the moves are done."""
        return ListFiles(moved(self.files, moves), self._now, self._expected, self.still)


class Unread(ListFiles):
    """Files that must not be looked at one by one."""

    def __iter__(self) -> Iterator[FileState]:
        raise AssertionError("all files are read")

    def members(self, bucket: Bucket) -> Iterator[FileState]:
        raise AssertionError(f"files are read, of {bucket}")


def _key(file: FileState) -> tuple[int, Group, int | None, int | None]:
    return file.tier, group_of(file), heat_of(file), file.pinned


def tiers(*rooms: int, capacity: int = 1000) -> list[TierState]:
    """Tiers of equal capacity with so much room left, named t0, t1, ..."""
    return [TierState(f"t{index}", capacity, capacity - room, room) for index, room in enumerate(rooms)]


def sst(
    number: int,
    tier: int,
    size: int = 10,
    *,
    level: int | None = None,
    pinned: int | None = None,
    reads: float = 0.0,
    family: str | None = None,
) -> FileState:
    """An SST whose id is its number."""
    group = Group(0, family, Role.SST, level)
    return FileState(number, tier, size, Role.SST, level, number, pinned, group, reads=reads)


def done(files: Iterable[FileState], states: Sequence[TierState], moves: Sequence[Move]) -> list[TierState]:
    """The tiers after a plan, with every rule about single moves checked on the way."""
    at = {file.id: file for file in files}
    states = list(states)
    for move in moves:
        file = at[move.file]
        assert file.tier == move.source != move.target
        assert file.role in IMMUTABLE
        assert file.pinned != move.source
        assert move.reason
        source, target = states[move.source], states[move.target]
        states[move.source] = replace(source, used=source.used - file.size, room=source.room + file.size)
        states[move.target] = replace(target, used=target.used + file.size, room=target.room - file.size)
        assert states[move.target].room >= 0
        at[move.file] = replace(file, tier=move.target)
    return states


def moved(files: Iterable[FileState], moves: Sequence[Move]) -> list[FileState]:
    """The files after a plan."""
    last = {move.file: move.target for move in moves}
    return [replace(file, tier=last.get(file.id, file.tier)) for file in files]


@dataclass(frozen=True)
class Volume:
    """Files and tiers; most drawn ones have too little room."""

    files: ListFiles
    states: list[TierState]

    def __repr__(self) -> str:
        """Without rates, which fill the screen."""
        tiers = ", ".join(f"{t.name}: capacity={t.capacity} room={t.room}" for t in self.states)
        return f"Volume([{tiers}], {self.files.files}, still={sorted(self.files.still)})"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(repr(self))

    def after(self, moves: Sequence[Move]) -> Volume:
        """The same once the moves are done, each of which is checked."""
        return Volume(self.files.after(moves), done(self.files, self.states, moves))


RATES = [rates_of(assumed(place)) for place in range(4)]


@st.composite
def volumes(draw: st.DrawFn, most: int = 14) -> Volume:
    """A volume of up to four tiers and `most` files; some files cannot move now."""
    count = draw(st.integers(1, 4))
    index = st.integers(0, count - 1)
    files = []
    for number in range(draw(st.integers(0, most))):
        role = draw(st.sampled_from([Role.SST, Role.SST, Role.SST, Role.BLOB, Role.WAL, Role.OTHER]))
        level = draw(st.none() | st.integers(0, 6)) if role is Role.SST else None
        created = NOW - draw(st.sampled_from([0.0, 5.0, 40.0, 1000.0, 1000.0]))
        files.append(
            FileState(
                number,
                draw(index),
                draw(st.integers(0, 120)),
                role,
                level,
                draw(st.none() | st.integers(1, 20)),
                draw(st.none() | st.none() | index),
                Group(draw(st.integers(0, 1)), draw(st.none() | st.just("default")), role, level),
                created,
                draw(st.sampled_from([0.0, 0.0, 0.0, created, NOW])),
                draw(st.sampled_from([0.0, 0.0, 1.0, 2.0, 2.0, 30.0]) | st.floats(1e-6, 1e6)),
            )
        )
    states = []
    for tier in range(count):
        used = sum(file.size for file in files if file.tier == tier)
        room = draw(st.integers(-150, 200))
        capacity = max(0, used + room + draw(st.integers(0, 40)))
        states.append(TierState(f"t{tier}", capacity, used, room, RATES[tier]))
    still = draw(st.sets(st.integers(0, max(0, len(files) - 1)), max_size=2))
    return Volume(ListFiles(files, still=still), states)
