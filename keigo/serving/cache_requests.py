"""`keigo cache`: fill the read cache with files, or drop them from it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keigo.control import ControlError, Operation, Progress
from keigo.lsm.roles import IMMUTABLE
from keigo.serving.arguments import matching, text_of
from keigo.tiers.volume import Volume

if TYPE_CHECKING:
    from keigo.cache.filler import Filler

_TELL_EVERY: Final = 0.2  # seconds between two words on a warm-up


@dataclass(frozen=True)
class CacheRequests:
    """Of one mount; each request has a thread of its own."""

    volume: Volume
    filler: Filler | None

    def operations(self) -> Mapping[str, Operation]:
        """Request -> what answers it."""
        return {"cache": self._answer}

    def _answer(self, request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        if self.filler is None:
            raise ControlError("there is no cache: devices.yaml configures none")
        pattern = text_of(request, "pattern")
        files = [file for file, _, role in matching(self.volume, pattern) if role in IMMUTABLE]
        if not files:
            raise ControlError(f"{pattern}: no SST or blob file matches")
        if text_of(request, "what") == "drop":
            dropped = self.filler.cache.drop_files(files)
            self.filler.poke()
            return {"dropped": dropped}
        return _warm(self.filler, files, progress)


def _warm(filler: Filler, files: Sequence[int], progress: Progress) -> Any:  # noqa: ANN401
    from keigo.cache.warming import Warm  # who has a filler has loaded it

    slow = [file for file in files if filler.cache.takes(file)]
    if not slow:
        raise ControlError(f"nothing to cache: all of it is on {filler.cache.tier.name} or faster, or being written")
    before, total = filler.cache.cached_bytes_of(slow), filler.cache.bytes_of(slow)
    ended = threading.Event()
    outcome: list[str | None] = []
    copied = [before]

    def done(why: str | None) -> None:
        outcome.append(why)
        ended.set()

    def told(size: int) -> None:
        copied[0] += size

    filler.warming.submit(Warm(deque(slow), done, told))
    while not ended.wait(_TELL_EVERY):
        progress({"done": copied[0], "of": total})
    return {"files": len(slow), "cached": filler.cache.cached_bytes_of(slow), "of": total, "why": outcome[0]}
