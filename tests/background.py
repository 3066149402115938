"""What goes on beside a test: work whose outcome is not lost, what other processes have open, and writing back."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from keigo.control import ControlError, ask
from keigo.tiers.fds import sync_file_system
from tests.conftest import World


class Migrating:
    """A `migrate` request under way; it may find no such file, if the test was faster."""

    def __init__(self, world: World, pattern: str, tier: str) -> None:
        self.outcome: object = None
        self._world = world
        self._thread = threading.Thread(target=self._run, args=(pattern, tier))
        self._thread.start()

    def _run(self, pattern: str, tier: str) -> None:
        try:
            self.outcome = ask(self._world.volume, "migrate", pattern=pattern, tier=tier)
        except ControlError as error:
            self.outcome = str(error)

    def result(self) -> object:
        """What was answered, or the refusal's text."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.outcome is not None
        return self.outcome


def open_files(pid: int) -> list[str]:
    """What a process has open, as /proc shows it. It goes on meanwhile: what it closes is not among them."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            continue
    return found


def sync_at(path: Path) -> None:
    """Write back a path's file system. sync(2) would wait for those of other tests, whose disks hang on purpose."""
    fd = os.open(path, os.O_RDONLY)
    try:
        error = sync_file_system(fd)
    finally:
        os.close(fd)
    assert error == 0, os.strerror(error)
