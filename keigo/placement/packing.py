"""Files ordered by a score and packed into the tiers from the fastest down, and the moves that lead there.

Where each file belongs follows from what all files are, and not from where those are now that are read: from the one
with the highest score on, a file belongs on the first tier that has room left for it. Of equal scores those that are on
a tier already have its room first. A file that is (almost) not read belongs where it is, until the others need its
room; then the oldest go first, downwards. The slowest tier takes whatever is left over, and is where a file waits when
two on full tiers are to change places.

It ends, and the next plan is empty: as long as room lasts, each file that is moved away from where it does not belong
either arrives, or waits on the slowest tier for the sake of one that arrives; so there is always one less to move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Final

from keigo.lsm.roles import IMMUTABLE
from keigo.placement.planner import age, spare_of
from keigo.placement.policy import Bucket, Files, FileState, Move, TierState, fallback_order

_ALL: Final = 1 << 62  # bytes: more than there are


@dataclass(frozen=True, slots=True)
class _Wish:
    """That a file goes elsewhere."""

    file: FileState
    tier: int
    reason: str
    resists: bool = False
    """Whether it goes only to make way for another."""


class Packing:
    """One plan in the making: where the files would be, and what room that leaves, after the moves so far."""

    def __init__(
        self,
        files: Files,
        tiers: Sequence[TierState],
        score: Callable[[FileState], float],
        rest: float,
        why: Callable[[FileState, int, int], str],
        resistance: float = 0.0,
    ) -> None:
        """`rest`: seconds for which a file stays where it was made or last moved to, unless that tier is too full.

        `why` explains a file's score, its rank from 1, and of how many. `resistance`: of each two neighbouring
        tiers, the files next to their border stay on the wrong side of it: half this share of all bytes, either side.
        """
        self.tiers = tiers
        self.last = len(tiers) - 1
        self.now = files.now
        self.score = score
        self.rest = rest
        self.why = why
        self.room = [tier.room for tier in tiers]
        self.moves: list[Move] = []
        self._at: dict[int, int] = {}
        self._files = files
        self._idle: list[list[Bucket]] = [[] for _ in tiers]
        """By tier: files that are (almost) not read. Looked at one by one only where some have to go."""
        self._idle_bytes = [0 for _ in tiers]
        self._idle_files: list[dict[int, FileState] | None] = [None for _ in tiers]
        self._idle_arrived: list[dict[int, FileState]] = [{} for _ in tiers]
        self._idle_ids: set[int] = set()
        self._away: list[FileState] = []
        """Pinned to another tier."""
        read: list[FileState] = []
        total = 0
        for bucket in files.buckets():
            if bucket.group.role not in IMMUTABLE:
                continue
            total += bucket.bytes
            if bucket.pinned is not None:
                if bucket.pinned != bucket.tier:
                    self._away.extend(files.members(bucket))
            elif bucket.heat is None:
                self._idle[bucket.tier].append(bucket)
                self._idle_bytes[bucket.tier] += bucket.bytes
            else:
                read.extend(files.members(bucket))
        self._read = sorted(read, key=lambda file: (-score(file), file.id))
        self._away.sort(key=lambda file: file.id)
        self._near = int(total * resistance / 2)

    def run(self) -> list[Move]:
        """The moves, in the order in which they can be done."""
        before = -1
        while before != len(self.moves):
            before = len(self.moves)
            self._carry_out(self._wishes())
            for tier in reversed(range(len(self.tiers))):
                self._relieve(tier)
        return self.moves

    def at(self, file: FileState) -> int:
        """Where a file is after the moves so far."""
        return self._at.get(file.id, file.tier)

    # --- where files belong ---

    def _rests(self, file: FileState) -> bool:
        recent = self.now - max(file.created, file.moved) < self.rest
        return recent and self.room[self.at(file)] >= 0

    def _wishes(self) -> list[_Wish]:
        """The files that belong elsewhere: those pinned there, then from the highest score down, then the idle ones."""
        read = [file for file in self._read if not self._rests(file)]
        left = [room + idle for room, idle in zip(self.room, self._idle_bytes, strict=True)]
        for file in (*read, *(file for file in self._away if self.at(file) != file.pinned)):
            left[self.at(file)] += file.size
        left[self.last] = _ALL
        wishes = []
        for file in self._away:
            pinned = file.pinned
            if pinned is not None and self.at(file) != pinned and file.size <= left[pinned]:
                left[pinned] -= file.size
                wishes.append(_Wish(file, pinned, f"pinned to {self.tiers[pinned].name}"))
        for tier in range(self.last):
            left[tier] -= spare_of(self.tiers[tier])
        places = self._packed(read, left)
        resisting = self._resisting(read, places)
        for rank, (file, tier) in enumerate(zip(read, places, strict=True), 1):
            if tier != self.at(file):
                up = tier < self.at(file)
                fits = "fits" if up else "does not fit above"
                reason = f"{self.why(file, rank, len(read))}: {fits} {self.tiers[tier].name}"
                wishes.append(_Wish(file, tier, reason, file.id in resisting))
        return wishes + self._displaced(left)

    def _packed(self, files: Sequence[FileState], left: list[int]) -> list[int]:
        """The tier of each; takes what they need from `left`."""
        places: dict[int, int] = {}
        for _, equals in groupby(files, self.score):
            waiting = list(equals)
            for tier in range(len(self.tiers)):
                # Those that are here already come first, or equals would change places for nothing.
                waiting.sort(key=partial(self._foreign, tier))
                rest = []
                for file in waiting:
                    if file.size <= left[tier]:
                        left[tier] -= file.size
                        places[file.id] = tier
                    else:
                        rest.append(file)
                waiting = rest
        return [places[file.id] for file in files]

    def _foreign(self, tier: int, file: FileState) -> tuple[bool, int]:
        return self.at(file) != tier, file.id

    def _resisting(self, files: Sequence[FileState], places: Sequence[int]) -> set[int]:
        """Ids of files on the wrong side of borders that they are near to."""
        if not self._near:
            return set()
        near = [self._near_border(files, places, border) for border in range(self.last)]
        found = set()
        for file, place in zip(files, places, strict=True):
            crossed = range(min(place, self.at(file)), max(place, self.at(file)))
            if crossed and all(file.id in near[border] for border in crossed):
                found.add(file.id)
        return found

    def _near_border(self, files: Sequence[FileState], places: Sequence[int], border: int) -> set[int]:
        """Ids of the coldest files that belong on tier `border` or a faster one, and of the warmest that do not."""
        found = set()
        pairs = list(zip(files, places, strict=True))
        for side in (
            (file for file, place in reversed(pairs) if place <= border),
            (file for file, place in pairs if place > border),
        ):
            taken = 0
            for file in side:
                taken += file.size
                if taken > self._near:
                    break
                found.add(file.id)
        return found

    def _displaced(self, left: list[int]) -> list[_Wish]:
        """Idle files whose room others need; `left` is what those that are read leave."""
        for tier in range(self.last):
            left[tier] -= self._idle_bytes[tier]
        wishes = []
        for tier in range(self.last):
            over = -left[tier]
            if over <= 0:
                continue
            for file in self._oldest_idle(tier):
                if over <= 0:
                    break
                target = next(below for below in range(tier + 1, len(self.tiers)) if left[below] >= file.size)
                left[target] -= file.size
                over -= file.size
                wishes.append(_Wish(file, target, f"hardly read, and {self.tiers[tier].name} needs the room"))
        return wishes

    def _oldest_idle(self, tier: int) -> list[FileState]:
        known = self._idle_files[tier]
        if known is None:
            members = (file for bucket in self._idle[tier] for file in self._files.members(bucket))
            known = self._idle_files[tier] = {file.id: file for file in members}
            self._idle_ids.update(known)
        here = known | self._idle_arrived[tier]
        found = [f for f in here.values() if f.size > 0 and self.at(f) == tier and not self._rests(f)]
        return sorted(found, key=lambda file: (age(file), file.id))

    # --- how they get there ---

    def _carry_out(self, wishes: Sequence[_Wish]) -> None:
        """Do what can be done, in passes, for a move may leave room for one before it."""
        leaving: list[list[tuple[int, _Wish]]] = [[] for _ in self.tiers]
        for number, wish in enumerate(wishes):
            leaving[self.at(wish.file)].append((number, wish))
        waiting = [(number, wish) for number, wish in enumerate(wishes) if not wish.resists]
        before = -1
        while before != len(self.moves):
            before = len(self.moves)
            left = []
            for number, wish in waiting:
                if self.at(wish.file) == wish.tier:
                    continue
                if self.room[wish.tier] >= wish.file.size or self._make_way(number, wish, leaving[wish.tier]):
                    self._move(wish.file, wish.tier, wish.reason)
                else:
                    left.append((number, wish))
            waiting = left

    def _make_way(self, number: int, wish: _Wish, leaving: list[tuple[int, _Wish]]) -> bool:
        """Move files off the wished tier that belong elsewhere, and less urgently; those that cannot arrive wait on the
        slowest tier. Whether that leaves room for the wish; else none moves."""
        while leaving and self.at(leaving[-1][1].file) != wish.tier:  # gone; it does not come back
            leaving.pop()
        room = list(self.room)
        chosen: list[tuple[_Wish, int]] = []
        for other_number, other in reversed(leaving):
            if other_number <= number or room[wish.tier] >= wish.file.size:
                break
            if self.at(other.file) != wish.tier:
                continue
            target = next((t for t in (other.tier, self.last) if t != wish.tier and room[t] >= other.file.size), None)
            if target is not None:
                room[target] -= other.file.size
                room[wish.tier] += other.file.size
                chosen.append((other, target))
        if room[wish.tier] < wish.file.size:
            return False
        name = self.tiers[wish.tier].name
        for other, target in chosen:
            if room[wish.tier] - other.file.size >= wish.file.size:  # the ones after it were enough
                room[wish.tier] -= other.file.size
            elif target == other.tier:
                self._move(other.file, target, other.reason)
            else:
                self._move(other.file, target, f"makes way on {name}, until {self.tiers[other.tier].name} has room")
        return True

    def _relieve(self, tier: int) -> None:
        """Bring a tier down that is still too full, to wherever there is room."""
        if self.room[tier] >= 0:
            return
        here = [file for file in (*self._away, *reversed(self._read)) if self.at(file) == tier and file.size > 0]
        for file in self._oldest_idle(tier) + here:
            for target in fallback_order(tier, len(self.tiers)):
                if target != tier and self.room[target] >= file.size:
                    self._move(file, target, f"makes room on {self.tiers[tier].name}")
                    break
            if self.room[tier] >= 0:
                return

    def _move(self, file: FileState, target: int, reason: str) -> None:
        source = self.at(file)
        self.moves.append(Move(file.id, source, target, reason, urgent=self.room[source] < 0))
        self._at[file.id] = target
        self.room[source] += file.size
        self.room[target] -= file.size
        if file.id in self._idle_ids:
            self._idle_bytes[source] -= file.size
            self._idle_bytes[target] += file.size
            self._idle_arrived[target][file.id] = file


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th."""
    tens = number // 10 % 10 == 1
    return f"{number}{'th' if tens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
