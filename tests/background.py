"""Work that goes on beside a test, whose outcome is not lost."""

from __future__ import annotations

import threading

from keigo.control import ControlError, ask
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
