"""Requests that say where files are to be: pins, and files moved by name."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from keigo.config import Config
from keigo.control import ControlError, Operation, Progress
from keigo.lsm.roles import IMMUTABLE
from keigo.serving.arguments import matching, text_of, tier_of
from keigo.tiers.mover import Mover, Request
from keigo.tiers.volume import Volume

_CLOSE_WAIT: Final = 1.0  # seconds: close(2) returns before the file system hears of it


@dataclass(frozen=True)
class Moves:
    """Of one mount; each request has a thread of its own."""

    config: Config
    volume: Volume
    mover: Mover

    def operations(self) -> Mapping[str, Operation]:
        """Request -> what answers it."""
        return {"pin": self._pin, "unpin": self._unpin, "migrate": self._migrate}

    def _pin(self, request: Mapping[str, Any], _progress: Progress) -> Any:  # noqa: ANN401
        pattern = text_of(request, "pattern")
        with self.volume.lock:
            tier = tier_of(request, self.volume)
            try:
                self.volume.pins.pin(pattern, tier)
            except OSError as error:
                raise ControlError(f"the pin cannot be stored: {error.strerror}") from error
        self.mover.poke()
        return {"matching": len(matching(self.volume, pattern))}

    def _unpin(self, request: Mapping[str, Any], _progress: Progress) -> Any:  # noqa: ANN401
        pattern = text_of(request, "pattern")
        with self.volume.lock:
            if pattern in self.config.pins:
                raise ControlError(f"{pattern}: is pinned by {self.config.source}; remove it there")
            try:
                removed = self.volume.pins.unpin(pattern)
            except OSError as error:
                raise ControlError(f"the pins cannot be stored: {error.strerror}") from error
            if not removed:
                known = ", ".join(self.volume.pins.all()) or "none"
                raise ControlError(f"{pattern}: no such pin (pins: {known})")
        self.mover.poke()
        return {}

    def _migrate(self, request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        pattern, tier = text_of(request, "pattern"), tier_of(request, self.volume)
        if self.volume.evacuation.draining and tier != self.volume.primary.name:
            raise ControlError("the volume is drained: nothing leaves the data directory until it is mounted again")
        found = matching(self.volume, pattern)
        if not found:
            raise ControlError(f"{pattern}: no file matches")
        self.volume.open_files.wait_released([file for file, _, role in found if role in IMMUTABLE], _CLOSE_WAIT)
        waiting = threading.Semaphore(0)
        outcome: dict[str, str | None] = {}
        for file, path, role in found:
            if role not in IMMUTABLE:
                outcome[path] = "only SST and blob files move"
                waiting.release()
                continue

            def done(why: str | None, path: str = path) -> None:
                outcome[path] = why
                waiting.release()

            self.mover.submit(Request(file, tier, f"moved to {tier} by command", done, keep=True))
        for number in range(1, len(found) + 1):
            waiting.acquire()
            progress({"done": number, "of": len(found)})
        return {
            "moved": sorted(path for path, why in outcome.items() if why is None),
            "skipped": {path: why for path, why in sorted(outcome.items()) if why is not None},
        }
