"""Drain: bring every file back to the in-place tier, so that the directory is an ordinary database again.

From its first moment new files are created in place. Files that are open for writing are waited for. When nothing is
elsewhere any more the guards go, last of all. What remains of Keigo (`.keigo`, empty mirrors) goes at the unmount.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from keigo.control import ControlError, Progress
from keigo.tiers.mover import Mover, elsewhere
from keigo.tiers.scan import guard_databases
from keigo.tiers.volume import Volume
from keigo.units import format_size


def refuse_drain(volume: Volume) -> None:
    """Raise ControlError where a drain cannot succeed; nothing is changed."""
    if not volume.primary.in_place:
        raise ControlError("no tier is in place: there is nowhere to drain to")
    need = sum(size for _, size, _ in elsewhere(volume))
    free = volume.primary.free()
    if need > free:
        raise ControlError(
            f"{format_size(need)} are on other tiers and tier {volume.primary.name} has room for {format_size(free)}"
        )


class Drainer:
    """One drain of a mounted volume, in a thread of its own: it goes on when whoever asked goes away."""

    def __init__(self, volume: Volume, mover: Mover) -> None:
        refuse_drain(volume)
        self._volume = volume
        self._mover = mover
        self._total = len(elsewhere(volume))
        self._done = threading.Event()
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="keigo-drainer", daemon=True)

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self._done.is_set()

    def start(self) -> None:
        """Begin."""
        self._volume.evacuation.draining = True
        self._thread.start()

    def _run(self) -> None:
        failed = self._mover.progress.failed
        try:
            while not self._finish():
                left = elsewhere(self._volume)
                self._mover.poke()
                self._mover.wait_change(0.5)
                if self._mover.stopping:
                    self._error = "the volume is being closed"
                    break
                if self._mover.progress.failed != failed:
                    self._error = f"{self._mover.progress.last_error}; {len(left)} file(s) are still on other tiers"
                    break
        except OSError as error:
            self._error = f"a guard cannot be removed: {error}"
        except BaseException as error:
            self._error = f"it ended by a fault: {error!r}"
            raise
        finally:
            if self._error is not None:
                self._resume()
            self._done.set()

    def _finish(self) -> bool:
        """Remove the guards if every file is in place; whether they are."""
        volume = self._volume
        with volume.lock:
            while volume.landing:
                volume.idle.wait()
            if elsewhere(volume):
                return False
            volume.guards.remove_all()
            return True

    def _resume(self) -> None:
        """After a failure let files leave again, once every database has its guard: new ones have had none."""
        volume = self._volume
        with volume.lock:
            volume.evacuation.draining = False
            try:
                guard_databases(volume)
            except OSError as error:
                volume.evacuation.draining = True
                self._error = f"{self._error}; new files stay in place, for a guard cannot be set: {error}"

    def follow(self, progress: Progress) -> dict[str, Any]:
        """Report until it ends; returns the number of files brought back. Raises ControlError if it failed."""
        while not self._done.wait(0.2):
            left = elsewhere(self._volume)
            progress(
                {
                    "total": max(self._total, len(left)),
                    "left": len(left),
                    "bytes": sum(size for _, size, _ in left),
                    "open": [path for path, _, is_open in left if is_open],
                    "current": self._mover.progress.current,
                }
            )
        if self._error is not None:
            raise ControlError(self._error)
        return {"files": self._total}


def drain_offline(volume: Volume, report: Callable[[str], None]) -> int:
    """Bring every file of an unmounted volume back and remove the guards; returns how many files moved.

    Raises ControlError where something could not be moved; what was moved stays moved, and the guards stand.
    """
    refuse_drain(volume)
    volume.evacuation.draining = True
    mover = Mover(volume, None)
    moved = len(elsewhere(volume))
    failures = mover.run_all(report)
    if failures or elsewhere(volume):
        raise ControlError("; ".join(failures[:3]) or "files are still on other tiers")
    try:
        with volume.lock:
            volume.guards.remove_all()
    except OSError as error:
        raise ControlError(f"a guard cannot be removed: {os.strerror(error.errno or 0)}") from error
    return moved
