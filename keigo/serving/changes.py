"""Requests that change the mount itself: drain, restart, tiers that come or go.

One of them at a time decides (`_deciding`, taken before Volume.lock); a drain and an evacuation then go on beside
other requests.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from keigo import failpoints
from keigo.config import Config
from keigo.control import ControlError, Operation, Progress
from keigo.errors import KeigoError
from keigo.serving.arguments import text_of
from keigo.serving.drain import Drainer
from keigo.serving.leaving import PATIENCE, Leaver
from keigo.serving.mounting import note_mount
from keigo.serving.succession import Succession, end_for_next
from keigo.serving.tier_change import check_add, check_remove, check_restart, refuse_change, text_without, write
from keigo.tiers.departure import take_back, take_out
from keigo.tiers.mover import Mover
from keigo.tiers.tier import Tier
from keigo.tiers.volume import Volume

log = logging.getLogger(__name__)


class Changes:
    """Of one mount; each request has a thread of its own."""

    def __init__(
        self, config: Config, directory: Path, policy: str | None, volume: Volume, mover: Mover, succession: Succession
    ) -> None:
        self._config = config
        self._directory = directory
        self._policy = policy
        self._volume = volume
        self._mover = mover
        self._succession = succession
        self._drainer: Drainer | None = None
        self._deciding = threading.Lock()

    def operations(self) -> Mapping[str, Operation]:
        """Request -> what answers it."""
        return {
            "drain": self._drain,
            "restart": self._restart,
            "tier-add": self._tier_add,
            "tier-remove": self._tier_remove,
        }

    # --- drain ---

    def _drain(self, _request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        with self._deciding:
            if self._volume.evacuation.leaving is not None:
                refuse_change(self._volume)
            if self._drainer is None or self._drainer.finished:
                self._drainer = Drainer(self._volume, self._mover)
                self._note(draining=True)
                self._drainer.start()
            drainer = self._drainer
        try:
            return drainer.follow(progress)
        except ControlError:
            if not self._volume.evacuation.draining:
                self._note(draining=False)
            raise

    def _note(self, *, draining: bool) -> None:
        told = note_mount(self._volume, self._directory, draining=draining)
        if told is not None:
            log.warning("%s", told)

    def drain_on(self) -> None:
        """Go on with the drain of a daemon that died."""
        try:
            self._drainer = Drainer(self._volume, self._mover)
        except ControlError as error:  # new files stay in place, as was promised
            log.error("the drain does not go on: %s", error)
        else:
            self._drainer.start()

    # --- another daemon ---

    def _restart(self, _request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        """End as if killed, at a good moment; the keeper starts the next daemon."""
        self._succession.refuse_unkept("umount and mount again")
        text = check_restart(self._config, self._volume, self._directory)
        self._succession.check_next()
        self._end(progress, lambda: self._succession.go_by(text))

    def _end(self, progress: Progress, last: Callable[[], None]) -> NoReturn:
        """End at a moment when nothing is under way that the next daemon would have to finish.

        What `last` does is done when nothing else can fail any more; where it fails itself this daemon goes on.
        """
        self._mover.pause()
        try:
            self._volume.flush()
            last()
        except BaseException:
            self._mover.resume()
            raise
        progress({"pid": os.getpid()})
        end_for_next("the next daemon")

    def _tier_add(self, request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        """Write the tier into devices.yaml and end: the next daemon has it."""
        source = self._config.source
        self._succession.refuse_unkept(f"umount, add the tier to {source}, and mount again")
        tier = {key: text_of(request, key) for key in ("name", "path", "capacity", "reserve") if request.get(key)}
        before = text_of(request, "before") if request.get("before") else None
        with self._deciding:
            text, changed = check_add(self._config, self._volume, self._directory, tier, before, self._policy)
            self._succession.check_next()
            self._end(progress, lambda: self._write_held(text, changed))

    def _write_held(self, text: str, changed: str) -> None:
        """Write devices.yaml, with the text that it has held for the next daemon."""
        self._succession.hold(text)
        try:
            write(self._config.source, changed)
        except ControlError:
            self._succession.let_go()
            raise

    def _tier_remove(self, request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        """Empty a tier, write devices.yaml without it, and end: the next daemon goes on without."""
        self._succession.refuse_unkept(
            f"keigo drain, umount, take the tier out of {self._config.source}, and mount again"
            if self._volume.primary.in_place
            else "umount, and mount with the kernel driver and a keeper"
        )
        name = text_of(request, "name")
        with self._deciding:
            check_remove(self._config, self._volume, self._directory, name)
            text_without(self._config, self._directory, name, self._policy)
            self._succession.check_next()
            tier = self._volume.by_name[name]
            leaver = Leaver(self._volume, self._mover, tier, request.get("patience", PATIENCE))
            leaver.begin()
        try:
            while True:
                leaver.evacuate(progress)
                failpoints.hit("leave.evacuated")
                self._succession.check_next()
                progress({"ending": True})
                self._end_without(leaver, tier)
        except BaseException as error:
            against = leaver.take_back()
            if isinstance(error, KeigoError | OSError):
                raise ControlError(f"{error}" if against is None else f"{error}; {against}") from error
            raise

    def _end_without(self, leaver: Leaver, tier: Tier) -> None:
        """End for a daemon that goes on without a tier; return where a file has come to it after all.

        From the last look at the tier until the end nobody may touch the volume: what is made on it would be lost.
        """
        self._mover.pause()
        try:
            with self._deciding, self._volume.lock:
                if not leaver.is_empty():
                    return
                text, changed = text_without(self._config, self._directory, tier.name, self._policy)
                before = take_out(self._volume, tier)
                try:
                    self._volume.flush()
                    self._write_held(text, changed)
                except BaseException:
                    take_back(self._volume, before)
                    raise
                end_for_next(f"a daemon without tier {tier.name}")  # nothing may fail since devices.yaml is written
        finally:
            self._mover.resume()
