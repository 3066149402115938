"""Pins: patterns of paths that belong on one tier.

Those of devices.yaml and those set by `keigo pin`, which are kept in `.keigo/pins.json` of the primary tier, not in
the catalog: they are the user's words and must survive its loss. The newest matching pin set by command wins, then
the first in devices.yaml. `*` matches any characters, slashes included (fnmatch).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Final

import msgspec

from keigo.tiers.directories import shown
from keigo.tiers.fds import Fd, read_file, write_durably

PINS: Final = b"pins.json"


class PinsError(Exception):
    """The stored pins cannot be read; the text says why."""


class Pins:
    """The pins of a volume. The caller holds `Volume.lock`."""

    def __init__(self, state: Fd, configured: Mapping[str, str]) -> None:
        self._state = state
        self._configured = dict(configured)
        self.changes = 0
        """How often a pin was set or removed."""
        try:
            self._set = msgspec.json.decode(read_file(state.fd, PINS), type=dict[str, str])
        except FileNotFoundError:
            self._set = {}
        except (OSError, ValueError) as error:
            raise PinsError(f".keigo/pins.json: {error}") from error

    def all(self) -> dict[str, str]:
        """Pattern -> tier name, the winning ones first."""
        return {
            **dict(reversed(self._set.items())),
            **{k: v for k, v in self._configured.items() if k not in self._set},
        }

    @property
    def exist(self) -> bool:
        """Whether there are any."""
        return bool(self._set or self._configured)

    def tier_for(self, path: bytes) -> tuple[str, str] | None:
        """(pattern, tier name) of the pin that a path falls under."""
        if not self.exist:
            return None
        text = shown(path)
        return next(
            ((pattern, tier) for pattern, tier in self.all().items() if fnmatch.fnmatchcase(text, pattern)), None
        )

    def pin(self, pattern: str, tier: str) -> None:
        """Set a pin, durably. Raises OSError with nothing changed."""
        self._write({**{k: v for k, v in self._set.items() if k != pattern}, pattern: tier})

    def unpin(self, pattern: str) -> bool:
        """Remove a pin set by `pin`, durably; False where there is none (one of devices.yaml is removed there)."""
        if pattern not in self._set:
            return False
        self._write({k: v for k, v in self._set.items() if k != pattern})
        return True

    def _write(self, pins: dict[str, str]) -> None:
        write_durably(self._state.fd, PINS, msgspec.json.encode(pins))
        self._set = pins
        self.changes += 1
