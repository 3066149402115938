"""`keigo tier remove`: every file leaves a tier, while the volume is in use.

From its first moment no file comes to the tier any more. Closed files move, one at a time; files that are open in a
way that keeps them there are waited for, as long as something leaves at least once a minute. What cannot be done ends
it, and the tier is then used as before. `tiers/departure.py` has what follows when nothing is left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Final

from keigo.control import ControlError, Progress
from keigo.placement.policy import NoRoom, first_fit
from keigo.tiers.departure import Staying, files_on, locks_on
from keigo.tiers.mover import Mover, Request
from keigo.tiers.scan import guard_databases
from keigo.tiers.tier import Tier
from keigo.tiers.volume import Volume
from keigo.units import format_size

PATIENCE: Final = 60.0  # seconds in which nothing leaves
_BATCH: Final = 8  # moves that are asked for at a time: others may ask for one, too
_TELL_EVERY: Final = 0.2  # seconds
_MOST_NAMED: Final = 5  # files


def refuse_room(volume: Volume, tier: Tier) -> None:
    """Raise ControlError where the files of a tier have no room elsewhere, or one can never move."""
    locks_on(volume, tier)
    _refuse_more(volume, tier, files_on(volume, tier))


def _refuse_more(volume: Volume, tier: Tier, files: Sequence[Staying]) -> None:
    others = [other for other in volume.tiers if other is not tier]
    need = sum(found.size for found in files)
    room = others[0].free() if len(others) == 1 else sum(max(0, other.room()) for other in others)
    if need > room:
        raise ControlError(f"{format_size(need)} are on tier {tier.name}, and others have room for {format_size(room)}")


class Leaver:
    """The evacuation of one tier; used by one thread."""

    def __init__(self, volume: Volume, mover: Mover, tier: Tier, patience: float = PATIENCE) -> None:
        self._volume = volume
        self._mover = mover
        self._tier = tier
        self._patience = patience
        self._total = 0

    def begin(self) -> None:
        """From now on no file comes to the tier."""
        with self._volume.lock:
            self._volume.evacuation.leaving = self._tier

    def is_empty(self) -> bool:
        """Whether no file is on the tier and none can come. Raises ControlError where it does not leave any more."""
        return not self._left()

    def evacuate(self, progress: Progress) -> None:
        """Bring every file elsewhere, and report. Raises ControlError where that cannot be done."""
        volume, failed = self._volume, self._mover.progress.failed
        until = time.monotonic() + self._patience
        fewest: int | None = None
        why: dict[int, str] = {}
        while left := self._left():
            _refuse_more(volume, self._tier, left)  # others write meanwhile, and must not hear that a device is full
            self._total = max(self._total, len(left))
            if fewest is None or len(left) < fewest:
                fewest, until = len(left), time.monotonic() + self._patience
            closed = [found for found in left if not found.held][:_BATCH]
            why = self._move(closed, left, progress)
            if self._mover.progress.failed != failed:
                raise ControlError(
                    f"{self._mover.progress.last_error}; {len(left)} file(s) are still on {self._tier.name}"
                )
            if len(why) < len(closed):
                continue
            if time.monotonic() > until:
                raise ControlError(self._stuck(left, why))
            self._tell(left, progress)
            with volume.lock:
                volume.idle.wait(_TELL_EVERY)  # a writer closes a file

    def take_back(self) -> str | None:
        """Use the tier again, once every database has its guard; returns what stands against it, if anything does."""
        volume = self._volume
        with volume.lock:
            volume.evacuation.leaving = None
            if not volume.guards.needed or self._mover.stopping:
                return None  # the next mount sets them
            try:
                guard_databases(volume)
            except OSError as error:
                volume.evacuation.draining = True
                return f"new files go to tier {volume.primary.name} alone, for a guard cannot be set: {error}"
        self._mover.poke()
        return None

    def _left(self) -> list[Staying]:
        with self._volume.lock:  # the volume is not closed meanwhile
            self._check()
            return files_on(self._volume, self._tier)

    def _check(self) -> None:
        if self._mover.stopping:
            raise ControlError("the volume is being closed")
        if self._volume.evacuation.leaving is not self._tier:
            raise ControlError(f"tier {self._tier.name} stays: no other has room for new files")

    def _move(self, files: Sequence[Staying], left: Sequence[Staying], progress: Progress) -> dict[int, str]:
        """Move files elsewhere; returns those that did not move, and why."""
        waiting = threading.Semaphore(0)
        why: dict[int, str] = {}
        for found, target in zip(files, self._targets(files), strict=True):

            def done(outcome: str | None, file: int = found.file) -> None:
                if outcome is None:
                    self._let_move(file)
                else:
                    why[file] = outcome
                waiting.release()

            self._mover.submit(Request(found.file, target, f"tier {self._tier.name} is being removed", done))
        for number in range(len(files)):
            while not waiting.acquire(timeout=_TELL_EVERY):
                self._tell(left[number:], progress)
        return why

    def _targets(self, files: Sequence[Staying]) -> list[str]:
        """Where each goes: the next slower tier with room, else a faster one. Raises ControlError where none has."""
        volume = self._volume
        if len(volume.evacuation.staying) == 1:
            return [volume.primary.name] * len(files)
        targets = []
        states = volume.placing.well(volume.placing.tier_states())
        for found in files:
            try:
                targets.append(states[first_fit(self._tier.index, found.size, states)].name)
            except NoRoom:
                size = format_size(found.size)
                raise ControlError(
                    f"{found.path}: {size}: no other tier has room for it: {self._tier.name} stays"
                ) from None
        return targets

    def _let_move(self, file: int) -> None:
        """A file that a user once moved to the tier is the policy's again."""
        volume = self._volume
        with volume.lock:
            record = volume.catalog.file(file)
            if record is not None and record.kept:
                record.kept = False
                volume.catalog.put_file(file, record)

    def _tell(self, left: Sequence[Staying], progress: Progress) -> None:
        progress(
            {
                "total": self._total,
                "left": len(left),
                "bytes": sum(found.size for found in left),
                "open": [found.path for found in left if found.held],
                "current": self._mover.progress.current,
            }
        )

    def _stuck(self, left: Sequence[Staying], why: dict[int, str]) -> str:
        """What to tell where nothing leaves any more."""
        held = [found.path for found in left if found.held]
        if held:
            more = f" and {len(held) - _MOST_NAMED} more" if len(held) > _MOST_NAMED else ""
            names = ", ".join(held[:_MOST_NAMED]) + more
            return f"open files stay on {self._tier.name}: {names}; close them and run again"
        told = [f"{found.path}: {why.get(found.file, 'does not move')}" for found in left[:_MOST_NAMED]]
        return f"files stay on {self._tier.name}: {'; '.join(told)}"
